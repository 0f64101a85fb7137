"""The paper's settings by name. Run this file to see each as a command.

CIFAR: ResNet-32, 200 epochs, batches of 128, lr 0.1 with 5 epochs of warm-up and ÷100 at epochs 160
and 180, momentum 0.9, weight decay 2e-4 (the released code's default, and LDAM-DRW's). λ is ∞ for
160 epochs; then 5, as in the released example for CIFAR-10. Class-balanced weights too begin at
epoch 160, as in the released examples (--CB_shots 160); --class-balance cb has them from the start.
λ, lr and weight decay are to be chosen with --validate for every method alike; these are where to
begin.

Noisy labels: as the released code: 120 epochs, lr 0.01 and ÷10 at epochs 40 and 80, weight decay
5e-3, λ = −1 from epoch 80; its scripts set these differently from case to case.

ImageNet-LT, Places-LT, iNaturalist 2018, COVID-LT, IMDB: see README.md.

Not the paper's: …-absgd-ess, the same with λ found so that 0.8 of each batch is effective.
"""

from __future__ import annotations

import shlex
from typing import Any

Setting = dict[str, Any]

LOSSES: dict[str, Setting] = {
    "ce": {"loss": "ce"},
    "focal": {"loss": "focal"},
    "cb-ce": {"loss": "ce", "class_balance": "drw"},
    "cb-focal": {"loss": "focal", "class_balance": "drw"},
    "cb-ldam": {"loss": "ldam", "class_balance": "drw"},
}

NOISY: Setting = {
    "imbalance": "none", "epochs": 120, "lr": 0.01, "weight_decay": 5e-3, "stage_two": 80,
    "lr_milestones": [40, 80], "lr_factor": 0.1, "warmup_epochs": 0, "lam": -1.0,
}  # fmt: skip

# Common to all listed images, unless said otherwise.
FILES: Setting = {"lr_schedule": "cosine", "warmup_epochs": 0, "weight_decay": 5e-4,
                  "batch_size": 512, "colour_jitter": 0.4}  # fmt: skip
IMAGENET: Setting = {**FILES, "data": "imagenet-lt", "arch": "resnet50", "lr": 0.2}
PLACES: Setting = {**FILES, "data": "places-lt", "arch": "resnet152", "pretrained": "imagenet",
                   "lr": 0.01}  # fmt: skip
LAST = ["layer4", "fc"]  # the last block and the classifier

IMAGES: dict[str, Setting] = {
    "imagenet-lt-a": {**IMAGENET, "epochs": 90, "stage_two": 60, "lam": 1.0},
    "imagenet-lt-b": {**IMAGENET, "epochs": 180, "stage_two": 90, "stage_two_layers": ["fc"],
                      "lam": 5.0},
    "places-lt-a": {**PLACES, "epochs": 30, "stage_two": 0, "lam": 1.0},
    "places-lt-b": {**PLACES, "epochs": 120, "stage_two": 90, "layers": LAST,
                    "stage_two_layers": ["fc"], "lam": 5.0},
    **{
        f"inaturalist-{arch}": {
            **FILES, "data": "inaturalist", "arch": arch, "pretrained": "imagenet", "lr": 0.2,
            "weight_decay": 1e-4, "colour_jitter": 0.0, "epochs": 230, "stage_two": 200,
            "stage_two_layers": LAST, "lam": 10.0,
        }
        for arch in ("resnet50", "resnet152")
    },
    **{
        f"covid-lt-{ratio}": {
            **FILES, "data": f"covid-lt-{ratio}", "arch": "resnet50", "pretrained": "imagenet",
            "layers": LAST, "batch_size": 256, "epochs": 90, "stage_two": 60, "lr": 0.1,
            "lr_schedule": "step", "lr_milestones": [30, 60], "lr_factor": 0.01, "lam": 5.0,
        }
        for ratio in (100, 10)
    },
    # As the released example, but for its gradient clipping, gamma and alpha.
    "clothing1m": {**FILES, "data": "clothing1m", "arch": "resnet50", "pretrained": "imagenet",
                   "batch_size": 128, "lr": 0.005, "weight_decay": 1e-3, "epochs": 10,
                   "lr_schedule": "step", "lr_milestones": [5], "lr_factor": 0.1, "stage_two": 5,
                   "lam": -5.0},
}  # fmt: skip

