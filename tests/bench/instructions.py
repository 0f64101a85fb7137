"""Instructions of one call of each contender, counted by callgrind: figures that no load disturbs.

    python tests/bench/instructions.py          needs valgrind and its headers, and takes minutes

Everything runs on one thread; valgrind has AVX2, no AVX-512. The files of each count stay in the
printed folder, for callgrind_annotate.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

CALLS = 20
REQUESTS = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void zero(void) { CALLGRIND_ZERO_STATS; }
void dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
"""


def contenders() -> dict[str, Callable[[], object]]:
    import torch
    import torch.nn.functional as F
    from bench_step import cifar_resnet32, optimizers, parameters
    from peers import ReleasedABLoss, cross_entropy

    import torch_absgd as ta

    torch.manual_seed(0)
    steps = optimizers(parameters(cifar_resnet32()), compiles=False)
    x, y = torch.randn(128, 10, requires_grad=True), torch.randint(10, (128,))

    def both_passes(loss: Callable[..., torch.Tensor]) -> Callable[[], object]:
        def call() -> None:
            x.grad = None
            loss(x, y).backward()

        return call

    ours = ta.PerSampleCrossEntropy()
    rule = {"lam": ta.EffectiveSampleSize(0.8), "keep_loss": True}
    losses = {
        "ours": ta.AttentionalLoss(ours, lam=5.0),
        "ours, a rule and kept": ta.AttentionalLoss(ours, **rule),
        "eager": ReleasedABLoss(cross_entropy, 5.0),
        "plain mean": F.cross_entropy,
    }
    opt = ta.ABSGD([torch.zeros(1, requires_grad=True)], lam=5.0)
    few, many = (torch.rand(n, requires_grad=True) for n in (128, 2**18))
    return {
        **{f"step, ResNet-32: {step.name}": step.call for step in steps},
        **{f"CE 128×10: {name}": both_passes(loss) for name, loss in losses.items()},
        "weigh, 128 losses": lambda: opt.weigh(few),
        "weigh, 262,144 losses": lambda: opt.weigh(many),
    }


def count(requests: Path) -> None:
    """Within valgrind."""
    import torch

    torch.set_num_threads(1)
    callgrind = ctypes.CDLL(str(requests))
    calls = contenders()
    for call in calls.values():
        for _ in range(60):  # past all that is done once
            call()
    callgrind.start()
    for name, call in calls.items():
        call()
        callgrind.zero()
        for _ in range(CALLS):
            call()
        callgrind.dump(name.encode())


def main() -> None:
    if not shutil.which("valgrind"):
        sys.exit("valgrind is not installed")
    folder = Path(tempfile.mkdtemp(prefix="instructions-"))
    requests = folder / "requests.so"
    cc = os.environ.get("CC", "cc")
    subprocess.run(
        [cc, "-O1", "-shared", "-fPIC", "-xc", "-", "-o", str(requests)],
        input=REQUESTS, text=True, check=True,
    )  # fmt: skip
    subprocess.run(
        ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no",
         f"--callgrind-out-file={folder}/count", sys.executable, __file__, str(requests)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    print(f"thousands of instructions a call; {folder}")
    for file in sorted(folder.glob("count.*"), key=lambda f: int(f.suffix[1:])):
        text = file.read_text(errors="replace")
        name, total = (
            re.search(pattern, text, re.MULTILINE).group(1)
            for pattern in (r"^desc: Trigger: Client Request: (.*)", r"^totals: (\d+)")
        )
        print(f"{int(total) / CALLS / 1000:9,.0f}  {name}")


if __name__ == "__main__":
    count(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
