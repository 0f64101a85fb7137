"""Runs methods × seeds of cifar_lt.py and prints their table, as Tables 1 and 2 of the paper.

    python recipes/sweep.py --imbalance lt --imbalance-ratio 100 --seeds 0 1 2 --data-dir data

Options that this file does not know go to cifar_lt.py, the same for every run. Runs that are
finished are skipped, one that was interrupted is resumed: after a kill, give the same command.
Methods that do not differ in stage one (SGD and ABSGD of a loss; CE and CB-CE) share it: it is
trained once, and each begins with its checkpoint.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cifar_lt
import options
import presets
import report

OPTIMIZERS = ("sgd", "absgd")
NAMES = {
    "ce": "CE", "focal": "Focal", "cb-ce": "CB-CE", "cb-focal": "CB-Focal", "cb-ldam": "CB-LDAM",
}  # fmt: skip


def method_flags(loss: str, optimizer: str) -> list[str]:
    return ["--optimizer", optimizer, *presets.flags(presets.LOSSES[loss])]


def has_two_stages(args: argparse.Namespace) -> bool:
    """Whether the epochs before --stage-two are plain SGD with nothing of stage two in them."""
    return (
        args.lam_start == float("inf")
        and 0 < args.stage_two < args.epochs
        and args.class_balance != "cb"
    )


def run_one(
    loss: str, optimizer: str, seed: int, folder: Path, common: list[str]
) -> dict[str, Any]:
    """The results of one run: read, if it is finished; else trained or trained on."""
    directory = folder / f"{optimizer}-{loss}" / f"seed{seed}"
    flags = [*common, *method_flags(loss, optimizer), "--seed", str(seed), "--resume"]
    args = cifar_lt.parse([*flags, "--output-dir", str(directory)])
    results = directory / "results.json"
    if results.exists():
        return read_results(results, args)
    print(f"\n{NAMES[loss]} with {optimizer.upper()}, seed {seed}: {directory}")
    if has_two_stages(args) and not (directory / "checkpoint.pt").exists():
        flags += ["--stage-one", str(stage_one(args, folder, flags))]
    return cifar_lt.main([*flags, "--output-dir", str(directory)])


def read_results(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Raises ValueError if the results are of other options."""
    results = json.loads(path.read_text())
    config = report.jsonable(options.config_of(args))
    differ = sorted(k for k in config if results["config"].get(k) != config[k])
    if differ:
        raise ValueError(
            f"{path} is of a run with other options ({', '.join(differ)}): "
            "name another --output-dir"
        )
    return results


def stage_one(args: argparse.Namespace, folder: Path, flags: list[str]) -> Path:
    """The checkpoint of stage one, trained or trained on if it is not finished."""
    directory = folder / "stage_one" / f"{args.loss}-seed{args.seed}"
    done = directory / "done"
    if not done.exists():
        print(f"stage one, {args.stage_two} epochs: {directory}")
        sgd = ["--optimizer", "sgd", "--class-balance", "none"]
        stop = ["--stop-epoch", str(args.stage_two), "--output-dir", str(directory)]
        cifar_lt.main([*flags, *sgd, *stop])
        done.touch()
    return directory / "checkpoint.pt"


def summarise(results: dict[tuple[str, str], list[dict[str, Any]]], seeds: Sequence[int]) -> str:
    """The paper's table: a row a loss, a column an optimizer; then all accuracies."""
    some = next(iter(results.values()))[0]
    config, split = some["config"], some["split"]
    title = (
        f"{config['dataset']}, {config['imbalance']}, ratio {config['imbalance_ratio']:g}, "
        f"{config['arch']}: {split} accuracy (%), mean ± deviation over seeds "
        f"{', '.join(map(str, seeds))}"
    )
    losses = list(dict.fromkeys(loss for loss, _ in results))
    optimizers = list(dict.fromkeys(optimizer for _, optimizer in results))

    def cell(loss: str, optimizer: str, name: str) -> str:
        return report.mean_std([run["metrics"][name] for run in results[loss, optimizer]])

    overall = [[NAMES[loss], *(cell(loss, o, "overall") for o in optimizers)] for loss in losses]
    groups = ("balanced", "many", "medium", "few")
    detail = [
        [f"{NAMES[loss]}, {o.upper()}", *(cell(loss, o, name) for name in groups)]
        for loss in losses
        for o in optimizers
    ]
    return "\n\n".join(
        [
            title,
            report.markdown(["loss", *(o.upper() for o in optimizers)], overall),
            "many: > 100 training images, medium: 20 to 100, few: < 20",
            report.markdown(["method", *groups], detail),
        ]
    )


def main(argv: Sequence[str] | None = None) -> str:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--losses", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/sweep"))
    args, common = parser.parse_known_args(argv)
    results = {
        (loss, optimizer): [
            run_one(loss, optimizer, seed, args.output_dir, common) for seed in args.seeds
        ]
        for loss in args.losses
        for optimizer in args.optimizers
    }
    text = summarise(results, args.seeds)
    (args.output_dir / "table.md").write_text(text + "\n")
    report.write_json(
        args.output_dir / "results.json",
        [
            {"loss": loss, "optimizer": optimizer, "runs": runs}
            for (loss, optimizer), runs in results.items()
        ],
    )
    print("\n" + text)
    return text


if __name__ == "__main__":
    main()
