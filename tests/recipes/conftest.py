"""Where the recipes are, and real images to try them on."""

import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
sys.path.insert(0, str(RECIPES))
torch.set_num_threads(1)  # before any fixture: bits depend on the number of threads


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder that holds cifar10/{train,test}/<class>/*.jpg, real images.

    ABSGD_DATA names a folder with the archives or with what they unpack to; ../shared/data is the
    default. Unpacking failing is a failure: only absent data skip a test.
    """
    source = Path(os.environ.get("ABSGD_DATA", ROOT.parent / "shared" / "data"))
    if (source / "cifar10").is_dir():
        return source
    archive = source / "cifar10-images.tar.zst"
    if not archive.exists():
        pytest.skip(f"no real images: neither {source / 'cifar10'} nor {archive} exists")
    target = tmp_path_factory.mktemp("data")
    subprocess.run(["tar", "--zstd", "-xf", archive, "-C", target], check=True)
    return target


@pytest.fixture(scope="session")
def small_data_dir(data_dir, tmp_path_factory):
    """The same images cut down to 64 of each class to train on and 30 to test on."""
    small = tmp_path_factory.mktemp("small")
    for part, n in (("train", 64), ("test", 30)):
        for folder in sorted((data_dir / "cifar10" / part).iterdir()):
            target = small / "cifar10" / part / folder.name
            target.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:n]:
                (target / image.name).symlink_to(image)
    return small


class Forked:
    """A script as a process of its own, with what is imported already: starting one costs nothing.
    The part of subprocess.Popen that tests use."""

    def __init__(self, script, options, output, preexec_fn=None):
        self.output, self.returncode = output, None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(script, options, preexec_fn)

    def _run(self, script, options, preexec_fn):
        code = 1
        try:
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for stream in (1, 2):
                os.dup2(file, stream)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
            sys.argv, sys.path[0] = [str(script), *options], str(script.parent)
            if preexec_fn:
                preexec_fn()
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code)
                code = 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout=240):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout=240):
        self.wait(timeout)
        return self.output.read_text(), None

    def send_signal(self, number):
        os.kill(self.pid, number)


@pytest.fixture
def no_pictures(monkeypatch):
    """Most of a tiny run's time goes into its plots."""
    from engine import report

    monkeypatch.setattr(report, "plot_run", lambda *_: None)


@pytest.fixture
def recipe(tmp_path_factory):
    """Runs a recipe as a process of its own: recipe("train.py", *options)."""
    started = []

    def run(name, *options, preexec_fn=None):
        output = tmp_path_factory.mktemp("process") / "output"
        started.append(Forked(RECIPES / name, [str(o) for o in options], output, preexec_fn))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
