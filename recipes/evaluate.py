"""Computes the accuracies of a run again, from its checkpoint.

    python recipes/evaluate.py runs/places-b --data-dir places365_standard

Prints a table of all classes, writes evaluation.json and, of up to 1,000 classes, confusion.png
beside the checkpoint, and says whether the run's results.json holds the same numbers: if not, the
exit status is 1. The options are read from the checkpoint; --data-dir, --lists-dir, --device and
--workers may be given as to train.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
from torch import Tensor

import train
from engine import checkpoint, loop, options, report
from engine.run import Run

LARGEST_PICTURE = 1000  # classes


def restore(path: Path, words: Sequence[str]) -> Run:
    """The run as its checkpoint left it.

    Args:
        words: further options of train.py; those that its numbers depend on are the checkpoint's.

    Raises:
        ValueError: the data are others than the run's.
    """
    state = checkpoint.load_run(path)
    config = options.as_named_now(state["config"])
    said = ["--data", config["data"]] if "data" in config else []  # 0.1 said it of CIFAR alone
    args = train.parse([*said, "--output-dir", str(path.parent), *words])
    own = options.config_of(args)  # neither where to write, nor to fetch anything
    vars(args).update({name: value for name, value in config.items() if name in own})
    args.test = args.test and Path(args.test)
    begun_with, args.pretrained = args.pretrained, "none"  # the checkpoint has its own
    model, task, changes = train.build(args)
    args.pretrained = begun_with
    run = Run(args, model, task, changes)
    run.resume(state)
    if run.epoch == args.epochs:
        run.changes.finish(run)
    return run


def plot_confusion(
    targets: Tensor, predictions: Tensor, training: Sequence[int], classes: Sequence[str],
    split: str, path: Path,
) -> None:  # fmt: skip
    """Rows are true and columns predicted classes, the largest first, in per cent of the row."""
    order = np.argsort(-np.asarray(training), kind="stable")
    percent = 100 * confusion_matrix(
        targets.numpy(), predictions.numpy(), labels=order, normalize="true"
    )
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    few = len(order) <= 20
    names = [classes[c].replace("$", r"\$") for c in order]  # $ begins mathematics
    ConfusionMatrixDisplay(percent, display_labels=names).plot(
        ax=axes, cmap="Blues", include_values=few, values_format=".0f", xticks_rotation=45,
        im_kw={"vmin": 0, "vmax": 100},
    )  # fmt: skip
    if not few:
        axes.set(xticks=[], yticks=[])
    axes.set(title=f"{split} split, % of the true class; most training samples first")
    report.save(figure, path)


def disagreements(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Where the numbers differ from those of results.json, the order of a sum's terms apart."""
    return [
        f"{k}: {ours[k]} here, {theirs[k]} there"
        for k in ours
        if k in theirs
        and not np.allclose(*(np.array(m[k], float) for m in (ours, theirs)), 1e-12, equal_nan=True)
    ]


def evaluate(path: Path, split: str | None, directory: Path, words: Sequence[str]) -> list[str]:
    """Prints and writes what the module says; returns the disagreements with results.json."""
    run = restore(path, words)
    split = split or run.task.judged_by
    if split not in ("train", run.task.judged_by):
        raise ValueError(f"this run is judged by its {run.task.judged_by} split, not by {split}")
    logits, targets = loop.predict(run, split)
    predictions = logits.argmax(1)
    training = run.task.class_counts
    metrics = report.metrics(targets, logits, training)
    classes = list(map(str, run.task.classes))
    print(report.class_table(metrics, training, classes, limit=len(classes)))
    print(f"\n{path}, after {run.epoch} epochs: {split} {report.line(metrics)}")

    if len(classes) <= LARGEST_PICTURE:
        plot_confusion(targets, predictions, training, classes, split, directory / "confusion.png")
    record = {"checkpoint": path.name, "epoch": run.epoch, "split": split, "metrics": metrics}
    report.write_json(directory / "evaluation.json", record)

    results = path.parent / "results.json"
    if not results.exists():
        return []
    reported = json.loads(results.read_text())
    if reported["split"] != split:
        return []
    differ = disagreements(metrics, reported["metrics"])
    print(f"{results}: " + ("; ".join(differ) if differ else "the same numbers"))
    return differ


def main(argv: Sequence[str] | None = None) -> list[str]:
    parser = options.Parser(__doc__, allow_abbrev=False)
    parser.add_argument("checkpoint", type=Path, help="a run's folder, or its checkpoint.pt")
    parser.add_argument("--split", choices=("validation", "test", "train"),
                        help="default: the one that the run reports on")  # fmt: skip
    parser.add_argument("--output-dir", type=Path, help="default: the checkpoint's folder")
    args, words = parser.parse_known_args(argv)
    if args.checkpoint.is_dir():
        args.checkpoint /= "checkpoint.pt"
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
