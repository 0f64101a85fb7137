"""Recipes under torchrun: several processes, of which one dies in the middle of an epoch."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
OPTIONS = [
    "--data", "cifar10", "--keep-going", "--arch", "resnet8", "--imbalance", "none",
    "--epochs", "4", "--stage-two", "2", "--lam", "1",
    "--lr", "0.02", "--warmup-epochs", "0", "--batch-size", "16", "--checkpoint-every", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of six noisy images for training and two for testing, in CIFAR-10's layout."""
    root = tmp_path_factory.mktemp("data")
    random = torch.Generator().manual_seed(0)
    centres = torch.randint(60, 190, (10, 3, 1, 1), generator=random)
    for part, n in (("train", 6), ("test", 2)):
        for c in range(10):
            folder = root / "cifar10" / part / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(n):
                noise = torch.randint(-60, 60, (3, 32, 32), generator=random)
                pixels = (centres[c] + noise).byte().permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def late_first_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on PYTHONPATH, has the first process start last after a restart.

    The second one must not take for the first one's address what the dead one left in the store.
    """
    folder = tmp_path_factory.mktemp("late")
    (folder / "sitecustomize.py").write_text(
        "import os, time\n"
        "if os.environ.get('RANK') == '0' and os.environ['TORCHELASTIC_RESTART_COUNT'] != '0':\n"
        "    time.sleep(2)\n"
    )
    return folder


def start(
    images: Path, output: Path, *options: str, path: str | None = None
) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "--max-restarts=1", "--monitor-interval=0.1", str(RECIPES / "train.py"),
        "--data-dir", str(images), "--output-dir", str(output), *OPTIONS, *options,
    ]  # fmt: skip
    paths = [p for p in (path, os.environ.get("PYTHONPATH")) if p]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it has printed at its end."""
    try:
        return process.communicate(timeout=240)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # and torchrun its workers
        raise AssertionError(f"does not end: {process.communicate()[0]}") from None


def workers(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def results(output: Path) -> dict[str, Any]:
    """What a run wrote: results, every line of its log, and its last parameters and log_s."""
    state = torch.load(output / "checkpoint.pt", weights_only=True)
    return {
        "results": json.loads((output / "results.json").read_text()),
        "log": (output / "log.jsonl").read_text(),
        "model": {name: t.tolist() for name, t in state["model"].items()},
        "log_s": float(state["optimizer"]["param_groups"][0]["log_s"]),
    }


def wait_until_in_mid_epoch(process: subprocess.Popen[str], output: Path) -> None:
    """Until there is a checkpoint of the second epoch or a later one, that is not of its end."""
    path, deadline = output / "checkpoint.pt", time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists():
            state = torch.load(path, weights_only=True)  # always whole: it is renamed into place
            if state["epoch"] >= 1 and state["batch"] > 0:
                return
        time.sleep(0.01)
    process.terminate()
    raise AssertionError(f"no checkpoint within an epoch: {process.communicate()[0]}")


@pytest.fixture(scope="module")
def calm(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    output = tmp_path_factory.mktemp("calm") / "run"
    process = start(images, output)
    printed = finish(process)
    assert process.returncode == 0, printed
    assert printed.count("epoch   0") == 1, printed  # one of the two prints
    return output


def test_a_worker_dies_and_nothing_is_lost(
    images: Path, calm: Path, tmp_path: Path, late_first_rank: Path
) -> None:
    hit = start(images, tmp_path / "hit", path=str(late_first_rank))
    wait_until_in_mid_epoch(hit, tmp_path / "hit")
    os.kill(workers(hit)[-1], signal.SIGKILL)
    output = finish(hit)
    assert hit.returncode == 0, output
    assert output.count("60 training samples") == 2, output  # it did start again

    ours, expected = results(tmp_path / "hit"), results(calm)
    assert [name for name in expected if ours[name] != expected[name]] == []


def test_all_are_killed_at_random_moments_and_resumed(
    images: Path, calm: Path, tmp_path: Path
) -> None:
    """ABSGD_KILLS=20 kills twenty times."""
    rng = random.Random(0)
    for _ in range(int(os.environ.get("ABSGD_KILLS", "1"))):
        process = start(images, tmp_path / "run", "--resume")
        before = mtime(tmp_path / "run")
        while process.poll() is None and mtime(tmp_path / "run") == before:
            time.sleep(0.01)  # importing torch takes long, and is of no interest
        time.sleep(rng.uniform(0, 1))
        victims = [process.pid, *workers(process)] if process.poll() is None else []
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        process.communicate()
    last = start(images, tmp_path / "run", "--resume")
    output = finish(last)
    assert last.returncode == 0, output
    ours, expected = results(tmp_path / "run"), results(calm)
    assert [name for name in expected if ours[name] != expected[name]] == []


def mtime(output: Path) -> float:
    path = output / "checkpoint.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


def test_two_processes_train_as_one(images: Path, tmp_path: Path) -> None:
    """On the same batches, up to the statistics that batch normalisation takes of each part."""
    two = start(images, tmp_path / "two", "--stop-epoch", "1")
    output = finish(two)
    assert two.returncode == 0, output
    command = [sys.executable, str(RECIPES / "train.py"), "--data-dir", str(images),
               "--output-dir", str(tmp_path / "one"), *OPTIONS, "--stop-epoch", "1"]  # fmt: skip
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
    logs = [
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])
        for name in ("two", "one")
    ]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=0.1)
    assert [w is None for w in logs[0]["class_weight"]] == [False] * 10
