"""tests/gpu.sh itself: a broken stage fails the run, and those after it run nevertheless."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu.sh")
STAGES = ["loaded", "package", "bench"]


def rehearse(tmp_path: Path, python: str) -> tuple[int, list[str]]:
    """Exit status and summary of the stages that need nothing built, run by the program python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{python}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    run = subprocess.run(
        [SCRIPT, "--rehearse", "--report", tmp_path / "report", *STAGES],
        env={**os.environ, "PYTHON": str(program)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return run.returncode, (tmp_path / "report" / "summary.txt").read_text().splitlines()


def test_all_is_well(tmp_path):
    status, summary = rehearse(tmp_path, "exit 0")
    assert status == 0
    assert summary[-1] == "0 of 3 stages failed"


@pytest.mark.parametrize("broken", STAGES)
def test_a_broken_stage_fails_the_run_and_stops_none_after_it(tmp_path, broken):
    sign = {"loaded": "cuda_status", "package": "test_cuda.py", "bench": "bench_cuda"}[broken]
    status, summary = rehearse(tmp_path, f'case "$*" in *{sign}*) exit 3 ;; esac')
    assert status == 1
    codes = {line.split()[1].rstrip(":"): int(line.split()[3].rstrip(",")) for line in summary[:-1]}
    assert codes == {stage: 3 if stage == broken else 0 for stage in STAGES}


def test_kernels_that_no_test_covers_are_a_failure(tmp_path):
    """A filter that matches nothing must not pass for success."""
    build = tmp_path / "build"
    build.mkdir()
    tests = build / "cuda_host_asan"
    tests.write_text("#!/bin/sh\necho '[  PASSED  ] 0 tests.'\n")
    tests.chmod(0o755)
    command = [SCRIPT, "--rehearse", "--report", tmp_path / "report", "--build", build, "kernels"]
    environment = {**os.environ, "PYTHON": sys.executable}
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 1
    tests.write_text("#!/bin/sh\necho '[  PASSED  ] 12 tests.'\n")
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0


def test_an_unknown_stage_is_an_error():
    run = subprocess.run([SCRIPT, "--rehearse", "kernel"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "kernel" in run.stderr