# IMDB: 90 epochs, SGD for 60, then ABSGD; lr 0.01, ÷100 at 30 and ÷10,000 at 60.
IMDB: Setting = {
    "data": "imdb", "keep": ["neg:0.1"], "epochs": 90, "stage_two": 60, "lr": 0.01,
    "lr_milestones": [30, 60], "lr_factor": 0.01, "warmup_epochs": 0, "lam": 5.0,
}  # fmt: skip

# Each review once: a stream in ten parts, ABSGD from its second half on. The method does not know
# the class counts.
ONLINE: Setting = {
    **IMDB, "online": True, "epochs": 10, "stage_two": 5, "lr": 0.1, "lr_milestones": [],
}  # fmt: skip

# A setting in which a CPU trains several seeds: a smaller network, fewer epochs and, for these, a
# larger lr.
SMALL_IMDB: Setting = {
    **IMDB, "epochs": 12, "stage_two": 8, "lr": 0.5, "lr_milestones": [8], "lr_factor": 0.1,
    "batch_size": 32, "max_length": 200, "embedding": 32, "hidden": 32,
}  # fmt: skip


def _cifar() -> dict[str, Setting]:
    return {
        f"{data}-{short}-{ratio}-{optimizer}-{loss}": {
            "data": data,
            "imbalance": kind,
            "imbalance_ratio": float(ratio),
            "optimizer": optimizer,
            **settings,
        }
        for data in ("cifar10", "cifar100")
        for short, kind in (("lt", "lt"), ("st", "step"))
        for ratio in (100, 10)
        for loss, settings in LOSSES.items()
        for optimizer in ("sgd", "absgd")
    }


def _figure_3() -> dict[str, Setting]:
    found = {}
    for data in ("cifar10", "cifar100"):
        curve = {**_cifar()[f"{data}-lt-100-absgd-ce"], "eval_every": 1, "eval_split": "test"}
        found |= {
            f"figure3-{data}-beta-0": {**curve, "momentum": 0.0},
            f"figure3-{data}-beta-0.9": {**curve, "momentum": 0.9},
            f"figure3-{data}-lam-two-stages": curve,
            f"figure3-{data}-lam-fixed": {**curve, "lam_start": 5.0, "lam": 5.0},
        }
    return found


def _noise() -> dict[str, Setting]:
    return {
        f"{data}-{kind}-{rate}-{optimizer}": {
            **NOISY,
            "data": data,
            "label_noise": f"{kind}:{rate}",
            "optimizer": optimizer,
        }
        for data in ("cifar10", "cifar100")
        for kind in ("sym", "asym")
        for rate in (0.2, 0.4)
        for optimizer in ("sgd", "absgd")
    }


def _images() -> dict[str, Setting]:
    return {
        f"{name}-{optimizer}": {**setting, "optimizer": optimizer}
        for name, setting in IMAGES.items()
        for optimizer in ("sgd", "absgd")
    }


def _imdb() -> dict[str, Setting]:
    return {
        f"imdb-{prefix}{optimizer}-{loss}": {**setting, "optimizer": optimizer, "loss": loss}
        for prefix, setting in (("", IMDB), ("online-", ONLINE), ("small-", SMALL_IMDB))
        for optimizer in ("sgd", "absgd")
        for loss in ("ce", "focal")
    }


def _found_lam() -> dict[str, Setting]:
    return {
        name.replace("-absgd", "-absgd-ess"): {**settings, "lam": f"ess:0.8{noisy}:rate=1"}
        for some, noisy in ((_cifar(), ""), (_noise(), ":noisy"))
        for name, settings in some.items()
        if settings["optimizer"] == "absgd"
    }


PRESETS: dict[str, Setting] = {
    **_cifar(), **_figure_3(), **_noise(), **_images(), **_imdb(), **_found_lam()
}  # fmt: skip


def flags(settings: Setting) -> list[str]:
    """The settings as command-line options."""
    words = []
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] if value else []
        elif value is not None:
            words += [option, *map(str, value if isinstance(value, list) else [value])]
    return words


def command(name: str) -> str:
    words = ["--preset", name, "--output-dir", f"runs/{name}"]
    return "python recipes/train.py " + shlex.join(words)


if __name__ == "__main__":
    for name in PRESETS:
        print(command(name))
