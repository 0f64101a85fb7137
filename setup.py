"""Builds the C library with CMake and ships it inside the package as plain shared objects.

Nothing here links Python: one wheel serves every Python, and every torch from 2.10 on.
TORCH_ABSGD_CUDA=0|1 turns the CUDA part off or on; without it, nvcc's presence decides.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def wants_cuda() -> bool:
    choice = os.environ.get("TORCH_ABSGD_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"TORCH_ABSGD_CUDA must be 0 or 1, got {choice!r}")
    has_nvcc = shutil.which("nvcc") is not None
    if choice == "1" and not has_nvcc:
        raise SystemExit("TORCH_ABSGD_CUDA=1, but nvcc is not on PATH: install the CUDA toolkit")
    return has_nvcc if choice == "" else choice == "1"


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import torch

        destination = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build}",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_INSTALL_PREFIX={destination}",
            f"-DTORCH_ABSGD_TORCH_DIR={Path(torch.__file__).parent}",
            f"-DTORCH_ABSGD_CUDA={'ON' if wants_cuda() else 'OFF'}",
        ]
        subprocess.run(configure, check=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True)
        subprocess.run(["cmake", "--install", build], check=True)

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"


class AnyPythonWheel(bdist_wheel):
    """Tags the wheel py3-none-<platform>: it holds no code of a certain Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("torch_absgd.torch_absgd_cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
