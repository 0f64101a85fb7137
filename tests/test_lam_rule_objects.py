"""The rules for λ as objects: what they print, compare to, are saved as and refuse."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

from torch_absgd import EffectiveSampleSize, KLRadius
from torch_absgd.lam_rules import LamRule, unreachable

CPU = torch.device("cpu")
RULES = {
    "EffectiveSampleSize(0.8)": EffectiveSampleSize(0.8),
    "EffectiveSampleSize(0.123456789, noisy=True)": EffectiveSampleSize(0.123456789, True),
    "KLRadius(0.5, rate=0.25, low=0.001, high=10.0)": KLRadius(0.5, rate=0.25, low=1e-3, high=10.0),
    "KLRadius(2.0, noisy=True)": KLRadius(2.0, noisy=True),
}


@pytest.mark.parametrize("text", RULES)
def test_a_rule_is_what_its_text_its_row_and_its_pickle_say(text: str) -> None:
    rule = RULES[text]
    assert repr(rule) == text
    assert eval(text) == rule
    assert LamRule.from_tensor(rule.to_tensor(CPU)) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert [other for other in RULES.values() if other == rule] == [rule]
    assert len({hash(other) for other in RULES.values()}) == len(RULES)


def test_a_row_of_zeros_is_no_rule_and_a_strange_one_is_refused() -> None:
    assert LamRule.from_tensor(torch.zeros(6)) is None
    row = EffectiveSampleSize(0.8).to_tensor(CPU)
    for index, value in ((0, 3.0), (2, 0.5), (1, 1.5), (5, math.inf)):
        strange = row.clone()
        strange[index] = value
        with pytest.raises(ValueError, match="Invalid"):
            LamRule.from_tensor(strange)
    with pytest.raises(ValueError, match="Invalid row"):
        LamRule.from_tensor(row[:5])


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_without_an_answer_lam_is_plain_sgd_of_its_sign(rule: LamRule) -> None:
    assert rule.initial_lam == (-math.inf if rule.noisy else math.inf)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_selectivity_is_signed_and_leads_back(rule: LamRule) -> None:
    assert (rule.selectivity < 0) == rule.noisy
    again = rule.with_selectivity(rule.selectivity)
    assert again.target == pytest.approx(rule.target, rel=1e-15)
    assert (again.noisy, again.rate, again.low, again.high) == (
        rule.noisy,
        rule.rate,
        rule.low,
        rule.high,
    )


@pytest.mark.parametrize("rule", [EffectiveSampleSize, KLRadius])
@pytest.mark.parametrize("high", [math.inf, math.nan, 1e-12, "1"])
def test_high_must_be_finite_and_above_low(rule: type[LamRule], high: float) -> None:
    with pytest.raises((ValueError, TypeError), match=r"high .*finite and > low = 1e-12"):
        rule(0.5, high=high)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Invalid low value: inf .*finite and > 0"):
        rule(0.5, low=math.inf)  # type: ignore[arg-type]


def reach(kind: str, batch_size: int) -> float:
    """What weights on a single sample of ``batch_size`` measure, from the definition."""
    q = torch.zeros(batch_size, dtype=torch.float64)
    q[0] = 1
    if kind == "ess":
        return float(1 / (batch_size * q.square().sum()))
    return float(torch.special.xlogy(q, q * batch_size).sum())


@pytest.mark.parametrize("batch_size", [1, 2, 7, 128])
def test_unreachable_at_and_beyond_what_one_sample_has(batch_size: int) -> None:
    radius, fraction = reach("kl", batch_size), reach("ess", batch_size)
    sentence = unreachable(KLRadius(max(radius, 1e-9)), batch_size)
    assert sentence is not None
    assert f"batches of {batch_size}" in sentence and "smaller radius" in sentence
    if batch_size == 1:
        assert unreachable(EffectiveSampleSize(0.99), 1)
        return
    assert unreachable(KLRadius(radius * 0.999), batch_size) is None
    assert unreachable(EffectiveSampleSize(fraction * 1.001), batch_size) is None
    sentence = unreachable(EffectiveSampleSize(fraction), batch_size)
    assert sentence is not None and "larger fraction" in sentence


def test_an_empty_batch_says_nothing() -> None:
    assert unreachable(KLRadius(5.0), 0) is None
