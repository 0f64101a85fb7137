"""Where the recipes are, and real images to try them on."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from forked import Forked, script

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
        function = script(RECIPES / name, [str(o) for o in options])
        started.append(Forked(function, output, preexec_fn))
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
