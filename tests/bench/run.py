"""The benchmarks on the CPU: prints markdown tables, and writes the numbers as JSON.

    python tests/bench/run.py --seconds 2                      all; Ctrl-C prints what there is
    python tests/bench/run.py --only step loss/CE              rows whose names begin so
    python tests/bench/run.py --quick --only weigh             a look, without torch.compile
    python tests/bench/run.py --avx2                           ours and torch's as without AVX-512
    python tests/bench/run.py --cpu-time                       of one thread, on a machine in use

Needs the installed package, torchvision and tqdm, and cmake and a C compiler for limits.c.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if "--avx2" in sys.argv:  # both are read when torch and torch_absgd are imported
    os.environ.update(ABSGD_CPU_LEVEL="3", ATEN_CPU_CAPABILITY="avx2")

sys.path.insert(0, str(Path(__file__).resolve().parent))
import bench_compiled
import bench_linear_loss
import bench_loss
import bench_scaling
import bench_sigmoid_loss
import bench_step
import bench_training
import bench_weigh
import contest
import machine
import tables
import torch
import torch._inductor.config
from contest import Case, Settings, measured
from tqdm import tqdm

MODULES = (
    bench_step,
    bench_loss,
    bench_sigmoid_loss,
    bench_linear_loss,
    bench_weigh,
    bench_training,
    bench_compiled,
    bench_scaling,
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of rows' names")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    parser.add_argument("--quick", action="store_true", help="0.2 s a row, and no compiled peers")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing a row (default: 5)")
    parser.add_argument("--avx2", action="store_true", help="use no AVX-512, nor let the peers")
    parser.add_argument("--cpu-time", action="store_true", help="not wall time: of one thread")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    parser.add_argument("--build", type=Path, default=machine.build, help="where to build limits.c")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error(f"--threads must be at least 1, got {args.threads}")
    if not args.seconds > 0:
        parser.error(f"--seconds must be > 0, got {args.seconds}")
    return args


def chosen(only: Sequence[str]) -> list[Case]:
    cases = [case for module in MODULES for case in module.cases()]
    for beginning in only:
        if not any(case.name.startswith(beginning) for case in cases):
            raise SystemExit(f"--only {beginning!r}: no row's name begins so; --list shows them")
    return [case for case in cases if case.name.startswith(tuple(only))]


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    cases = chosen(args.only)
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    machine.build = args.build
    if args.avx2:
        torch._inductor.config.cpp.simdlen = 256
    seconds = 0.2 if args.quick else args.seconds
    if args.cpu_time:
        args.threads, contest.clock = 1, time.thread_time_ns
    settings = Settings(args.threads, seconds, compiles=not args.quick)
    about = machine.description(args.threads)
    rows: list[dict[str, Any]] = []
    with tqdm(cases, unit="row") as progress, contextlib.suppress(KeyboardInterrupt):
        for case in progress:
            progress.set_postfix_str(case.name)
            rows.append(measured(case, settings))
    if len(rows) < len(cases):
        print(f"stopped at {cases[len(rows)].name}, after {len(rows)} rows of {len(cases)}\n")
    print(tables.header(about, asdict(settings)), end="\n\n")
    print("\n".join(tables.tables(rows)))
    if args.json:
        results = {"machine": about, "settings": asdict(settings), "rows": rows}
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return int(len(rows) < len(cases) or any("error" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
