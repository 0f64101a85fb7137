"""The paper's CIFAR-10-LT cell (ρ = 100, ResNet-32) from given stages one: stage two, many ways.

    cd recipes; python -m studies.cifar_cell --data … --stage-one … --work … [--only NAME …]

--stage-one holds cifar10-lt-100-seed{0,1}/checkpoint.pt, plain SGD for 160 epochs. Each run of RUNS
goes on for 12 epochs with the recipes' own loop, and is then judged: accuracy of every class on the
test set, and on CIFAR-10 training images that the long-tailed subset left out ("left out"; class 0
has none), with logit adjustment, τ-normalisation, or neither. Runs are made in the order of
PLAN.md; each resumes at the epoch where it was cut off, and one that is judged is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
import torch_absgd as ta
import train
from baselines.classifiers import adjust_logits
from data.memory import normalised
from data.named import load_cifar
from data.order import seed_of
from engine import checkpoint, loop, report
from studies import records

STAGE_TWO, EPOCHS = 160, 172
# As stage one was made; bfloat16 wants a processor with AVX-512 BF16.
FORM = ["--amp", "bf16", "--channels-last", "--compile", "--device", "cpu"]
SGD = ["--optimizer", "sgd"]
SNIPPET = ["--lam", "ess:0.8:rate=1", "--keep-loss"]
CB = ["--class-balance", "drw"]
OUTSIDE = [*CB, "--class-weights", "outside"]
METHODS: dict[str, list[str]] = {
    "SGD": SGD,
    "size 0.8, kept": SNIPPET,
    "size 0.5": ["--lam", "ess:0.5:rate=1"],
    "size 0.5, kept": ["--lam", "ess:0.5:rate=1", "--keep-loss"],
    "λ = 1": ["--lam", "1"],
    "λ = 5": ["--lam", "5"],
    "λ = 0.3, kept": ["--lam", "0.3", "--keep-loss"],
    "CB, SGD": [*SGD, *CB],
    "CB inside, λ = 5": [*CB, "--lam", "5"],
    "CB outside, size 0.8, kept": [*OUTSIDE, *SNIPPET],
    "CB outside, size 0.5, kept": [*OUTSIDE, "--lam", "ess:0.5:rate=1", "--keep-loss"],
    "cRT": ["--method", "crt"],
}
RANKED = [
    ("SGD", 0.01), ("size 0.8, kept", 0.01), ("SGD", 0.1), ("size 0.8, kept", 0.1),
    ("λ = 1", 0.01), ("size 0.5, kept", 0.1), ("CB, SGD", 0.1),
    ("CB outside, size 0.8, kept", 0.1), ("CB inside, λ = 5", 0.01), ("CB, SGD", 0.01),
    ("size 0.5", 0.01), ("λ = 5", 0.01), ("λ = 0.3, kept", 0.1),
    ("CB outside, size 0.5, kept", 0.1), ("CB inside, λ = 5", 0.1), ("cRT", 0.1),
]  # fmt: skip
ORDERED_ANEW = [("SGD", 0.1), ("size 0.8, kept", 0.1), ("SGD", 0.01), ("λ = 1", 0.01)]
# (method, lr factor, seed of stage one, draw of stage two's order): the first forty of PLAN.md.
RUNS = [(*way, seed, 0) for way in RANKED for seed in (0, 1)]
RUNS += [(*way, seed, 1) for way in ORDERED_ANEW for seed in (0, 1)]

TAUS = [0.25 * i for i in range(13)]  # of logit adjustment
POWERS = [0.25 * i for i in range(1, 9)]  # of τ-normalisation
LEFT_OUT_EACH = 500


def name_of(method: str, factor: float, seed: int, draw: int) -> str:
    words = method.replace(" = ", "").replace(",", "").replace(" ", "-")
    return f"{words}-x{factor:g}-seed{seed}" + f"-draw{draw}" * (draw > 0)


def words_of(method: str, factor: float, seed: int) -> list[str]:
    words = ["--preset", "cifar10-lt-100-absgd-ce", *FORM, "--seed", str(seed),
             "--lr-factor", str(factor), *METHODS[method]]  # fmt: skip
    if method == "cRT":  # its layer begins anew: the lr is not lowered
        words[words.index("--lr-factor") + 1] = "1"
    return words


def stage_two(args: argparse.Namespace, run: tuple[str, float, int, int]) -> dict[str, Any]:
    """Trains what is left of a run's stage two and judges it."""
    method, factor, seed, draw = run
    directory = args.work / name_of(*run)
    start = args.stage_one / f"cifar10-lt-100-seed{seed}" / "checkpoint.pt"
    words = words_of(method, factor, seed)
    options = train.parse([*words, "--data-dir", str(args.data), "--stage-one", str(start),
                           "--stop-epoch", str(EPOCHS), "--output-dir", str(directory),
                           "--resume", "--checkpoint-every", "25"])  # fmt: skip
    torch.manual_seed(seed)
    network, task, changes = train.build(options)
    if draw:
        task.batches.seed = seed_of(seed, draw)
    began = time.process_time()
    loop.fit(options, network, task, changes)
    network.load_state_dict(checkpoint.load(directory / "checkpoint.pt")["model"])
    made = judge(network, task.class_counts, args.data, seed)
    log = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return {
        "method": method, "factor": factor, "seed": seed, "draw": draw,
        "command": "train.py " + " ".join([*words, "--stop-epoch", str(EPOCHS)]),
        "class_counts": task.class_counts, "cpu_seconds": round(time.process_time() - began),
        "training_loss": [round(r["loss"], 4) for r in log if r["epoch"] >= STAGE_TWO], **made,
    }  # fmt: skip


