"""--compile: a run that stopped and went on ends with the bits of one that did not."""

import pytest

import train
from runs import assert_same_run

FLAGS = ["--data", "digits", "--compile", "--epochs", "3", "--stage-two", "1", "--lr-milestones",
         "2", "--warmup-epochs", "0", "--lam", "1", "--device", "cpu", "--keep-going"]  # fmt: skip


@pytest.mark.usefixtures("no_pictures")
def test_a_compiled_run_resumes(tmp_path):
    whole = [*FLAGS, "--output-dir", str(tmp_path / "whole")]
    parts = [*FLAGS, "--output-dir", str(tmp_path / "parts")]
    assert train.main(whole)["config"]["compile"]
    train.main([*parts, "--stop-epoch", "2"])
    train.main([*parts, "--resume"])
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
