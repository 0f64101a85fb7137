"""Builds the C library with CMake and ships it inside the package: shared objects that torch loads,
and headers, a static library and a CMake package for C and C++.

Nothing here links Python: one wheel serves every Python, and every torch from 2.10 on.
TORCH_ABSGD_CUDA=0|1 turns the CUDA part off or on; without it, nvcc's presence decides.
TORCH_ABSGD_LOCAL_VERSION=cpu|cu130|… names a wheel after what is in it. CMAKE_ARGS is handed on.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
BUILT = ["torch_absgd_cpu.so", "torch_absgd_cuda.so", "_version.py", "include", "lib"]


def wants_cuda() -> bool:
    choice = os.environ.get("TORCH_ABSGD_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"TORCH_ABSGD_CUDA must be 0 or 1, got {choice!r}")
    has_nvcc = shutil.which("nvcc") is not None
    if choice == "1" and not has_nvcc:
        raise SystemExit("TORCH_ABSGD_CUDA=1, but nvcc is not on PATH: install the CUDA toolkit")
    return has_nvcc if choice == "" else choice == "1"


def cuda_name() -> str:
    """cu130 for nvcc 13.0; cpu without the CUDA part."""
    if not wants_cuda():
        return "cpu"
    text = subprocess.run(["nvcc", "--version"], check=True, capture_output=True, text=True).stdout
    return "cu" + "".join(re.search(r"release (\d+)\.(\d+)", text).groups())


def version() -> str:
    header = (ROOT / "csrc" / "absgd_version.h").read_text(encoding="utf-8")
    public = ".".join(re.findall(r"VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", header, re.MULTILINE))
    local = os.environ.get("TORCH_ABSGD_LOCAL_VERSION", "")
    if local and local != cuda_name():
        raise SystemExit(f"TORCH_ABSGD_LOCAL_VERSION={local}, but {cuda_name()} would be built")
    return f"{public}+{local}" if local else public


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("torch is not there to build against: pip install 'torch>=2.10'")
    return Path(spec.origin).parent


class CMakeBuild(build_ext):
    def run(self) -> None:
        self.is_editable = bool(self.inplace)  # setuptools turns inplace off while it builds
        super().run()

    def copy_extensions_to_source(self) -> None:
        """CMake has installed there already."""

    def build_extension(self, ext: Extension) -> None:
        if sys.platform != "linux":
            raise SystemExit(f"torch_absgd builds on Linux, got {sys.platform}")
        destination = Path(self.get_ext_fullpath(ext.name)).parent.resolve()
        build = Path(self.build_temp).resolve()
        if self.is_editable:  # this folder stays: what has changed is then built, and no more
            destination, build = ROOT / "python/torch_absgd", ROOT / "build/editable"
        (build / "CMakeCache.txt").unlink(missing_ok=True)  # its tools' environment may be gone
        ninja = [] if shutil.which("ninja") is None else ["-GNinja"]
        configure = [
            "cmake",
            *ninja,
            f"-S{ROOT}",
            f"-B{build}",
            "-DCMAKE_BUILD_TYPE=Release",
            "-DCMAKE_INSTALL_LIBDIR=lib",
            f"-DCMAKE_INSTALL_PREFIX={destination}",
            f"-DTORCH_ABSGD_TORCH_DIR={torch_folder()}",
            f"-DTORCH_ABSGD_CUDA={'ON' if wants_cuda() else 'OFF'}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        subprocess.run(configure, check=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run(["cmake", "--build", build, "--parallel", jobs], check=True)
        for name in BUILT:  # of an earlier build, with other options
            shutil.rmtree(destination / name, ignore_errors=True)
            if (destination / name).is_file():
                (destination / name).unlink()
        for component in ("python", "development"):
            subprocess.run(["cmake", "--install", build, "--component", component], check=True)

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"


class AnyPythonWheel(bdist_wheel):
    """Tags the wheel py3-none-<platform>: it holds no code of a certain Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    version=version(),
    ext_modules=[Extension("torch_absgd.torch_absgd_cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)
