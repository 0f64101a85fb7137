"""AttentionalLoss: which criterion it takes at its word, what counts, and what it saves."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import torch_absgd as ta
from torch_absgd.weighted_loss import can_weigh_at_once


def batch(seed: int = 0, classes: int = 4) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(10, classes, generator=random, dtype=torch.float64).requires_grad_()
    return logits, torch.randint(classes, (10,), generator=random)


class Doubled(ta.PerSampleCrossEntropy):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 2 * super().forward(input, target)


def hooked() -> ta.PerSampleCrossEntropy:
    loss = ta.PerSampleCrossEntropy()
    loss.register_forward_hook(lambda module, inputs, output: 2 * output)
    return loss


def pre_hooked() -> ta.PerSampleCrossEntropy:
    loss = ta.PerSampleCrossEntropy()
    loss.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0], inputs[1]))
    return loss


def replaced() -> ta.PerSampleCrossEntropy:
    loss = ta.PerSampleCrossEntropy()
    forward = loss.forward
    loss.forward = lambda input, target: 2 * forward(input, target)
    return loss


@pytest.mark.parametrize("make", [Doubled, hooked, pre_hooked, replaced])
def test_a_loss_that_was_changed_is_called(make) -> None:
    logits, target = batch()
    criterion = ta.AttentionalLoss(make(), lam=1.0)
    assert not can_weigh_at_once(criterion.criterion, logits, target, criterion.weigher)
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=1.0)
    expected = opt.weigh(make()(logits, target))
    assert criterion(logits, target).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_global_hook_is_called() -> None:
    logits, target = batch()
    criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=1.0)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not can_weigh_at_once(criterion.criterion, logits, target, criterion.weigher)
    finally:
        handle.remove()
    assert can_weigh_at_once(criterion.criterion, logits, target, criterion.weigher)


@pytest.mark.parametrize("ignored", [[], [0, 3], list(range(10))], ids=["none", "some", "all"])
@pytest.mark.parametrize("ignore_index", [-100, 1])
@pytest.mark.parametrize("shape", [(10,), (10, 3)])
@pytest.mark.parametrize("kind", ["CrossEntropyLoss", "NLLLoss", "PerSampleCrossEntropy"])
def test_ignored_elements_do_not_count(
    kind: str, shape: tuple[int, ...], ignore_index: int, ignored: list[int]
) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 4, *shape[1:], generator=random, dtype=torch.float64).log_softmax(1)
    target = torch.randint(2, 4, shape, generator=random)
    target[ignored] = ignore_index
    options = {"ignore_index": ignore_index}
    base = (
        ta.PerSampleCrossEntropy(**options)
        if kind == "PerSampleCrossEntropy"
        else getattr(nn, kind)(reduction="none", **options)
    )
    criterion = ta.AttentionalLoss(base, lam=0.7)
    total = criterion(logits.requires_grad_(), target)
    losses = nn.functional.nll_loss(logits, target, reduction="none", **options)
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=0.7)
    expected = opt.weigh(losses[target != ignore_index])
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    assert criterion.log_s.item() == pytest.approx(opt.log_s.item(), rel=1e-12, nan_ok=True)
    criterion.eval()
    counted = losses[target != ignore_index]
    mean = counted.mean().item() if counted.numel() else 0.0
    assert criterion(logits, target).item() == pytest.approx(mean, rel=1e-12)


def test_the_state_dict_carries_the_whole_rule() -> None:
    criterion = ta.AttentionalLoss(
        nn.Identity(), 0.5, 0.3, s_init=0.2, alpha=0.7, max_weight=4.0, keep_loss=True
    )
    criterion.weigh(torch.rand(6))
    other = ta.AttentionalLoss(nn.Identity(), lam=ta.EffectiveSampleSize(0.5))
    assert not other.has_loaded_state
    other.load_state_dict(copy.deepcopy(criterion.state_dict()))
    assert other.has_loaded_state
    losses = torch.rand(5)
    assert criterion.weigh(losses) == other.weigh(losses)
    assert torch.equal(criterion.log_s, other.log_s)
    assert other.weigher.state.entries().keys() == criterion.weigher.state.entries().keys()


def old_state(criterion: ta.AttentionalLoss) -> dict[str, Tensor]:
    """As it was before the rule's constants were saved and the reports grew."""
    state = criterion.state_dict()
    del state["attention.rule"]
    state["attention.reports"] = state["attention.reports"][:, :7]
    return state


