"""Forward passes that must not take the batch in: `frozen`, and activation checkpointing."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torch_absgd as ta


def make(lam: object = 0.5, **rule: object) -> ta.ABSGD:
    return ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=lam, **rule)


def state(opt: ta.ABSGD) -> list[Tensor]:
    rule = opt.weigher.state
    return [getattr(rule, name).clone() for name in ("lam", "log_s", "log_s_lam", "reports")]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(7), y.nan_to_num(7)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("lam", [0.5, ta.EffectiveSampleSize(0.6)])
@pytest.mark.parametrize("begun", [False, True])
def test_frozen_weighs_as_ever_and_changes_nothing(lam: object, begun: bool) -> None:
    opt, twin = make(lam), make(lam)
    if begun:
        for o in (opt, twin):
            o.weigh(torch.linspace(0, 2, 9))
    before = state(opt)
    losses = torch.linspace(0, 3, 7)
    with opt.frozen():
        total = opt.weigh(losses)
    assert same(state(opt), before)
    assert total == twin.weigh(losses) and torch.equal(opt.weights, twin.weights)
    opt.weigh(losses)
    assert same(state(opt), state(twin))


def test_frozen_at_once() -> None:
    criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=0.5)
    logits, target = torch.randn(6, 3, requires_grad=True), torch.randint(3, (6,))
    criterion(logits, target)
    before = copy.deepcopy(criterion.state_dict())
    with criterion.frozen():
        criterion(logits + 1, target)
    torch.testing.assert_close(criterion.state_dict(), before, rtol=0, atol=0, equal_nan=True)


class Model(nn.Module):
    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.criterion = nn.Linear(5, 3), criterion

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.criterion(self.body(x), y)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("lam", [0.5, ta.EffectiveSampleSize(0.6)])
@pytest.mark.parametrize("ours", [True, False])
def test_activation_checkpointing_takes_a_batch_in_once(
    use_reentrant: bool, lam: object, ours: bool
) -> None:
    base = ta.PerSampleCrossEntropy() if ours else nn.CrossEntropyLoss(reduction="none")
    model, plain = (Model(ta.AttentionalLoss(copy.deepcopy(base), lam)) for _ in range(2))
    for _ in range(3):
        x, y = torch.randn(8, 5, requires_grad=True), torch.randint(3, (8,))
        for m in (model, plain):
            m.zero_grad()
        checkpoint(model, x, y, use_reentrant=use_reentrant).backward()
        plain(x, y).backward()
        torch.testing.assert_close(model.body.weight.grad, plain.body.weight.grad)
        torch.testing.assert_close(
            model.criterion.state_dict(),
            plain.criterion.state_dict(),
            rtol=1e-6,
            atol=0,
            equal_nan=True,
        )
        assert model.criterion.stats().mean.batches == plain.criterion.stats().mean.batches


def test_checkpointing_another_batch_than_the_last_is_an_error() -> None:
    model = Model(ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), 0.5))
    x, y = torch.randn(8, 5, requires_grad=True), torch.randint(3, (8,))
    first = checkpoint(model, x, y, use_reentrant=False)
    model(3 * x, y)
    with pytest.raises(RuntimeError, match="weigh\\(\\) outside the checkpointed function"):
        first.backward()


def test_only_the_weights_stay_alive() -> None:
    import gc
    import weakref

    opt = make()
    losses = torch.rand(64, requires_grad=True) * 1
    mask = torch.ones(64, dtype=torch.bool)
    total = opt.weigh(losses, mask, torch.ones(64))
    kept = [weakref.ref(t) for t in (losses, mask, total)]
    del losses, mask, total
    gc.collect()
    assert [r() for r in kept] == [None] * 3
