"""tests/gpu.sh itself: a broken stage fails the run, and those after it run nevertheless.

With programs in place of python, cmake, ctest and the tests, which say that all is well;
tests/run_all.sh rehearses the script with the real ones.
"""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("gpu.sh")
# What each stage calls, in part.
CALLS = {
    "card": "torch.__version__",
    "build": "cmake -S tests/cuda_host",
    "loaded": "cuda_status",
    "kernels": "--gtest_filter=*WeighFollowsLambda",
    "package": "-m pytest",
    "memcheck": "planted_asan",
    "racecheck": "planted_tsan",
    "synccheck": "HarnessDeathTest",
    "bench": "bench_cuda.py",
}
ALL_IS_WELL = "echo '[  PASSED  ] 5 tests.'; echo '5 passed in 1.0s'"


def rehearse(folder: Path, call: str, answer: str, *arguments: str) -> tuple[int, dict[str, int]]:
    """The exit status, and each stage's, where programs that are called with call do answer."""
    programs = [folder / "bin" / name for name in ("python", "cmake", "ctest")]
    for program in (*programs, folder / "build" / "cuda_host_asan"):
        program.parent.mkdir(exist_ok=True)
        case = f"case \"$(basename $0) $*\" in *'{call}'*) {answer} ;; esac"
        program.write_text(f"#!/bin/sh\n{case}\n{ALL_IS_WELL}\n")
        program.chmod(0o755)
    path = f"{programs[0].parent}:{os.environ['PATH']}"
    report = folder / "report"
    run = subprocess.run(
        [SCRIPT, "--rehearse", "--report", report, "--build", folder / "build", *arguments],
        env={**os.environ, "PATH": path, "PYTHON": str(programs[0])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = (report / "summary.txt").read_text().splitlines()[:-1]
    log = (report / "log.txt").read_text()
    codes = {line.split()[1].rstrip(":"): int(line.split()[3].rstrip(",")) for line in lines}
    assert all(f"== {stage} " in log for stage in codes)
    return run.returncode, codes


@pytest.mark.parametrize("broken", ["none", *CALLS])
def test_a_broken_stage_fails_the_run_and_stops_none_after_it(tmp_path, broken):
    status, codes = rehearse(tmp_path, CALLS.get(broken, "nothing"), "exit 3")
    assert list(codes) == list(CALLS)
    assert [stage for stage, code in codes.items() if code != 0] == [broken] * (broken != "none")
    assert status == (broken != "none")


@pytest.mark.parametrize("stage", ["kernels", "synccheck"])
@pytest.mark.parametrize(
    "answer", ["echo '[  PASSED  ] 0 tests.'; exit 0", "echo '[  SKIPPED ] 1 test.'"]
)
def test_kernels_that_no_test_covers_are_a_failure(tmp_path, stage, answer):
    """A filter that matches nothing, or a test that skips itself, must not pass for success."""
    assert rehearse(tmp_path, CALLS[stage], answer, stage) == (1, {stage: 1})


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("echo '56 skipped in 1.0s'; exit 0", 1),
        ("echo 'SKIPPED [1] tests/test_cuda.py:9: no CUDA operators: no driver.'", 1),
        ("echo 'SKIPPED [1] tests/test_cuda.py:9: there is one card'", 0),
    ],
)
def test_what_the_package_may_skip(tmp_path, answer, status):
    assert rehearse(tmp_path, CALLS["package"], answer, "package") == (status, {"package": status})


@pytest.mark.parametrize(
    ("option", "stages"),
    [
        ("--quick", "card build loaded kernels package"),
        ("--sanitize", "card build memcheck racecheck synccheck"),
        ("--bench", "card build loaded bench"),
    ],
)
def test_options_choose_stages(tmp_path, option, stages):
    assert [*rehearse(tmp_path, "nothing", "", option)[1]] == stages.split()


def test_an_unknown_stage_is_an_error():
    run = subprocess.run([SCRIPT, "--rehearse", "kernel"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "kernel" in run.stderr