def test_older_state_dicts_load() -> None:
    criterion = ta.AttentionalLoss(nn.Identity(), 0.5, 0.3)
    criterion.weigh(torch.rand(6))
    fresh = ta.AttentionalLoss(nn.Identity(), 2.0, 0.3)
    fresh.load_state_dict(old_state(criterion))
    assert fresh.lam == 0.5 and fresh.weigher.state.gamma == 0.3
    assert fresh.stats().mean == criterion.stats().mean
    untouched = ta.AttentionalLoss(nn.Identity(), 0.5)
    fresh.load_state_dict(old_state(untouched))
    assert math.isnan(fresh.stats().mean.kappa)


def test_an_older_rule_without_an_answer_read_nan() -> None:
    criterion = ta.AttentionalLoss(nn.Identity(), ta.EffectiveSampleSize(0.5, noisy=True))
    state = criterion.state_dict()
    state["attention.lam"] = torch.tensor(math.nan, dtype=torch.float64)
    criterion.load_state_dict(state)
    assert criterion.lam.item() == -math.inf


@pytest.mark.parametrize("damage", ["lam", "reports", "rule"])
def test_a_bad_state_dict_changes_nothing(damage: str) -> None:
    criterion = ta.AttentionalLoss(nn.Identity(), 0.5)
    criterion.weigh(torch.rand(6))
    before = copy.deepcopy(criterion.state_dict())
    bad = copy.deepcopy(before)
    bad["attention." + damage] = torch.zeros(5, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="attention"):
        criterion.load_state_dict(bad)
    torch.testing.assert_close(criterion.state_dict(), before, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("lam", [math.inf, 0.5])
@pytest.mark.parametrize("average", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}])
def test_an_averaged_model_leaves_the_rule_alone(lam: float, average: dict) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model.loss = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=lam)
    averaged = AveragedModel(model, use_buffers=True, **average)
    x, y = torch.randn(8, 4), torch.randint(4, (8,))
    for _ in range(3):
        model.loss(model[1](model[0](x)), y)
        averaged.update_parameters(model)
    inner = averaged.module.loss
    assert inner.lam.item() == lam
    assert inner(inner.criterion.__class__ and torch.randn(8, 4), y).isfinite()
    assert all(b.isfinite().all() for b in averaged.module.buffers())


def test_its_state_is_no_buffer() -> None:
    """DDP would overwrite a local rule's with rank 0's."""
    criterion = ta.AttentionalLoss(nn.Identity(), 0.5, process_group="local")
    assert not list(criterion.buffers())
    weighted = ta.AttentionalLoss(nn.Identity(), 0.5, class_weight=torch.ones(3))
    assert [name for name, _ in weighted.named_buffers()] == ["class_weight"]
    assert weighted.half().class_weight.dtype is torch.float32


def test_lam_and_log_s_are_copies() -> None:
    criterion = ta.AttentionalLoss(nn.Identity(), 0.5)
    opt = ta.ABSGD([nn.Parameter(torch.zeros(1))], lam=0.5)
    for owner in (criterion, opt):
        owner.weigh(torch.rand(4))
        log_s = owner.log_s.item()
        owner.lam.fill_(7.0)
        owner.log_s.fill_(7.0)
        assert owner.lam.item() == 0.5 and owner.log_s.item() == log_s


BAD = [
    ({"class_weight": [1.0]}, TypeError, "class_weight must be a tensor of class weights"),
    ({"class_weight": torch.ones(2, 2)}, ValueError, r"class_weight must have shape \(C\)"),
    (
        {"class_weight": torch.tensor([1.0, -1.0])},
        ValueError,
        "class_weight must be finite and ≥ 0",
    ),
    ({"class_weight": torch.tensor([math.nan])}, ValueError, "class_weight must be finite and ≥ 0"),
    ({"max_weight": 0.5}, ValueError, r"Invalid max_weight value: 0.5 \(must be finite and ≥ 1"),
    ({"max_weight": math.inf}, ValueError, "Invalid max_weight value: inf"),
    ({"max_weight": "2"}, TypeError, "max_weight must be a number"),
    ({"keep_loss": 2}, ValueError, "Invalid keep_loss value: 2"),
    ({"keep_loss": "yes"}, ValueError, "Invalid keep_loss value: 'yes'"),
]


