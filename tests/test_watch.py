"""The one warning: early, when selective weights begin, and never for a run that is fine."""

import copy
import math
import pickle
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

import torch_absgd as ta
from torch_absgd.watch import LOOK, MISSED


def make(lam: object, **rule: object) -> ta.ABSGD:
    return ta.ABSGD([torch.zeros(1, requires_grad=True)], lam=lam, **rule)


def weigh(opt: ta.ABSGD, losses: Tensor, batches: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(batches):
            opt.weigh(losses)
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


SKEWED = torch.linspace(0, 1, 32) ** 4 * 6


def test_warns_once_and_early() -> None:
    opt = make(0.05)
    assert weigh(opt, SKEWED, LOOK - 1) == []
    (message,) = weigh(opt, SKEWED, 5)
    share = opt.stats().last.effective_samples / 32
    assert f"was {share:.2g} of a batch" in message
    assert "EffectiveSampleSize(0.8)" in message and "keep_loss=True" in message
    q = (SKEWED.double() / float(message.split("λ = ")[1].split(",")[0])).exp()
    assert (q.sum() ** 2 / q.square().sum()).item() / 32 == pytest.approx(0.8, abs=0.03)
    opt.lam = 0.04
    assert weigh(opt, SKEWED, 50) == []


def test_losses_that_fall_or_that_few_samples_have_are_fine() -> None:
    falling = [SKEWED * 0.9**i for i in range(LOOK)]
    rare = torch.cat([torch.zeros(30), torch.full((2,), 0.3)])  # the mean is far below λ
    for batches, is_warned in ((falling, False), (falling[::-1], True), ([rare] * LOOK, False)):
        opt = make(0.05)
        messages = [message for batch in batches for message in weigh(opt, batch, 1)]
        assert len(messages) == is_warned


def test_warns_when_a_schedule_sets_a_small_lam() -> None:
    opt = make(math.inf)
    assert weigh(opt, SKEWED, 3 * LOOK) == []
    opt.restart(0.05)
    assert len(weigh(opt, SKEWED, LOOK)) == 1


@pytest.mark.parametrize(
    "rule",
    [
        {"lam": 50.0},
        {"lam": math.inf},
        {"lam": 0.05, "keep_loss": True, "max_weight": 3.0},
        {"lam": ta.EffectiveSampleSize(0.8)},
        {"lam": ta.EffectiveSampleSize(0.8), "keep_loss": True},
        {"lam": -5.0},
    ],
    ids=str,
)
def test_does_not_warn_where_training_is_fine(rule: dict) -> None:
    assert weigh(make(**rule), SKEWED, 2 * LOOK) == []


def test_module_and_accumulation_are_watched_too() -> None:
    criterion = ta.AttentionalLoss(lambda losses, _: losses, 0.05)
    with pytest.warns(UserWarning, match="training often collapses"):
        for _ in range(LOOK):
            criterion(SKEWED, None)
    opt = make(0.05)
    p = opt.param_groups[0]["params"][0]
    with pytest.warns(UserWarning, match="training often collapses"):
        for _ in range(LOOK):
            for part in SKEWED.split(16):
                with opt.accumulate():
                    opt.weigh(part + p).backward()
            opt.step()
            opt.zero_grad()


def test_says_which_classes_negative_lam_gives_up() -> None:
    torch.manual_seed(0)
    criterion = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=-0.2)
    target = torch.arange(12) % 3
    logits = nn.functional.one_hot(target, 3) * 3.0
    logits[target == 2] = torch.tensor([3.0, 0.0, -3.0])  # class 2 is not learned yet
    with pytest.warns(UserWarning, match=r"gives class\(es\) \[2\] less than 5%"):
        for _ in range(LOOK):
            criterion(logits + 0.1 * torch.randn(12, 3), target)


@pytest.mark.parametrize("case", ["ignored", "masked", "weight", "class_weight", "none"])
@pytest.mark.parametrize("base", [ta.PerSampleCrossEntropy, nn.CrossEntropyLoss])
def test_a_class_that_does_not_count_is_not_given_up(case: str, base: type[nn.Module]) -> None:
    target = torch.arange(16) % 4
    last = target == 3
    logits = nn.functional.one_hot(target, 4) * 3.0
    logits[last] = torch.tensor([3.0, 0.0, 0.0, -3.0])  # class 3 is not learned yet
    ours = base is ta.PerSampleCrossEntropy
    criterion = ta.AttentionalLoss(
        base(ignore_index=255) if ours else base(ignore_index=255, reduction="none"),
        lam=-0.2,
        class_weight=torch.tensor([1.0, 1.0, 1.0, 0.0]) if case == "class_weight" else None,
    )
    if case == "ignored":
        target = target.masked_fill(last, 255)
    given = {"masked": {"mask": ~last}, "weight": {"weight": (~last).float()}}.get(case, {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(LOOK):
            criterion(logits, target, **given)
    named = [w for w in caught if "gives class(es) [3]" in str(w.message)]
    assert len(named) == (case == "none")


def test_a_bad_or_an_empty_batch_does_not_end_the_watch() -> None:
    for first in (torch.full((32,), math.nan), SKEWED[:0]):
        opt = make(0.05)
        assert weigh(opt, first, 1) == []
        assert len(weigh(opt, SKEWED, LOOK)) == 1
    assert weigh(make(0.05), torch.full((32,), math.nan), LOOK) == []


def test_a_copy_watches_batches_of_its_own() -> None:
    criterion = ta.AttentionalLoss(nn.Identity(), 0.05)
    criterion.weigh(SKEWED)
    criterion.weigher.watch.arrived = threading.Lock()  # like a device's event, not to be copied
    for made in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        with pytest.warns(UserWarning, match="training often collapses"):
            for _ in range(LOOK):
                made.weigh(SKEWED)


def test_a_small_last_batch_is_none_to_warn_of() -> None:
    opt = make(ta.EffectiveSampleSize(0.8))
    assert [*weigh(opt, SKEWED, 3), *weigh(opt, SKEWED[:1], 1)] == []
    assert len(weigh(make(ta.EffectiveSampleSize(0.8)), SKEWED[:1], 3)) == 1


def test_says_that_a_radius_cannot_be_reached() -> None:
    opt = make(ta.KLRadius(5.0))
    (message,) = weigh(opt, SKEWED, 30)
    assert "KLRadius" in message and "32" in message
    assert weigh(make(ta.KLRadius(1.0)), SKEWED, 5) == []


def steps(opt: ta.ABSGD, n: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(n):
            opt.param_groups[0]["params"][0].grad = torch.ones(1)
            opt.step()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("lam", [1.0, -1.0, ta.EffectiveSampleSize(0.8)])
def test_says_that_nobody_weighs(lam: object) -> None:
    opt = make(lam)
    assert steps(opt, MISSED - 1) == []
    (message,) = steps(opt, 5)
    assert "no batch was weighed" in message
    opt = make(lam)
    opt.weigh(SKEWED)
    assert steps(opt, 2 * MISSED) == [] == steps(make(math.inf), 2 * MISSED)
