"""Alarms and the advice at a run's end, on results made by hand."""

import math

import pytest

from engine import ending

CONFIG = {"batch_size": 128, "optimizer": "absgd", "lam": 5.0, "lam_start": math.inf,
          "epochs": 4, "stage_two": 3, "class_balance": "none", "method": None}  # fmt: skip


def ended(share, balanced=0.5, **config):
    """(alarms, advice) of a run on ten classes of a hundred samples."""
    metrics = {"balanced": balanced, "per_class": [balanced] * 10, "many": None, "medium": 0.5,
               "few": None}  # fmt: skip
    results = {"config": CONFIG | config, "metrics": metrics, "class_counts": [100] * 10,
               "evaluated": 1000, "split": "test"}  # fmt: skip
    records = [{"split": "train", "ess": share}]
    return ending.alarms(results, records), ending.advice(results, records)


def spread_out(**config):
    """The advice to a run whose frequent classes are far above the rare ones."""
    metrics = {"balanced": 0.6, "per_class": [0.6] * 10, "many": 0.9, "medium": 0.6, "few": 0.3}
    results = {"config": CONFIG | config, "metrics": metrics, "class_counts": [100] * 10,
               "evaluated": 1000, "split": "test"}  # fmt: skip
    return ending.advice(results, [{"split": "train", "ess": 0.8}])


def test_class_counts_are_advised_once_and_weights_for_wrong_labels():
    assert spread_out(optimizer="sgd").startswith("--method la-post (")
    assert spread_out().startswith("--method la-post-absgd (")
    for used in ({"method": "la"}, {"method": "crt"}, {"class_balance": "cb"}):
        advice = spread_out(optimizer="sgd", **used)
        assert advice.startswith("--validate 0.1 with other values of --lr and --weight-decay")
    assert "--lam ess:0.8:noisy" in ended(1.0, optimizer="sgd")[1]
    assert "other values of --lam" in ended(0.8)[1]


def test_whether_stage_two_began_is_asked_first():
    assert "stage two, which is at --lam, did not begin" in ended(1.0, stage_two=4)[1]
    assert "smaller |--lam| than 5.0" in ended(1.0)[1]
    assert "smaller |--lam| than 5.0" in ended(1.0, stage_two=4, lam_start=5.0)[1]


@pytest.mark.parametrize(
    ("share", "balanced", "size", "is_collapse"),
    [(0.05, 0.1, 128, True), (0.05, 0.5, 128, False), (0.6, 0.1, 128, False),
     (0.01, 0.5, 128, True), (math.nan, 0.5, 128, True)],
)  # fmt: skip
def test_a_collapse_is_seen_above_two_samples(share, balanced, size, is_collapse):
    _, advice = ended(share, balanced, batch_size=size)
    assert advice.startswith("a larger |--lam|, or --lam ess:0.8 --keep-loss") == is_collapse


def test_a_batch_of_one_or_two_says_nothing_of_a_collapse():
    for size, share in ((1, 1.0), (2, 0.6), (2, 1.0)):
        alarms, advice = ended(share, batch_size=size)
        assert alarms == [] and "a larger" not in advice
    assert "all but equal" not in ended(1.0, batch_size=1)[1]
    assert "collapsed: 1.5 samples of a batch of 3" in ended(0.5, batch_size=3)[0][0]
