"""What the installation says of itself, and what it refuses before anything is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torch_absgd as ta


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own, which finds the package where this one has."""
    found = str(Path(ta.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": found, **variables},
    )  # fmt: skip


def test_show_config_says_what_a_bug_report_needs() -> None:
    done = python("import runpy; runpy.run_module('torch_absgd', run_name='__main__')")
    assert done.returncode == 0, done.stderr
    for line in (f"torch_absgd: {ta.__version__}, in ", f"torch:       {torch.__version__}"):
        assert line in done.stdout
    assert re.search(r"^processor: .+\n^CUDA part:   .+", done.stdout, re.MULTILINE), done.stdout


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="levels are x86-64's")
def test_show_config_says_the_level_that_is_in_use() -> None:
    done = python("import torch_absgd; torch_absgd.show_config()", ABSGD_CPU_LEVEL="2")
    assert "processor:   x86-64-v2, ABSGD_CPU_LEVEL=2\n" in done.stdout, done.stdout + done.stderr


def test_the_version_is_the_header_s_and_the_distribution_s() -> None:
    header = (ta.include_dir() / "absgd_version.h").read_text(encoding="utf-8")
    assert ta.__version__ == ".".join(re.findall(r"(?:MAJOR|MINOR|PATCH) (\d+)", header))
    assert (ta.cmake_dir() / "absgdConfig.cmake").is_file()
    assert {"absgd.h", "absgd_libtorch.h"} <= {path.name for path in ta.include_dir().iterdir()}


@pytest.mark.parametrize("version", ["2.9.1+cpu", "2.1.0", "1.13.1"])
def test_a_torch_that_is_too_old_is_refused_before_the_library_is_loaded(version: str) -> None:
    done = python(
        "import torch\n"
        f"torch.__version__ = torch.torch_version.TorchVersion({version!r})\n"
        "torch.ops.load_library = lambda path: exit('loaded')\n"
        "import torch_absgd"
    )
    assert f"needs torch >= 2.10, got {version}" in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize("version", ["2.10.0", "2.11.0a0+git1", "3.0.0"])
def test_later_ones_are_not(version: str) -> None:
    done = python(
        "import torch\n"
        f"torch.__version__ = torch.torch_version.TorchVersion({version!r})\n"
        "import torch_absgd"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_refused(platform: str) -> None:
    done = python(f"import torch, sys; sys.platform = {platform!r}; import torch_absgd")
    assert f"runs on Linux (x86-64, aarch64), got {platform}" in done.stderr, done.stderr


def test_importing_does_not_initialise_cuda() -> None:
    """Nor ask for it in a way that breaks a later fork."""
    done = python(
        "import torch, torch_absgd\n"
        "assert not torch.cuda.is_initialized() and not torch.cuda._is_in_bad_fork()\n"
        "import os\n"
        "if os.fork() == 0:\n"
        "    os._exit(int(torch.cuda._is_in_bad_fork()))\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 0"
    )
    assert done.returncode == 0, done.stderr


def test_the_import_loads_what_training_needs_and_the_rest_when_asked() -> None:
    done = python(
        "import sys, torch_absgd as ta\n"
        "later = {'metrics', 'plots', 'sample_record', 'class_balance', 'schedule', 'stage_two'}\n"
        "loaded = {m.removeprefix('torch_absgd.') for m in sys.modules}\n"
        "assert not later & loaded, later & loaded\n"
        "assert set(ta.__all__) <= set(dir(ta))\n"
        "for name in ta.__all__: assert getattr(ta, name) is getattr(ta, name), name\n"
        "assert ta.metrics.report and ta.step_counts.__module__ == 'torch_absgd.class_balance'\n"
        "assert not hasattr(ta, 'nothing')"
    )
    assert done.returncode == 0, done.stderr
