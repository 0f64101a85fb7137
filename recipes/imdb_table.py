"""SGD against ABSGD on IMDB, several seeds: chooses lr and λ, trains, prints the table.

    python recipes/imdb_table.py --setting small --data-dir data --output-dir runs/imdb-small

1. lr: of --lrs, the one with which SGD with cross-entropy is best; every method then uses it.
2. λ: of --lams, the best one for each loss.
   Both are judged with seed 0 by the balanced accuracy (IMDB's test set is balanced) on a fifth of
   the training reviews that is held out for it.
3. All training reviews, every seed: SGD and ABSGD go on from the same stage one.

Runs that are finished are not repeated and one that was interrupted is resumed: after a kill, give
the same command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import imdb
import report
import sweep

LOSSES = {"ce": "CE", "focal": "Focal"}
SETTINGS = {"paper": "", "small": "small-", "online": "online-"}


class Table:
    """The runs of one command; each has a folder that says what it is."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.folder = args, args.output_dir
        self.prefix = SETTINGS[args.setting]
        self.common = ["--data-dir", str(args.data_dir), "--resume"]

    def run(self, loss: str, optimizer: str, lr: float, lam: float, seed: int, *more: str) -> Any:
        """results.json of a run: read, or trained for, from the stage one that it shares."""
        words = ["--preset", f"{self.prefix}{optimizer}-{loss}", "--lr", str(lr), "--lam", str(lam),
                 "--seed", str(seed), *more, *self.common]  # fmt: skip
        part = "validation" if "--validate" in more else "final"
        stage = self.folder / part / f"{loss}-lr{lr:g}-seed{seed}"
        method = "sgd" if optimizer == "sgd" else f"lam{lam:g}"
        words += ["--output-dir", str(stage / method)]
        args = imdb.parse(words)
        if (stage / method / "results.json").exists():
            return sweep.read_results(stage / method / "results.json", args)
        print(f"\n{part}: {LOSSES[loss]}, {method}, lr {lr:g}, seed {seed}", flush=True)
        if args.stage_two and not (stage / method / "checkpoint.pt").exists():
            words += ["--stage-one", str(self.stage_one(words, stage / "stage_one"))]
        return imdb.main(words)

    def stage_one(self, words: list[str], directory: Path) -> Path:
        done = directory / "done"
        if not done.exists():
            stop = ["--stop-epoch", str(imdb.parse(words).stage_two)]
            imdb.main([*words, "--optimizer", "sgd", *stop, "--output-dir", str(directory)])
            done.touch()
        return directory / "checkpoint.pt"

    def validated(self, loss: str, optimizer: str, lr: float, lam: float) -> float:
        results = self.run(loss, optimizer, lr, lam, 0, "--validate", "0.2")
        return results["metrics"]["balanced"]

    def choose(self) -> tuple[float, dict[str, float], list[str]]:
        """(lr, λ of each loss, what each trial gave)."""
        lams = self.args.lams
        by_lr = {lr: self.validated("ce", "sgd", lr, lams[0]) for lr in self.args.lrs}
        lr = max(by_lr, key=by_lr.get)
        lines = [f"lr: {shown(by_lr)}, so {lr:g}"]
        chosen = {}
        for loss, name in LOSSES.items():
            by_lam = {lam: self.validated(loss, "absgd", lr, lam) for lam in lams}
            chosen[loss] = max(by_lam, key=by_lam.get)
            lines.append(f"λ with {name}: {shown(by_lam)}, so {chosen[loss]:g}")
        return lr, chosen, lines

    def final(self, lr: float, lams: dict[str, float]) -> dict[tuple[str, str], list[Any]]:
        return {
            (loss, optimizer): [
                self.run(loss, optimizer, lr, lams[loss], seed) for seed in self.args.seeds
            ]
            for loss in LOSSES
            for optimizer in ("sgd", "absgd")
        }


def shown(trials: dict[float, float]) -> str:
    return ", ".join(f"{value:g}: {100 * accuracy:.2f} %" for value, accuracy in trials.items())


def summarise(results: dict[tuple[str, str], list[Any]], lams: dict[str, float]) -> str:
    """Test accuracy overall and of each class, a row a method."""

    def row(loss: str, optimizer: str) -> list[str]:
        runs = [run["metrics"] for run in results[loss, optimizer]]
        by_class = [report.mean_std([run["per_class"][c] for run in runs]) for c in (0, 1)]
        method = "SGD" if optimizer == "sgd" else f"ABSGD, λ = {lams[loss]:g}"
        overall = report.mean_std([run["overall"] for run in runs])
        return [LOSSES[loss], method, overall, *by_class]

    counts = next(iter(results.values()))[0]["class_counts"]
    header = ["loss", "method", "overall", f"negative ({counts[0]:,})", f"positive ({counts[1]:,})"]
    return report.markdown(header, [row(*key) for key in results])


def main(argv: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--setting", choices=SETTINGS, default="small")
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--lams", type=float, nargs="+", default=[1.0, 5.0, 10.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--output-dir", type=Path, default=Path("runs/imdb"))
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # the network is too small to share
    table = Table(args)
    lr, lams, lines = table.choose()
    results = table.final(lr, lams)
    text = "\n".join([
        "Balanced accuracy on the validation split:",
        *(f"- {line}" for line in lines),
        "",
        f"Test accuracy (%), mean ± deviation over seeds {', '.join(map(str, args.seeds))}; in "
        "brackets the training reviews:",
        "",
        summarise(results, lams),
    ])  # fmt: skip
    (args.output_dir / "table.md").write_text(text + "\n")
    print("\n" + text)
    return text


if __name__ == "__main__":
    main()
