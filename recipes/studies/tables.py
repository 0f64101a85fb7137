"""What each table and figure of the paper is made of: runs of train.py, and published numbers.

The paper: Qi, Xu, Yin, Jin, Yang: Attentional-Biased Stochastic Gradient Descent, arXiv 2012.06951.
Tables 1 and 2 (CIFAR) and 5 (IMDB) are numbered as there; how the others are numbered is ours.
A published number is here only with a public page that lists it; what cannot be cited is blank.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import presets
import torch_absgd as ta
from data import assemble_covid_lt
from presets import LOSSES

CAO = "Cao et al. 2019, arxiv.org/abs/1906.07413, Table 2 (printed as errors)"
KINI = "LDAM-DRW of Cao et al. 2019, as listed by Kini et al. 2021, arxiv.org/abs/2103.01458"
LISTED = "ABSGD, as listed at wizwand.com/paper/68fa5a7e1e209131ce9c049a"

Words = list[str]


@dataclass(frozen=True)
class Cell:
    """One number: a row and a column of a table, the run behind it, and what was published.

    samples: training samples of an epoch. needs: the set it is on, as --data names it.
    """

    row: str
    column: str
    words: Words
    samples: int
    needs: str
    published: tuple[float, str] | None = None

    def directory(self, seed: int) -> Path:
        """Within a folder of runs; the same for one run in two tables."""
        name = "_".join(w.removeprefix("--") for w in self.words if w != "--preset")
        return Path(name) / f"seed{seed}"


COUNTS = {"lt": ta.long_tailed_counts, "st": ta.step_counts}


def cifar_samples(data: str, kind: str, ratio: int) -> int:
    num_classes = {"cifar10": 10, "cifar100": 100}[data]
    return sum(COUNTS[kind](50_000 // num_classes, num_classes, ratio))


NAMES = {"ce": "CE", "focal": "Focal", "cb-ce": "CB-CE", "cb-focal": "CB-Focal",
         "cb-ldam": "CB-LDAM"}  # fmt: skip
SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
KINDS = {"lt": "LT", "st": "ST"}

PUBLISHED = {
    ("CE, SGD", "CIFAR-10-LT 100"): (70.36, CAO),
    ("CB-LDAM, SGD", "CIFAR-10-LT 100"): (77.03, KINI),
    ("CB-LDAM, SGD", "CIFAR-10-ST 100"): (76.92, KINI),
    ("CB-LDAM, SGD", "CIFAR-100-LT 100"): (42.04, KINI),
    ("CB-LDAM, SGD", "CIFAR-100-ST 100"): (45.36, KINI),
}

# Published without saying of which row.
REMARKS = {
    "table1": f"CIFAR-100-LT: ρ = 100 45.89, ρ = 10 61.12; the loss is not said ({LISTED})",
    "table6": f"iNaturalist 2018: 73.1; the network is not said ({LISTED})",
    "table9": f"Clothing1M: 69.93 ({LISTED})",
}


def cifar(losses: list[str], optimizers: list[str], kinds: list[str]) -> Iterator[Cell]:
    for data in SETS:
        for kind in kinds:
            for ratio in (100, 10):
                column = f"{SETS[data]}-{KINDS[kind]} {ratio}"
                for loss in losses:
                    for optimizer in optimizers:
                        row = f"{NAMES[loss]}, {optimizer.upper()}"
                        base = "sgd" if optimizer == "meta" else optimizer
                        words = ["--preset", f"{data}-{kind}-{ratio}-{base}-{loss}"]
                        words += ["--method", "meta", *presets.flags(LOSSES[loss])] * (
                            optimizer == "meta"
                        )
                        samples = cifar_samples(data, kind, ratio)
                        yield Cell(row, column, words, samples, data, PUBLISHED.get((row, column)))


def on_images(samples: int, settings: dict[str, str]) -> Iterator[Cell]:
    """``settings``: of presets.IMAGES, and the column that each is."""
    for preset, column in settings.items():
        needs = str(presets.IMAGES[preset]["data"])
        for optimizer in ("sgd", "absgd"):
            words = ["--preset", f"{preset}-{optimizer}"]
            yield Cell(optimizer.upper(), column, words, samples, needs)


def covid_samples(ratio: float) -> int:
    return sum(assemble_covid_lt.class_counts(ratio, assemble_covid_lt.RAREST))


def imdb() -> Iterator[Cell]:
    """ "Online" as the paper has it: the method does not know the class counts."""
    for prefix, column in (("", "offline"), ("online-", "online")):
        for loss in ("ce", "focal"):
            for optimizer in ("sgd", "absgd"):
                words = ["--preset", f"imdb-{prefix}{optimizer}-{loss}"]
                samples = 13_749 if not prefix else 1_375
                yield Cell(f"{NAMES[loss]}, {optimizer.upper()}", column, words, samples, "imdb")


def noisy() -> Iterator[Cell]:
    for data in SETS:
        for kind in ("sym", "asym"):
            for rate in (0.2, 0.4):
                for optimizer in ("sgd", "absgd"):
                    words = ["--preset", f"{data}-{kind}-{rate}-{optimizer}"]
                    column = f"{SETS[data]}, {kind} {rate}"
                    yield Cell(optimizer.upper(), column, words, 50_000, data)


TABLES: dict[str, tuple[str, list[Cell]]] = {
    "table1": ("long-tailed and step-imbalanced CIFAR",
               list(cifar(list(LOSSES), ["sgd", "absgd"], ["lt", "st"]))),
    "table2": ("ABSGD and META on imbalanced CIFAR",
               list(cifar(["cb-ce", "cb-focal", "cb-ldam"], ["sgd", "meta", "absgd"],
                          ["lt", "st"]))),
    "table3": ("ImageNet-LT, settings A and B",
               list(on_images(115_846, {"imagenet-lt-a": "A", "imagenet-lt-b": "B"}))),
    "table4": ("Places-LT, settings A and B",
               list(on_images(62_500, {"places-lt-a": "A", "places-lt-b": "B"}))),
    "table5": ("IMDB with a tenth of the negative reviews", list(imdb())),
    "table6": ("iNaturalist 2018",
               list(on_images(437_513, {"inaturalist-resnet50": "ResNet-50",
                                            "inaturalist-resnet152": "ResNet-152"}))),
    "table7": ("COVID-LT",
               [*on_images(covid_samples(100), {"covid-lt-100": "ρ = 100"}),
                *on_images(covid_samples(10), {"covid-lt-10": "ρ = 10"})]),
    "table8": ("noisy labels, CIFAR", list(noisy())),
    "table9": ("noisy labels, Clothing1M",
               list(on_images(1_000_000, {"clothing1m": "ResNet-50"}))),
}  # fmt: skip


def figure_3() -> list[Cell]:
    """β, and λ in two stages or fixed: test accuracy by epoch."""
    rows = {"beta-0": "β = 0", "beta-0.9": "β = 0.9", "lam-two-stages": "λ in two stages",
            "lam-fixed": "λ = 5 throughout"}  # fmt: skip
    return [
        Cell(row, SETS[data], ["--preset", f"figure3-{data}-{name}"],
             cifar_samples(data, "lt", 100), data)
        for data in SETS
        for name, row in rows.items()
    ]  # fmt: skip


def figure_4() -> list[Cell]:
    """Accuracy on the training and the test set by epoch, λ = 1 throughout beside two stages."""
    curve = ["--eval-every", "1", "--eval-split", "test", "--eval-train"]
    ways = {
        "SGD": ["--optimizer", "sgd"],
        "λ = 1 from stage two on": ["--lam", "1"],
        "λ = 1 throughout": ["--lam", "1", "--lam-start", "1"],
    }
    return [
        Cell(row, SETS[data], ["--preset", f"{data}-lt-100-absgd-ce", *curve, *words],
             cifar_samples(data, "lt", 100), data)
        for data in SETS
        for row, words in ways.items()
    ]  # fmt: skip


FIGURES = {
    "figure3": ("momentum and λ", figure_3()),
    "figure4": ("training and test accuracy", figure_4()),
}

# --small: what two cores do in minutes. It shows that a table comes out, and nothing else.
SMALL_CIFAR = shlex.split(
    "--arch resnet8 --shrink 2 --limit 100 --batch-size 32 --epochs 4 --stage-two 3 "
    "--lr-milestones 3 --warmup-epochs 1"
)
SMALL_IMAGES = shlex.split(
    "--arch resnet18 --pretrained none --image-size 32 --limit 20 --batch-size 32 --epochs 2 "
    "--stage-two 1 --warmup-epochs 0"
)
SMALL_TEXTS = shlex.split(
    "--epochs 3 --stage-two 2 --lr-milestones 2 --lr 0.5 --lr-factor 0.1 --batch-size 32 "
    "--max-length 100 --embedding 16 --hidden 16 --limit 1000"
)


def small(cell: Cell) -> Words:
    words = {"cifar10": SMALL_CIFAR, "cifar100": SMALL_CIFAR, "imdb": SMALL_TEXTS}
    return [*cell.words, *words.get(cell.needs, SMALL_IMAGES)]
