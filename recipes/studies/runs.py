"""Runs of train.py, many at a time, each trained once; and one cache of stage one.

A run is its words on the command line. Runs that are finished are read, one that was interrupted is
resumed: after a kill, the same command goes on. Runs that do not differ in stage one (SGD and ABSGD
of a loss; CE and its class-balanced kind) share it: it is trained once, and each begins with its
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import train
from baselines.methods import METHODS
from engine import checkpoint, options, report

Results = dict[str, Any]


def run(words: Sequence[str], directory: Path, shared: Path) -> Results:
    """results.json of train.py with ``words`` in ``directory``; ``shared`` keeps stages one.

    Raises:
        ValueError: ``directory`` holds the results of other options.
    """
    words = [*words, "--output-dir", str(directory)]
    args = train.parse([*words, "--resume"])
    results = directory / "results.json"
    if is_finished(args, results):
        return json.loads(results.read_text())
    print(f"\n{directory}: train.py {' '.join(words)}", flush=True)
    if shares_stage_one(args) and not (directory / "checkpoint.pt").exists():
        words += ["--stage-one", str(stage_one(args, words, shared))]
    train.main([*words, "--resume"])
    return json.loads(results.read_text())


def is_finished(args: Namespace, path: Path) -> bool:
    """Raises ValueError if the results are of other options."""
    if not path.exists():
        return False
    theirs = json.loads(path.read_text())["config"]
    ours = report.jsonable(options.config_of(args))
    if args.arch is None:
        del ours["arch"]  # the default of the data
    differ = sorted(k for k in ours if theirs.get(k) != ours[k])
    if differ:
        raise ValueError(
            f"{path} is of a run with other options ({', '.join(differ)}): "
            "name another --output-dir"
        )
    return True


def shares_stage_one(args: Namespace) -> bool:
    """Whether the epochs before --stage-two are plain SGD with nothing of stage two in them."""
    return (
        args.lam_start == math.inf
        and 0 < args.stage_two < args.epochs
        and args.class_balance != "cb"
        and not args.eval_every
    )


def has_own_stage_one(args: Namespace) -> bool:
    """Whether --method differs from plain training with --loss in stage one already."""
    method = METHODS.get(args.method)
    if method is None:
        return False
    from_start = method.criterion is not None or method.sampling != "instance"
    return method.held_out or (method.from_start and from_start)


def stage_one_words(args: Namespace, words: Sequence[str]) -> list[str]:
    """The words that train stage one, the same for all runs that share it."""
    if not has_own_stage_one(args):
        words = _without(words, "--method")
    plain = ["--class-balance", "none", "--optimizer", "sgd", "--loss", args.loss]
    return [*_without(words, "--output-dir"), *plain, "--stop-epoch", str(args.stage_two)]


def _without(words: Sequence[str], option: str) -> list[str]:
    if option not in words:
        return list(words)
    at = words.index(option)
    return [*words[:at], *words[at + 2 :]]


def stage_one(args: Namespace, words: Sequence[str], shared: Path) -> Path:
    """The checkpoint of stage one, trained or trained on if it is not finished."""
    words = stage_one_words(args, words)
    of = train.parse([*words, "--output-dir", "-"])
    directory = shared / key_of(of)
    path = directory / "checkpoint.pt"
    if not path.exists() or checkpoint.load(path)["epoch"] < of.stage_two:
        print(f"stage one, {of.stage_two} epochs: {directory}", flush=True)
        train.main([*words, "--output-dir", str(directory), "--resume"])
    return path


def key_of(args: Namespace) -> str:
    """A name for all that the numbers of a stage one depend on."""
    free = options.may_differ_after_stage_one(args, options.config_of(args))
    own = None
    if has_own_stage_one(args):
        method = METHODS[args.method]
        own = "held out" if method.held_out else [args.method, args.tau]
    config = {k: v for k, v in options.config_of(args).items() if k not in free}
    text = json.dumps(report.jsonable([config, own]), sort_keys=True)
    name = str(args.data).replace("/", "_")[-24:]
    return f"{name}-{args.loss}-seed{args.seed}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
