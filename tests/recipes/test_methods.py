"""Every --method trains on digits, begins with SGD's stage one, and resumes bit by bit."""

import pytest
import torch

import train
from baselines import meta
from baselines.methods import METHODS
from engine import checkpoint, report
from runs import assert_same_run, break_off
from studies import runs

pytestmark = pytest.mark.usefixtures("no_pictures")

DIGITS = ["--data", "digits", "--imbalance", "lt", "--imbalance-ratio", "20", "--epochs", "3",
          "--stage-two", "1", "--lr-milestones", "1", "--lr-factor", "0.5", "--warmup-epochs", "0",
          "--batch-size", "64", "--lr", "0.1", "--device", "cpu", "--lam", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("stage_one")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name, shared, tmp_path):
    results = runs.run([*DIGITS, "--method", name], tmp_path, shared)
    assert 0.05 < results["metrics"]["overall"] < 1
    assert results["config"]["method"] == name
    held = 2 if METHODS[name].held_out else 0  # of the rarest class's five
    assert results["class_counts"][-1] == 5 - held


def test_methods_share_stage_one(shared):
    """SGD's, with CE, with LDAM and with focal; logit adjustment's two; META's; each sampling's."""
    names = sorted(path.name.rsplit("-", 1)[0] for path in shared.iterdir())
    assert names.count("digits-ldam-seed0") == names.count("digits-focal-seed0") == 1
    assert names.count("digits-ce-seed0") == 1 + 2 + 1 + 3


@pytest.mark.parametrize("name", ["meta", "recover", "crt", "lws", "term", "la-absgd"])
def test_a_method_that_broke_off_ends_with_the_same_bits(name, tmp_path):
    flags = [*DIGITS, "--method", name, "--checkpoint-every", "1", "--output-dir"]
    train.main([*flags, str(tmp_path / "whole")])
    broken = [*flags, str(tmp_path / "broken"), "--resume"]
    stops = {"recover": (2, 0)}  # its step is not the loop's
    if name in stops:
        train.main([*broken, "--stop-epoch", "2"])
    else:
        break_off(train.main, broken, at=(2, 2))
    train.main(broken)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_post_hoc_methods_change_the_classifier_alone(shared, tmp_path):
    plain = [*DIGITS, "--method", "sgd"]
    runs.run(plain, tmp_path / "sgd", shared)
    for name in ("tau-norm", "la-post", "ncm"):
        results = runs.run([*DIGITS, "--method", name], tmp_path / name, shared)
        ours, sgd = (checkpoint.load(tmp_path / n / "checkpoint.pt") for n in (name, "sgd"))
        assert all(torch.equal(ours["model"][k], v) for k, v in sgd["model"].items())
        few = results["metrics"]["few"]
        assert few is not None and report.line(results["metrics"])


@pytest.mark.parametrize("loss", ["ce", "focal", "ldam"])
def test_metas_losses_are_the_fused_ones(loss):
    import torch_absgd as ta

    counts = [50, 10, 4]
    fused = {"ce": ta.PerSampleCrossEntropy(), "focal": ta.PerSampleFocal(1.5),
             "ldam": ta.PerSampleLDAM(counts)}[loss]  # fmt: skip
    logits, y = torch.randn(16, 3), torch.arange(16) % 3
    composed = meta.twice_differentiable(loss, counts, 1.5)
    torch.testing.assert_close(composed(logits, y), fused(logits, y), rtol=1e-4, atol=1e-5)


def test_a_run_with_other_options_is_not_read(shared, tmp_path):
    runs.run([*DIGITS, "--method", "sgd"], tmp_path, shared)
    with pytest.raises(ValueError, match="weight_decay"):
        runs.run([*DIGITS, "--method", "sgd", "--weight-decay", "0.1"], tmp_path, shared)


def test_a_run_from_a_shared_stage_one_is_the_run_alone(shared, tmp_path):
    words = [*DIGITS, "--method", "cb-absgd"]
    runs.run(words, tmp_path / "shared", shared)
    train.main([*words, "--output-dir", str(tmp_path / "alone")])
    assert_same_run(tmp_path / "shared", tmp_path / "alone")
