"""The machine: what stands in the header, its limits, and its caches."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BENCH = Path(__file__).resolve().parent
build = BENCH.parents[1] / "build" / "bench"  # where limits.c is built; run.py may set it
FLUSHED = (64 << 20, 512 << 20)  # bytes walked to flush: at least, at most
FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "neon", "sve")


def description(threads: int) -> dict[str, Any]:
    """What a reader has to know to read the numbers."""
    info = _cpu_info()
    flags = info.get("flags", info.get("Features", "")).split()
    return {
        "processor": info.get("model name", platform.processor() or platform.machine()),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cpu_level": os.environ.get("ABSGD_CPU_LEVEL", "best"),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": threads,
    }


def _caches() -> dict[str, int]:
    """Bytes of each level of data cache that the first core sees, as Linux reports them."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            kib = (index / "size").read_text().strip().removesuffix("K")
            sizes["L" + (index / "level").read_text().strip()] = int(kib) << 10
    return sizes


def _cpu_info() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


# ---- limits.c


@cache
def _limits() -> ctypes.CDLL:
    """Builds limits.c where it is not built yet."""
    for command in (["-S", BENCH, "-B", build, "-DCMAKE_BUILD_TYPE=Release"], ["--build", build]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"building {BENCH / 'limits.c'} failed:\n{done.stdout}{done.stderr}")
    library = ctypes.CDLL(str(build / "absgd_limits.so"))
    address, size = ctypes.c_void_p, ctypes.c_int64
    library.limits_read3_write2.argtypes = [address, address, address, size]
    library.limits_copy.argtypes = [address, address, size]
    library.limits_exp_f32.argtypes = library.limits_exp_f64.argtypes = [address, size]
    library.limits_exp_f32.restype = ctypes.c_float
    library.limits_exp_f64.restype = ctypes.c_double
    return library


def read3_write2(w: Tensor, g: Tensor, v: Tensor) -> None:
    """Reads three float32 arrays and writes two of them, in place."""
    _limits().limits_read3_write2(w.data_ptr(), g.data_ptr(), v.data_ptr(), w.numel())


def copy(to: Tensor, source: Tensor) -> None:
    _limits().limits_copy(to.data_ptr(), source.data_ptr(), source.nbytes)


def exp(x: Tensor) -> None:
    """An exponential of each element, all ≤ 0, float32 or float64."""
    function = _limits().limits_exp_f64 if x.dtype is torch.float64 else _limits().limits_exp_f32
    function(x.data_ptr(), x.numel())


# ---- caches


class Flush:
    """Called, walks through more memory than the last-level cache holds."""

    def __init__(self) -> None:
        low, high = FLUSHED
        size = min(max([low, *_caches().values()]), high)
        self.buffer = torch.zeros(size, dtype=torch.uint8)

    def __call__(self) -> None:
        self.buffer += 1
