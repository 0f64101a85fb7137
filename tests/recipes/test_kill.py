"""kill −9 at random moments, each kind of data: the resumed run ends with the bits of a whole one.

ABSGD_KILLS=20 kills twenty times a kind; by default it is two.
"""

import os
import random
import signal
import time

import numpy as np
import pytest
from PIL import Image

import train
from engine import checkpoint
from runs import assert_same_run

pytestmark = pytest.mark.usefixtures("no_pictures")

KILLS = int(os.environ.get("ABSGD_KILLS", "2"))
COMMON = ["--epochs", "4", "--stage-two", "2", "--lr-milestones", "2", "--warmup-epochs", "1",
          "--lr", "0.05", "--lam", "1", "--checkpoint-every", "1", "--device", "cpu",
          "--keep-going"]  # fmt: skip


def images(root):
    rng = np.random.default_rng(0)
    for part, counts in (("train", (12, 4)), ("val", (3, 3))):
        for c, n in enumerate(counts):
            (root / part / f"c{c}").mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (36, 40, 3)).astype(np.uint8) + 100 * c
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / f"c{c}" / f"{i}.jpg")
    return ["--data", str(root), "--arch", "resnet8", "--image-size", "24", "--batch-size", "4"]


def image_list(root):
    images(root)
    for part, counts in (("train", (12, 4)), ("val", (3, 3))):
        lines = [f"{part}/c{c}/{i}.jpg {c}" for c, n in enumerate(counts) for i in range(n)]
        (root / f"{part}.txt").write_text("\n".join(lines))
    return ["--data", str(root / "train.txt"), "--test", str(root / "val.txt"), "--arch", "resnet8",
            "--image-size", "24", "--batch-size", "4"]  # fmt: skip


def digits(root):
    return ["--data", "digits", "--imbalance", "lt", "--imbalance-ratio", "10"]


def table(root):
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f},{y:.3f},{'ab'[int(x > 0.8)]}" for x, y in rng.normal(size=(80, 2))]
    (root / "t.csv").write_text("\n".join(["x,y,class", *rows]))
    return ["--data", str(root / "t.csv"), "--target", "class", "--validate", "0.2",
            "--batch-size", "8"]  # fmt: skip


def texts(root):
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for word, n in (("good", 24), ("bad", 8)):
            (root / part / word).mkdir(parents=True)
            for i in range(n):
                some = rng.choice(["film", "the", word], int(rng.integers(1, 9)))
                (root / part / word / f"{i}.txt").write_text(" ".join(some))
    return ["--data", str(root), "--hidden", "4", "--embedding", "4", "--batch-size", "8"]


def progress(directory):
    """(epoch, batch) of the checkpoint; it is whole whenever it is there."""
    path = directory / "checkpoint.pt"
    if not path.exists():
        return (0, 0)
    state = checkpoint.load(path)
    return state["epoch"], state["batch"]


@pytest.mark.parametrize("kind", [images, image_list, digits, table, texts])
def test_killed_at_random_moments(kind, tmp_path, recipe):
    """Some while training, at a batch drawn at random; some before it begins."""
    (tmp_path / "data").mkdir()
    words = [*kind(tmp_path / "data"), *COMMON]
    train.main([*words, "--output-dir", str(tmp_path / "whole")])
    rng = random.Random(kind.__name__)
    killed = tmp_path / "killed"
    moments = sorted((rng.randrange(4), rng.randrange(4)) for _ in range(KILLS))
    kills = 0
    for moment in moments:
        process = recipe("train.py", *words, "--output-dir", str(killed), "--resume")
        while process.poll() is None and progress(killed) < moment:
            pass
        time.sleep(rng.uniform(0, 0.05))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= min(KILLS, 1)
    train.main([*words, "--output-dir", str(killed), "--resume"])
    assert_same_run(killed, tmp_path / "whole")
