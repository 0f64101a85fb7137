"""What a run of a recipe leaves, compared bit by bit, and runs that break off."""

import json

import pytest
import torch

from engine import checkpoint
from engine.run import Run


def records_of(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def differences(a, b, path=""):
    """Where two checkpoints differ in a bit."""
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        return [] if same else [path]
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return [d for k in a for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        return [d for i in range(len(a)) for d in differences(a[i], b[i], f"{path}[{i}]")]
    return [] if a == b or (a != a and b != b) else [path]


def assert_same_run(a, b):
    ours, theirs = checkpoint.load(a / "checkpoint.pt"), checkpoint.load(b / "checkpoint.pt")
    assert differences(ours, theirs) == []
    assert (a / "log.jsonl").read_bytes() == (b / "log.jsonl").read_bytes()
    assert (a / "results.json").read_bytes() == (b / "results.json").read_bytes()


def break_off(main, options, at):
    """Runs ``main(options)`` until it is interrupted before the step ``at`` = (epoch, batch)."""
    train_step = Run.train_step

    def crashing(run, *batch):
        if (run.epoch, run.batch) == at:
            raise KeyboardInterrupt
        train_step(run, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "train_step", crashing)
        with pytest.raises(KeyboardInterrupt):
            main(options)
