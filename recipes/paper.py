"""Every table and figure of the paper: the commands, the runs, and the result beside what was
published.

    python recipes/paper.py table1 --dry-run                    # the commands and their time
    python recipes/paper.py table5 --data-dir data --seeds 0 1 2 3 4
    python recipes/paper.py table1 --only "CB-CE" "CIFAR-10-LT 100" --data-dir data
    python recipes/paper.py table1 --small --data-dir data      # a CPU's size, on what is at hand

Options that this file does not know are train.py's, the same for every run: --amp bf16 --compile
--workers 8. Finished runs are read, missing ones are trained: after a kill, give the same command.
λ, lr and weight decay are the presets': choose them with --validate first, for every method alike.
"""

from __future__ import annotations

import argparse
import functools
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import models
import train
from engine import options, report
from studies import curves, runs, toy_2d
from studies.tables import FIGURES, REMARKS, TABLES, Cell, small

Found = dict[tuple[str, str], list[runs.Results]]


def build_parser() -> argparse.ArgumentParser:
    parser = options.Parser(__doc__, allow_abbrev=False)
    # fmt: off
    parser.add_argument("what", choices=[*TABLES, "figure1", *FIGURES])
    parser.add_argument("--dry-run", action="store_true", help="print the commands, train nothing")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT",
                        help="rows and columns whose names hold one of these texts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the runs")
    parser.add_argument("--small", action="store_true", help="a CPU's size, on what is at hand")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/paper"),
                        help="of runs, tables and pictures")
    # fmt: on
    return parser


def chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Those that match: a text that is in some row's name selects rows, and so for columns; a whole
    name selects that one alone."""
    all_rows, all_columns = {c.row for c in cells}, {c.column for c in cells}
    names = all_rows | all_columns
    unknown = [text for text in only if not any(text in name for name in names)]
    if unknown:
        raise ValueError(f"--only {unknown[0]!r}: in none of {'; '.join(sorted(names))}")

    def matching(some: set[str]) -> set[str]:
        found = {n for text in only for n in some if text == n or (text not in names and text in n)}
        return found or some

    rows, columns = matching(all_rows), matching(all_columns)
    return [cell for cell in cells if cell.row in rows and cell.column in columns]


class Plan:
    """The runs behind some cells: a folder and train.py's words for each cell and seed."""

    def __init__(self, args: argparse.Namespace, cells: Sequence[Cell], common: list[str]) -> None:
        self.args, self.cells, self.common = args, cells, common
        self.folder = args.output_dir / ("small" if args.small else "full")

    def words(self, cell: Cell, seed: int) -> list[str]:
        words = small(cell) if self.args.small else cell.words
        return [*words, *self.common, "--seed", str(seed)]

    def directory(self, cell: Cell, seed: int) -> Path:
        return self.folder / cell.directory(seed)

    def is_missing(self, cell: Cell, seed: int) -> bool:
        return not (self.directory(cell, seed) / "results.json").exists()

    def print_commands(self) -> None:
        total = 0.0
        for cell in self.cells:
            for seed in self.args.seeds:
                words = [*self.words(cell, seed), "--output-dir", str(self.directory(cell, seed))]
                if not self.is_missing(cell, seed):
                    print(f"done     train.py {shlex.join(words)}")
                    continue
                seconds = estimate(train.parse(words), cell)
                total += seconds
                print(f"{duration(seconds):>8} train.py {shlex.join(words)}")
        print(f"{duration(total):>8} in all, by a network's time for a few random samples here, "
              "without loading data; stages one that runs share are counted for each")  # fmt: skip

    def run(self) -> Found:
        """Results by (row, column); cells whose data are not at hand are left out with a note."""
        found: Found = {}
        absent: dict[str, str] = {}
        for cell in self.cells:
            for seed in self.args.seeds:
                if cell.needs in absent:
                    continue
                try:
                    results = runs.run(self.words(cell, seed), self.directory(cell, seed),
                                       self.folder / "stage_one")  # fmt: skip
                except FileNotFoundError as error:
                    absent[cell.needs] = str(error)
                    print(f"note: left out, {cell.needs}: {error}")
                    continue
                found.setdefault((cell.row, cell.column), []).append(results)
        if not found:
            raise FileNotFoundError("; ".join(absent.values()))
        return found


def duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def estimate(args: argparse.Namespace, cell: Cell) -> float:
    """Seconds of forward and backward passes."""
    kind = {"imdb": "text"}.get(cell.needs, "image")
    side = {"cifar10": 32, "cifar100": 32}.get(cell.needs, args.image_size) // args.shrink
    classes = {"cifar10": 10, "imdb": 2}.get(cell.needs, 100)
    arch = args.arch or models.default_arch(kind, small_images=kind == "image")
    samples = min(cell.samples, args.limit * classes) if args.limit else cell.samples
    size = args.max_length if kind == "text" else side
    width = (args.hidden or 128, args.embedding)
    batch = args.batch_size if kind == "text" else 4  # an LSTM takes as long for one as for many
    return seconds_a_sample(kind, arch, size, width, args.device, batch) * samples * args.epochs


@functools.cache
def seconds_a_sample(
    kind: str, arch: str, size: int, width: tuple[int, int], device: str, batch: int
) -> float:
    """Of a forward and a backward pass through a network with random weights."""
    if kind == "text":
        network = models.BiLSTM(20_000, 2, width[1], width[0])
        inputs = torch.randint(1, 20_000, (batch, size))
    else:
        small_one = arch in models.ARCHS
        network = (models.build(arch, 100) if small_one
                   else models.from_torchvision(arch, 1000, "none", normed=False))  # fmt: skip
        inputs = torch.randn(batch, 3, size, size)
    network, inputs, times = network.to(device), inputs.to(device), []
    for _ in range(2):
        start = time.perf_counter()
        network(inputs).sum().backward()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times) / batch


def render(title: str, cells: Sequence[Cell], found: Found, seeds: Sequence[int]) -> str:
    """A row a method, a column a data set: mean ± deviation, and in brackets what was published."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    columns = list(dict.fromkeys(cell.column for cell in cells))
    published = {(c.row, c.column): c.published for c in cells if c.published}
    sources = list(dict.fromkeys(source for _, source in published.values()))

    def entry(row: str, column: str) -> str:
        some = found.get((row, column), [])
        text = report.mean_std([run["metrics"]["overall"] for run in some]) if some else "–"
        if any(run.get("alarms") for run in some):
            text += " !"
        if (row, column) in published:
            value, source = published[row, column]
            text += f" ({value:.2f} [{sources.index(source) + 1}])"
        return text

    some = next(iter(found.values()), [{"split": "test"}])[0]
    parts = [
        f"{title}: {some['split']} accuracy (%), mean ± deviation over seeds "
        f"{', '.join(map(str, seeds))}; in brackets what was published; !: see the run's alarms",
        report.markdown(["", *columns], [[row, *(entry(row, c) for c in columns)] for row in rows]),
        *(f"[{i}] {source}" for i, source in enumerate(sources, 1)),
    ]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> Any:
    args, common = build_parser().parse_known_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.what == "figure1":
        return toy_2d.main(["--output", str(args.output_dir / "figure1.png")])
    title, cells = {**TABLES, **FIGURES}[args.what]
    plan = Plan(args, chosen(cells, args.only), common)
    plan.print_commands()
    if args.dry_run:
        return None
    found = plan.run()
    text = render(f"{args.what}, {title}", plan.cells, found, args.seeds)
    if args.what in REMARKS:
        text += f"\n\npublished, too: {REMARKS[args.what]}"
    path = args.output_dir / f"{args.what}{'-small' if args.small else ''}.md"
    path.write_text(text + "\n")
    print(f"\n{text}\n\nwritten to {path}")
    if args.what in FIGURES:
        curves.plot({key: [curves.read(plan.directory(cell, seed)) for seed in args.seeds]
                     for cell in plan.cells for key in [(cell.row, cell.column)] if key in found},
                    path.with_suffix(".png"))  # fmt: skip
    return text


if __name__ == "__main__":
    train.run(lambda: main() and None)
