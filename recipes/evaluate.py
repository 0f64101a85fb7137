"""Computes the accuracies of a run again, from its checkpoint.

    python recipes/evaluate.py runs/places-b/checkpoint.pt --data-dir places365_standard

Prints a table of all classes, writes confusion.png and evaluation.json beside the checkpoint, and
says whether the run's results.json holds the same numbers: if not, the exit status is 1. The
options are read from the checkpoint; --data-dir, --lists-dir, --device and --workers may be given
as to train.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import confusion_matrix
from torch import Tensor

import train
from engine import checkpoint, loop, options, report
from engine.run import Run

SUMMARY = ("overall", "balanced", "many", "medium", "few")


def restore(path: Path, words: Sequence[str]) -> tuple[Run, dict[str, Any]]:
    """(the run with the checkpoint's network, the checkpoint).

    Args:
        words: further options of train.py; those that its numbers depend on are the checkpoint's.
    """
    state = checkpoint.load(path)
    config = dict(state["config"])
    config.setdefault("data", config.pop("dataset", None))  # as it was called before
    args = train.parse(["--data", config["data"], "--output-dir", str(path.parent), *words])
    own = options.config_of(args)  # neither where to write, nor to fetch anything
    vars(args).update({name: value for name, value in config.items() if name in own})
    args.test = args.test and Path(args.test)
    args.pretrained = "none"  # the checkpoint has its own
    model, task, changes = train.build(args)
    run = Run(args, model, task, changes)
    run.epoch, run.batch = state["epoch"], state["batch"]
    if (run.epoch, run.batch) > (args.stage_two, 0):
        run.enter_stage_two()
    run.model.load_state_dict(state["model"])
    if run.epoch == args.epochs:
        run.changes.finish(run)
    return run, state


def table(metrics: dict[str, Any], training: Sequence[int], test: Sequence[int],
          classes: Sequence[str]) -> str:  # fmt: skip
    """A row a class, the class with the most training images first."""
    order = sorted(range(len(classes)), key=lambda c: -training[c])
    rows = [
        [classes[c], str(training[c]), str(test[c]), report.mean_std([metrics["per_class"][c]])]
        for c in order
    ]
    return report.markdown(["class", "training", "evaluated", "accuracy (%)"], rows)


def confusion(
    targets: Tensor, predictions: Tensor, training: Sequence[int], limit: int = 250
) -> tuple[list[np.ndarray], np.ndarray]:
    """(groups, percent): rows are true and columns predicted groups of classes, in per cent of the
    row's samples. A group is a class, the largest first; of more than ``limit``, several of like
    size."""
    order = np.argsort(-np.asarray(training), kind="stable")
    groups = np.array_split(order, min(len(order), limit))
    group_of = np.empty(len(order), dtype=int)
    for g, members in enumerate(groups):
        group_of[members] = g
    counts = confusion_matrix(
        group_of[targets.numpy()], group_of[predictions.numpy()], labels=range(len(groups))
    )
    return groups, 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def plot_confusion(
    groups: Sequence[np.ndarray], percent: np.ndarray, classes: Sequence[str], split: str,
    path: Path,
) -> None:  # fmt: skip
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    image = axes.imshow(percent, vmin=0, vmax=100, cmap="Blues", interpolation="nearest")
    figure.colorbar(image, label="% of the true class")
    kind = "class" if len(groups) == len(classes) else f"groups of {len(groups[0])} classes"
    axes.set(xlabel=f"predicted {kind}, most training samples first", ylabel=f"true {kind}",
             title=f"{split} split")  # fmt: skip
    if len(classes) <= 20:
        names = [classes[c].replace("$", r"\$") for (c,) in groups]  # $ begins mathematics
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        for (row, column), value in np.ndenumerate(percent):
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize="small",
                      color="white" if value > 50 else "black")  # fmt: skip
    report.save(figure, path)


def disagreements(metrics: dict[str, Any], results: dict[str, Any]) -> list[str]:
    """Where the numbers differ from those of results.json."""
    theirs = results["metrics"]
    found = [
        f"{name}: {metrics[name]} here, {theirs[name]} there"
        for name in SUMMARY
        if metrics[name] != theirs[name]
    ]
    classes = [c for c, a in enumerate(metrics["per_class"]) if a != theirs["per_class"][c]]
    return found + ([f"per class: {', '.join(map(str, classes))}"] if classes else [])


def evaluate(path: Path, split: str | None, directory: Path, words: Sequence[str]) -> list[str]:
    """Prints and writes what the module says; returns the disagreements with results.json."""
    run, state = restore(path, words)
    split = split or run.task.judged_by
    if split not in ("train", run.task.judged_by):
        raise ValueError(f"this run is judged by its {run.task.judged_by} split, not by {split}")
    logits, targets = loop.predict(run, split)
    predictions = logits.argmax(1)
    training = run.task.class_counts
    metrics = report.metrics(targets, predictions, report.groups_by_shots(training))
    classes = list(map(str, run.task.classes))
    evaluated = targets.bincount(minlength=len(training)).tolist()
    print(table(metrics, training, evaluated, classes))
    print(f"\n{path}, after {state['epoch']} epochs: {split} {report.line(metrics)}")

    groups, percent = confusion(targets, predictions, training)
    plot_confusion(groups, percent, classes, split, directory / "confusion.png")
    record = {"checkpoint": path.name, "epoch": state["epoch"], "split": split, "metrics": metrics}
    report.write_json(directory / "evaluation.json", record)

    results = path.parent / "results.json"
    if not results.exists():
        return []
    reported = json.loads(results.read_text())
    if reported["split"] != split:
        return []
    differ = disagreements(metrics, reported)
    print(f"{results}: " + ("; ".join(differ) if differ else "the same numbers"))
    return differ


def main(argv: Sequence[str] | None = None) -> list[str]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--split", choices=("validation", "test", "train"),
                        help="default: the one that the run reports on")  # fmt: skip
    parser.add_argument("--output-dir", type=Path, help="default: the checkpoint's folder")
    args, words = parser.parse_known_args(argv)
    if not args.checkpoint.is_file():
        parser.error(f"no such checkpoint: {args.checkpoint}")
    directory = args.output_dir or args.checkpoint.parent
    directory.mkdir(parents=True, exist_ok=True)
    return evaluate(args.checkpoint, args.split, directory, words)


if __name__ == "__main__":
    try:
        sys.exit(1 if main() else 0)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
