"""Data for the examples, and the same training in numpy's float64 to hold their numbers against.

digits.py write digits.bin            scikit-learn's digits, long-tailed (class c keeps 2^(−c/2))
digits.py check digits.bin out.txt    out.txt: what the C example printed
digits.py check-rule digits.bin out.txt    the LibTorch example: λ by a rule, keep_loss
"""

from __future__ import annotations

import functools
import math
import sys
from pathlib import Path

import numpy as np

CLASSES, FEATURES, BATCH, EPOCHS = 10, 64, 32, 5
LR, MOMENTUM, WEIGHT_DECAY, LAM, GAMMA, SHARE = 0.1, 0.9, 1e-4, 2.0, 0.9, 0.8


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


def lam_of(losses: np.ndarray) -> float:
    """λ at which the share SHARE of the batch is effective, by bisection; ∞ for equal losses."""
    if np.ptp(losses) < 1e-9:
        return math.inf
    low, high = -20.0, 20.0  # of log λ
    for _ in range(100):
        e = np.exp((losses - losses.max()) / math.exp((low + high) / 2))
        is_low = e.sum() ** 2 / (len(e) * (e**2).sum()) < SHARE
        low, high = ((low + high) / 2, high) if is_low else (low, (low + high) / 2)
    return math.exp(low)


def weights_by_rule(losses: np.ndarray) -> tuple[np.ndarray, float]:
    """κp and s: λ by the rule, γ = 1, and the gradient's scale kept."""
    exp_losses = np.exp(losses / lam_of(losses))
    p = exp_losses / exp_losses.mean()
    return p * min(1.0, losses.sum() / (p * losses).sum()), float(exp_losses.mean())


def weights(losses: np.ndarray, s: float | None) -> tuple[np.ndarray, float]:
    """p and s, by Algorithm 1 as the paper prints it."""
    exp_losses = np.exp(losses / LAM)
    s = exp_losses.mean() if s is None else (1 - GAMMA) * s + GAMMA * exp_losses.mean()
    return exp_losses / s, s


def reference(x: np.ndarray, y: np.ndarray, by_rule: bool) -> list[tuple[float, float]]:
    """(log s, training accuracy) after each epoch, with s itself and not its logarithm."""
    w, v, s, rows = np.zeros((CLASSES, FEATURES)), None, None, []
    for _ in range(EPOCHS):
        for i in range(0, len(y) - BATCH + 1, BATCH):
            xb, yb = x[i : i + BATCH], y[i : i + BATCH]
            e = np.exp(xb @ w.T)
            probability = e / e.sum(1, keepdims=True)
            losses = -np.log(probability[np.arange(BATCH), yb])
            p, s = weights_by_rule(losses) if by_rule else weights(losses, s)
            gradient = ((probability - np.eye(CLASSES)[yb]) * (p / BATCH)[:, None]).T @ xb
            gradient += WEIGHT_DECAY * w
            v = gradient if v is None else MOMENTUM * v + gradient
            w = w - LR * v
        rows.append((float(np.log(s)), float(((x @ w.T).argmax(1) == y).mean())))
    return rows


def check(path: Path, output: Path, by_rule: bool = False) -> None:
    expected = reference(*read(path), by_rule)
    rows = [line.split() for line in output.read_text().splitlines()]
    printed = [(float(row[3]), float(row[5])) for row in rows]
    np.testing.assert_allclose(printed, expected, rtol=1e-5)
    assert expected[-1][1] > 0.9, expected  # it learns


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    check_rule = functools.partial(check, by_rule=True)
    commands = {"write": write, "check": check, "check-rule": check_rule}
    commands[command](*map(Path, paths))
