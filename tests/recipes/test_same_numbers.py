"""Same seeds, same numbers: what 0.1's cifar_lt.py logged, with 0.1's package, on these images."""

import numpy as np
import pytest
from PIL import Image

import train
from runs import records_of

COMMON = [
    "--imbalance", "lt", "--imbalance-ratio", "4", "--arch", "resnet8", "--epochs", "4",
    "--stage-two", "2", "--lr-milestones", "3", "--lr-factor", "0.1", "--warmup-epochs", "1",
    "--batch-size", "6", "--lr", "0.02", "--lam", "1", "--device", "cpu",
]  # fmt: skip

# Of each epoch: loss, weighted loss, effective share.
LOGGED = {
    ("ce", "none"): [
        (1.113440, 1.113440, 1), (0.526053, 0.526053, 1),
        (0.264180, 0.328464, 0.942697), (0.103843, 0.118752, 0.986729),
    ],
    ("focal", "drw"): [
        (0.820019, 0.820019, 1), (0.300243, 0.300243, 1),
        (0.123914, 0.159345, 0.966856), (0.037102, 0.042632, 0.995213),
    ],
}  # fmt: skip


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 12), ("test", 4)):
        for c in range(3):
            folder = tmp_path / "data" / part / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 180, (16, 16, 3))
                pixels[:, :, c] += 70
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    return tmp_path / "data"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(("loss", "balance"), LOGGED)
def test_the_numbers_of_the_first_recipes(images, tmp_path, loss, balance):
    train.main(["--data", "cifar10", *COMMON, "--loss", loss, "--class-balance", balance,
                "--data-dir", str(images), "--output-dir", str(tmp_path / "run")])  # fmt: skip
    records = records_of(tmp_path / "run")
    found = [(r["loss"], r["weighted_loss"], r["ess"]) for r in records]
    # To the last bit where it was written down; elsewhere floats are added in another order.
    np.testing.assert_allclose(found, LOGGED[loss, balance], rtol=1e-4)