@pytest.mark.parametrize("arguments, error, message", BAD)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), **arguments)
    if "class_weight" not in arguments:
        with pytest.raises(error, match=message):
            ta.ABSGD([nn.Parameter(torch.zeros(1))], **arguments)


BAD_CALLS = [
    ({"weight": torch.ones(3)}, ValueError, r"weight must have the losses' shape \(10,\)"),
    ({"weight": torch.ones(10, dtype=torch.int64)}, TypeError, "weight must be a floating-point"),
    ({"weight": -torch.ones(10)}, ValueError, "weight must be finite and ≥ 0, got -1.0"),
    ({"weight": torch.full((10,), math.inf)}, ValueError, "weight must be finite and ≥ 0, got inf"),
    ({"mask": torch.ones(10)}, TypeError, "mask must be a bool tensor"),
    ({"mask": torch.ones(3, dtype=torch.bool)}, ValueError, "mask must have the losses' shape"),
]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("arguments, error, message", BAD_CALLS)
def test_bad_calls(ours: bool, arguments: dict, error: type[Exception], message: str) -> None:
    base = ta.PerSampleCrossEntropy() if ours else nn.CrossEntropyLoss(reduction="none")
    criterion = ta.AttentionalLoss(base, 0.5)
    before = copy.deepcopy(criterion.state_dict())
    with pytest.raises(error, match=message):
        criterion(*batch(), **arguments)
    torch.testing.assert_close(criterion.state_dict(), before, equal_nan=True)


@pytest.mark.parametrize("ours", [True, False])
def test_class_weights_must_fit(ours: bool) -> None:
    base = ta.PerSampleCrossEntropy() if ours else nn.CrossEntropyLoss(reduction="none")
    criterion = ta.AttentionalLoss(base, 0.5, class_weight=torch.ones(3))
    with pytest.raises((ValueError, RuntimeError), match="class_weight"):
        criterion(*batch(classes=5))


def test_torch_s_checkpoint_tools_find_it_in_a_model() -> None:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    def model() -> nn.Module:
        criterion = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=1.0)
        return nn.ModuleDict({"network": nn.Linear(3, 4), "criterion": criterion})

    ours, other = model(), model()
    ours["criterion"](*batch())
    set_model_state_dict(other, get_model_state_dict(ours))
    assert other["criterion"].log_s.isfinite()
    assert torch.equal(other["criterion"].log_s, ours["criterion"].log_s)
    with pytest.raises(AttributeError):
        ours["criterion"].attention.nothing  # noqa: B018


@pytest.mark.parametrize("lam", [0.5, ta.EffectiveSampleSize(0.5)])
def test_lam_set_in_a_parameter_group_is_in_force_at_once(lam: Any) -> None:
    opts = [ta.ABSGD([torch.zeros(1, requires_grad=True)], lr=0.1, lam=5.0) for _ in range(2)]
    criteria = [ta.AttentionalLoss(ta.PerSampleCrossEntropy(), optimizer=opt) for opt in opts]
    opts[0].param_groups[0]["lam"] = lam
    opts[1].lam = lam
    totals = [criterion(*batch()) for criterion in criteria]
    assert torch.equal(*totals)
    assert torch.equal(opts[0].lam, opts[1].lam) and opts[0].lam_rule == opts[1].lam_rule


def test_class_weights_without_memory_can_be_given_it() -> None:
    with torch.device("meta"):
        module = ta.AttentionalLoss(
            ta.PerSampleCrossEntropy(weight=torch.ones(4)), class_weight=torch.ones(4)
        )
    module.to_empty(device="cpu")
    assert not any(b.is_meta for b in module.buffers())


def test_a_compiled_criterion_ignores_what_it_ignores() -> None:
    logits, y = batch()
    y[::2] = -100
    totals = []
    for criterion in (nn.CrossEntropyLoss(reduction="none"),) * 2:
        if totals:
            criterion = torch.compile(criterion, backend="eager")
        ours = ta.AttentionalLoss(criterion, lam=1.0)
        totals.append(ours(logits, y))
        assert ours.stats().last.count == 5
    assert torch.equal(*totals)


def test_shared_memory_is_all_of_the_state_s() -> None:
    criterion = ta.AttentionalLoss(ta.PerSampleCrossEntropy(), lam=1.0).share_memory()
    assert all(t.is_shared() for t in criterion.state_dict().values() if t.numel() == 1)
