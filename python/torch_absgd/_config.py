"""What this installation is: whether it can run at all, where its C files are, and what a bug
report needs. Imported before anything else, so that a torch that is too old is told so in words."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

import torch

from ._version import __version__

OLDEST_TORCH = (2, 10)
_PACKAGE = Path(__file__).parent
_CPU_LIBRARY = _PACKAGE / "torch_absgd_cpu.so"


def _check_installation() -> None:
    if sys.platform != "linux":
        raise ImportError(
            f"torch_absgd runs on Linux (x86-64, aarch64), got {sys.platform}: use a container, or "
            "WSL 2 on Windows"
        )
    if torch.__version__ < OLDEST_TORCH:  # type: ignore[operator]  # a TorchVersion compares
        raise ImportError(
            f"torch_absgd {__version__} needs torch >= 2.10, got {torch.__version__}: "
            'pip install --upgrade "torch>=2.10"'
        )
    if not _CPU_LIBRARY.exists():
        raise ImportError(f"{_CPU_LIBRARY} is missing: install torch_absgd with pip")


_check_installation()


def include_dir() -> Path:
    """The folder of the C headers: ``absgd.h``, ``absgd_libtorch.h`` and, in a package that was
    built with CUDA, ``absgd_cuda.h``."""
    return _PACKAGE / "include"


def cmake_dir() -> Path:
    """The folder of the CMake package, for ``find_package(absgd)``::

    cmake -DCMAKE_PREFIX_PATH="$(python -c 'import torch_absgd as ta; print(ta.cmake_dir())')" …
    """
    return _PACKAGE / "lib" / "cmake" / "absgd"


def show_config() -> None:
    """Prints what a bug report needs: versions, the processor's level, and whether the CUDA part is
    loaded or why not. ``python -m torch_absgd`` does the same."""
    from ._cuda import cuda_status

    level = ctypes.CDLL(str(_CPU_LIBRARY)).absgd_cpu_level()
    instructions = f"x86-64-v{level}" if level > 1 else platform.machine()
    lowered = os.environ.get("ABSGD_CPU_LEVEL")
    rows = {
        "torch_absgd": f"{__version__}, in {_PACKAGE}",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "Python": f"{platform.python_version()}, {platform.platform()}",
        "processor": instructions + (f", ABSGD_CPU_LEVEL={lowered}" if lowered else ""),
        "CUDA part": cuda_status(),
    }
    for name, value in rows.items():
        print(f"{name + ':':<13}{value}")
