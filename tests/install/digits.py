"""Data for the examples, and the same training in numpy's float64 to hold their numbers against.

digits.py write digits.bin            scikit-learn's digits, long-tailed (class c keeps 2^(−c/2))
digits.py check digits.bin out.txt    out.txt: what an example printed
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

CLASSES, FEATURES, BATCH, EPOCHS = 10, 64, 32, 5
LR, MOMENTUM, WEIGHT_DECAY, LAM, GAMMA = 0.1, 0.9, 1e-4, 2.0, 0.9


def write(path: Path) -> None:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    kept = [np.flatnonzero(y == c)[: round(170 * 2 ** (-c / 2))] for c in range(CLASSES)]
    order = np.random.default_rng(0).permutation(np.concatenate(kept))
    x, y = (x[order] / 16).astype("f4"), y[order].astype("i8")
    path.write_bytes(np.int64(len(y)).tobytes() + x.tobytes() + y.tobytes())


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = path.read_bytes()
    n = int(np.frombuffer(data, "i8", 1)[0])
    x = np.frombuffer(data, "f4", n * FEATURES, 8).reshape(n, FEATURES).astype("f8")
    return x, np.frombuffer(data, "i8", n, 8 + x.size * 4)


def reference(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
    """(log s, training accuracy) after each epoch: Algorithm 1 as the paper prints it, s itself
    and not its logarithm."""
    w, v, s, rows = np.zeros((CLASSES, FEATURES)), None, None, []
    for _ in range(EPOCHS):
        for i in range(0, len(y) - BATCH + 1, BATCH):
            xb, yb = x[i : i + BATCH], y[i : i + BATCH]
            e = np.exp(xb @ w.T)
            probability = e / e.sum(1, keepdims=True)
            exp_losses = np.exp(-np.log(probability[np.arange(BATCH), yb]) / LAM)
            s = exp_losses.mean() if s is None else (1 - GAMMA) * s + GAMMA * exp_losses.mean()
            p = exp_losses / s
            gradient = ((probability - np.eye(CLASSES)[yb]) * (p / BATCH)[:, None]).T @ xb
            gradient += WEIGHT_DECAY * w
            v = gradient if v is None else MOMENTUM * v + gradient
            w = w - LR * v
        rows.append((float(np.log(s)), float(((x @ w.T).argmax(1) == y).mean())))
    return rows


def check(path: Path, output: Path) -> None:
    expected = reference(*read(path))
    rows = [line.split() for line in output.read_text().splitlines()]
    printed = [(float(row[3]), float(row[5])) for row in rows]
    np.testing.assert_allclose(printed, expected, rtol=1e-5)
    assert expected[-1][1] > 0.9, expected  # it learns


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    {"write": write, "check": check}[command](*map(Path, paths))