@cache
def left_out(data: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Images and labels that the long-tailed subset of ``seed`` does not hold, as many of each
    class; none of class 0, which it holds whole."""
    images = load_cifar(data, "cifar10", True)
    rest = torch.ones(len(images), dtype=torch.bool)
    rest[torch.tensor(ta.ImbalancedSubset(images, "lt", 100, seed).indices)] = False
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    order = order[rest[order]]
    of_class = [order[images.targets[order] == c][:LEFT_OUT_EACH] for c in range(10)]
    chosen = torch.cat(of_class)
    return images.images[chosen], images.targets[chosen]


@torch.no_grad()
def features(network: nn.Module, images: Tensor) -> Tensor:
    network.eval()
    made = []
    for batch in images.split(500):
        x = normalised(batch).contiguous(memory_format=torch.channels_last)
        made.append(models.features(network, x))
    return torch.cat(made)


def judge(
    network: nn.Module, counts: Sequence[int], data: Path, seed: int
) -> dict[str, dict[str, list[list[float]]]]:
    """{split: {"adjusted": [τ][class], "normalised": [power][class]}}, accuracies in per cent."""
    test = load_cifar(data, "cifar10", False)
    splits = {"test": (test.images, test.targets), "left_out": left_out(data, seed)}
    return {
        split: after_training(features(network, x), network.fc, y, torch.tensor(counts))
        for split, (x, y) in splits.items()
    }


@torch.no_grad()
def after_training(
    x: Tensor, fc: nn.Linear, y: Tensor, counts: Tensor
) -> dict[str, list[list[float]]]:
    logits = x @ fc.weight.T + fc.bias
    length = fc.weight.norm(dim=1)
    return {
        "adjusted": [per_class(adjust_logits(logits, counts, tau), y) for tau in TAUS],
        "normalised": [per_class((logits - fc.bias) / length**power, y) for power in POWERS],
    }


def per_class(logits: Tensor, y: Tensor) -> list[float]:
    """The accuracy of each class, 0 for one that is not there."""
    right = torch.bincount(y[logits.argmax(1) == y], minlength=10)
    return [round(100 * float(a), 2) for a in right / torch.bincount(y, minlength=10).clamp(min=1)]


def gather(work: Path) -> list[dict[str, Any]]:
    """The judged runs in the order of RUNS."""
    files = [work / name_of(*run) / "judged.json" for run in RUNS]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stage-one", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/cifar_cell"))
    parser.add_argument("--only", nargs="+", help="runs by name")
    args = parser.parse_args()
    torch.set_num_threads(1)
    commit = records.commit()
    for run in RUNS:
        name = name_of(*run)
        file = args.work / name / "judged.json"
        if file.exists() or (args.only and name not in args.only):
            continue
        print(f"\n{time.strftime('%H:%M:%S')} {name}", flush=True)
        made = {**stage_two(args, run), "commit": commit, "torch": torch.__version__}
        report.write_json(file, made)
        overall = sum(made["test"]["adjusted"][0]) / 10
        print(f"{time.strftime('%H:%M:%S')} {name}: {overall:.2f}", flush=True)


if __name__ == "__main__":
    main()
