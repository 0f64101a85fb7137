"""The paper's settings by name. Run this file to see each as a command.

CIFAR (Tables 1 and 2, Figure 3): ResNet-32, 200 epochs, batches of 128, lr 0.1 with 5 epochs of
warm-up and ÷100 at epochs 160 and 180, momentum 0.9, weight decay 2e-4 (the released code's
default, and LDAM-DRW's). λ is ∞ for 160 epochs; then 5, as in the released example for CIFAR-10.
Class-balanced weights too begin at epoch 160, as in the released examples (--CB_shots 160);
--class-balance cb has them from the start. λ, lr and weight decay are to be chosen with --validate
for every method alike; these are where to begin.

Noisy labels: as the released code: 120 epochs, lr 0.01 and ÷10 at epochs 40 and 80, weight decay
5e-3, λ = −1 from epoch 80; its scripts set these differently from case to case.

Not the paper's: …-absgd-ess, the same with λ found so that 0.8 of each batch is effective.
"""

from __future__ import annotations

import shlex
from typing import Any

LOSSES: dict[str, dict[str, Any]] = {
    "ce": {"loss": "ce"},
    "focal": {"loss": "focal"},
    "cb-ce": {"loss": "ce", "class_balance": "drw"},
    "cb-focal": {"loss": "focal", "class_balance": "drw"},
    "cb-ldam": {"loss": "ldam", "class_balance": "drw"},
}

NOISY: dict[str, Any] = {
    "imbalance": "none", "epochs": 120, "lr": 0.01, "weight_decay": 5e-3, "stage_two": 80,
    "lr_milestones": [40, 80], "lr_factor": 0.1, "warmup_epochs": 0, "lam": -1.0,
}  # fmt: skip


def _tables() -> dict[str, dict[str, Any]]:
    return {
        f"{dataset}-{short}-{ratio}-{optimizer}-{loss}": {
            "dataset": dataset,
            "imbalance": kind,
            "imbalance_ratio": float(ratio),
            "optimizer": optimizer,
            **settings,
        }
        for dataset in ("cifar10", "cifar100")
        for short, kind in (("lt", "lt"), ("st", "step"))
        for ratio in (100, 10)
        for loss, settings in LOSSES.items()
        for optimizer in ("sgd", "absgd")
    }


def _figure_3() -> dict[str, dict[str, Any]]:
    curve = {**_tables()["cifar10-lt-100-absgd-ce"], "eval_every": 1, "eval_split": "test"}
    return {
        "figure3-beta-0": {**curve, "momentum": 0.0},
        "figure3-beta-0.9": {**curve, "momentum": 0.9},
        "figure3-lam-damped": curve,
        "figure3-lam-fixed": {**curve, "lam_start": 5.0, "lam": 5.0},
    }


def _noise() -> dict[str, dict[str, Any]]:
    return {
        f"{dataset}-{kind}-{rate}-{optimizer}": {
            **NOISY,
            "dataset": dataset,
            "label_noise": f"{kind}:{rate}",
            "optimizer": optimizer,
        }
        for dataset in ("cifar10", "cifar100")
        for kind in ("sym", "asym")
        for rate in (0.2, 0.4)
        for optimizer in ("sgd", "absgd")
    }


def _found_lam() -> dict[str, dict[str, Any]]:
    return {
        name.replace("-absgd", "-absgd-ess"): {**settings, "lam": f"ess:0.8{noisy}:rate=1"}
        for presets, noisy in ((_tables(), ""), (_noise(), ":noisy"))
        for name, settings in presets.items()
        if settings["optimizer"] == "absgd"
    }


PRESETS: dict[str, dict[str, Any]] = {**_tables(), **_figure_3(), **_noise(), **_found_lam()}


def flags(settings: dict[str, Any]) -> list[str]:
    """The settings as command-line options."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def command(name: str) -> str:
    words = ["--output-dir", f"runs/{name}", *flags(PRESETS[name])]
    return "python recipes/cifar_lt.py " + shlex.join(words)


if __name__ == "__main__":
    for name in PRESETS:
        print(command(name))
