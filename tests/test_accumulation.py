"""Gradient accumulation: k micro-batches make, exactly, the step of one large batch."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_absgd import ABSGD, AttentionalLoss

LAMS = [0.1, 1.0, -0.5, math.inf]
SIZES = (5, 1, 8, 2)  # of the micro-batches


class Problem:
    """A linear regression whose batches jump in scale, so that log_c has to be raised."""

    def __init__(self, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64)

        self.w = normal(3).requires_grad_()
        self.batches = []
        for scale in (1.0, 0.3, 4.0, 1.0):
            x = normal(sum(SIZES), 3) * scale
            x[5:6] *= 3  # a sudden jump within the batch
            self.batches.append((x.split(SIZES), normal(sum(SIZES)).split(SIZES)))

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ self.w - y).abs()


def assert_same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)


def large_batches(problem: Problem, opt: torch.optim.Optimizer, weigh: Callable) -> None:
    for xs, ys in problem.batches:
        opt.zero_grad()
        weigh(problem.losses(torch.cat(xs), torch.cat(ys))).backward()
        opt.step()


@pytest.mark.parametrize("divisor", [1, 4, 2.5])
@pytest.mark.parametrize("s_init", [None, 0.0, 1e-6])
@pytest.mark.parametrize("lam", LAMS)
def test_micro_batches_are_the_large_batch(
    lam: float, s_init: float | None, divisor: float
) -> None:
    options = {"lr": 0.01, "momentum": 0.9, "lam": lam, "s_init": s_init}
    one, many = Problem(), Problem()
    large, opt = ABSGD([one.w], **options), ABSGD([many.w], **options)
    for (xs, ys), batch in zip(many.batches, one.batches, strict=True):
        one.batches = [batch]
        large_batches(one, large, large.weigh)
        opt.zero_grad()
        for x, y in zip(xs, ys, strict=True):
            with opt.accumulate(divisor=divisor):
                (opt.weigh(many.losses(x, y)) / divisor).backward()
        log_s = opt.log_s.clone()
        opt.step()
        assert math.isinf(lam) or not torch.equal(opt.log_s, log_s)
        assert_same(many.w.grad, one.w.grad)
        assert_same(many.w, one.w)
        assert_same(opt.log_s, large.log_s)
        last, expected = opt.stats().last, large.stats().last
        assert list(last) == pytest.approx(list(expected), rel=1e-12)


def test_log_c_is_raised_before_weights_overflow() -> None:
    """Losses that grow by 10,000: provisional weights of exp(1e5) would be infinite."""
    p, q = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    large, opt = ABSGD([p], lam=0.1), ABSGD([q], lam=0.1)
    scales = torch.tensor([1.0, 10.0, 1e4, 2.0], dtype=torch.float64)
    large.weigh(p * scales).backward()
    for scale in scales:
        with opt.accumulate():
            opt.weigh(q * scale).backward()
        assert q.grad.isfinite()
    opt.finalize_grads_()
    assert_same(q.grad, p.grad)
    assert_same(opt.log_s, large.log_s)


@pytest.mark.parametrize("lam", LAMS)
def test_masks_and_empty_micro_batches(lam: float) -> None:
    p, q = (torch.ones(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scales = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5, 0.1], dtype=torch.float64)
    mask = torch.tensor([False, False, True, False, True, True])
    large, opt = ABSGD([p], lam=lam), ABSGD([q], lam=lam)
    large.weigh(p * scales, mask).backward()
    for part in (slice(0, 2), slice(2, 4), slice(4, 4), slice(4, 6)):
        with opt.accumulate():
            opt.weigh((q * scales)[part], mask[part]).backward()
    opt.finalize_grads_()
    assert_same(q.grad, p.grad)
    assert_same(opt.log_s, large.log_s)


def test_only_empty_micro_batches_change_nothing() -> None:
    opt = ABSGD([torch.ones(2, requires_grad=True)], lam=1.0)
    with opt.accumulate():
        opt.weigh(opt.param_groups[0]["params"][0][:0]).backward()
    opt.finalize_grads_()
    assert opt.log_s.isnan() and torch.equal(opt.param_groups[0]["params"][0].grad, torch.zeros(2))


@pytest.mark.parametrize("lam", LAMS)
def test_attentional_loss_with_adam(lam: float) -> None:
    one, many = Problem(), Problem()
    large, criterion = (AttentionalLoss(lambda losses, _: losses, lam=lam) for _ in range(2))
    large_batches(one, torch.optim.Adam([one.w], lr=0.01), large.weigh)
    opt = torch.optim.Adam([many.w], lr=0.01)
    for xs, ys in many.batches:
        opt.zero_grad()
        for x, y in zip(xs, ys, strict=True):
            with criterion.accumulate([many.w]):
                criterion(many.losses(x, y), None).backward()
        criterion.finalize_grads_()
        opt.step()
    assert_same(many.w, one.w)
    assert_same(criterion.log_s, large.log_s)


def test_half_precision_and_sparse_gradients() -> None:
    embedding = nn.Embedding(6, 2, sparse=True)
    opt = ABSGD(embedding.parameters(), lam=0.5)
    index = torch.tensor([0, 3, 3, 5])
    opt.weigh(embedding(index).square().sum(1)).backward()
    expected = embedding.weight.grad.to_dense()
    embedding.weight.grad = None
    opt.restart(0.5)
    for part in index.split(1):
        with opt.accumulate():
            opt.weigh(embedding(part).square().sum(1)).backward()
    opt.finalize_grads_()
    torch.testing.assert_close(embedding.weight.grad.to_dense(), expected)


def test_clipping_between_finalize_and_step() -> None:
    one, many = Problem(), Problem()
    options = {"lr": 0.01, "lam": 0.5}
    large, opt = ABSGD([one.w], **options), ABSGD([many.w], **options)
    xs, ys = one.batches[0]
    large.weigh(one.losses(torch.cat(xs), torch.cat(ys))).backward()
    for x, y in zip(xs, ys, strict=True):
        with opt.accumulate():
            opt.weigh(many.losses(x, y)).backward()
    opt.finalize_grads_()
    norms = [nn.utils.clip_grad_norm_([p.w], 0.1).item() for p in (one, many)]
    assert norms[0] > 0.1 and norms[1] == pytest.approx(norms[0], rel=1e-12)
    large.step()
    opt.step()
    assert_same(many.w, one.w)


def accumulated(opt: ABSGD) -> Tensor:
    (p,) = opt.param_groups[0]["params"]
    with opt.accumulate():
        opt.weigh(p * 2).backward()
    return p


def make() -> ABSGD:
    return ABSGD([torch.ones(3, requires_grad=True)], lam=1.0)


def test_weigh_outside_the_context_is_an_error() -> None:
    opt = make()
    p = accumulated(opt)
    with pytest.raises(RuntimeError, match=r"weigh\(\) outside accumulate\(\)"):
        opt.weigh(p * 2)
    opt.finalize_grads_()
    opt.weigh(p * 2)


def test_weigh_before_backward_is_an_error() -> None:
    opt = make()
    (p,) = opt.param_groups[0]["params"]
    with opt.accumulate():
        total = opt.weigh(p * 2)
        with pytest.raises(RuntimeError, match="run the backward pass of each micro-batch"):
            opt.weigh(p * 3)
        total.backward()
        opt.weigh(p * 3).backward()


def test_lam_cannot_change_between_micro_batches() -> None:
    opt = make()
    accumulated(opt)
    for change in (lambda: setattr(opt, "lam", 2.0), lambda: opt.restart(2.0)):
        with pytest.raises(RuntimeError, match="lam cannot change between the micro-batches"):
            change()
    assert opt.lam.item() == 1.0
    opt.step()
    opt.restart(2.0)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_drops_the_accumulation(set_to_none: bool) -> None:
    opt = make()
    p = accumulated(opt)
    opt.zero_grad(set_to_none)
    opt.finalize_grads_()
    assert opt.log_s.isnan()
    opt.weigh(p * 2)
    assert opt.log_s.item() == pytest.approx(2.0)
    opt.restart(1.0)
    with opt.accumulate():  # within the context, it begins anew
        opt.weigh(p * 5).backward()
        opt.zero_grad(set_to_none)
        opt.weigh(p * 3).backward()
    opt.step()
    assert opt.log_s.item() == pytest.approx(3.0)


def test_finalizing_twice_or_never() -> None:
    opt = make()
    opt.finalize_grads_()
    p = accumulated(opt)
    opt.finalize_grads_()
    once = p.grad.clone()
    opt.finalize_grads_()
    opt.step()
    assert torch.equal(p.grad, once)


def test_evaluation_between_micro_batches() -> None:
    opt = make()
    p = accumulated(opt)
    with torch.no_grad():
        assert opt.weigh(p * 7).item() == pytest.approx(7.0)
    opt.finalize_grads_()
    assert opt.log_s.item() == pytest.approx(2.0)


# ---- windows that go wrong: the right result, or an error that says what to call


def exact(sizes: tuple[int, ...], rule: dict, scale: list[float]) -> tuple[Tensor, Tensor]:
    """Gradients of one large batch and of its micro-batches, after a step at other losses."""
    gradients = []
    for accumulates in (False, True):
        p = torch.linspace(0.5, 1.5, sum(sizes), dtype=torch.float32).requires_grad_()
        opt = ABSGD([p], lr=0.0, **rule)
        for factor in scale:
            opt.zero_grad()
            parts = p.split(sizes) if accumulates else [p]
            for part in parts:
                if accumulates:
                    with opt.accumulate():
                        opt.weigh(factor * part).backward(retain_graph=True)
                else:
                    opt.weigh(factor * part).backward()
            opt.step()
        gradients.append(p.grad.clone())
    return gradients[0], gradients[1]


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("guards", [{}, {"keep_loss": True}], ids=str)
@pytest.mark.parametrize("scale", [[12.0, 1.0], [1.0, 12.0], [300.0, 1e-3], [1e-3, 300.0]], ids=str)
def test_losses_that_fall_or_jump_between_steps(
    scale: list[float], guards: dict, gamma: float
) -> None:
    """A stale provisional normaliser used to underflow coefficients and overflow their factor."""
    whole, parts = exact((1, 4, 3), {"lam": 0.1, "gamma": gamma, **guards}, scale)
    assert parts.isfinite().all()
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lam", LAMS)
def test_a_kept_loss_and_a_base_measure_accumulate_exactly(lam: float, weighted: bool) -> None:
    random = torch.Generator().manual_seed(0)
    scales = 3 * torch.rand(9, generator=random, dtype=torch.float64)
    weight = torch.rand(9, generator=random, dtype=torch.float64) if weighted else None
    p, q = (torch.ones(9, dtype=torch.float64, requires_grad=True) for _ in range(2))
    large, opt = (ABSGD([w], lam=lam, keep_loss=True) for w in (p, q))
    for _ in range(3):
        large.zero_grad()
        opt.zero_grad()
        large.weigh(p * scales, weight=weight).backward()
        for part in (slice(0, 2), slice(2, 3), slice(3, 9)):
            with opt.accumulate():
                own = None if weight is None else weight[part]
                opt.weigh((q * scales)[part], weight=own).backward()
        opt.finalize_grads_()
        assert_same(q.grad, p.grad)
        assert_same(opt.log_s, large.log_s)
        assert list(opt.stats().last) == pytest.approx(list(large.stats().last), rel=1e-12)


def test_a_cap_is_taken_against_the_provisional_normaliser() -> None:
    """As documented: the batches' before, or the first micro-batch's own; it is then not raised."""
    scales = torch.tensor([0.1, 0.2, 0.4, 3.0], dtype=torch.float64)
    q = torch.ones(4, dtype=torch.float64, requires_grad=True)
    opt = ABSGD([q], lam=0.5, gamma=0.9, max_weight=2.0)
    log_c = math.log(sum(math.exp(v / 0.5) for v in (0.1, 0.2)) / 2)
    for part in (slice(0, 2), slice(2, 4)):
        with opt.accumulate():
            opt.weigh((q * scales)[part]).backward()
    provisional = torch.exp(scales / 0.5 - log_c).clamp(max=2.0)
    opt.finalize_grads_()
    expected = provisional * scales / 4 * math.exp(log_c - opt.log_s.item())
    torch.testing.assert_close(q.grad, expected, rtol=1e-12, atol=0)


def test_parameters_of_other_optimizers_are_scaled_too() -> None:
    results = []
    for accumulates in (False, True):
        torch.manual_seed(0)
        backbone, head = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()
        opt, other = ABSGD(head.parameters(), lam=0.5), torch.optim.Adam(backbone.parameters())
        x = torch.randn(6, 3, dtype=torch.float64)
        parts = x.split([1, 3, 2]) if accumulates else [x]
        for part in parts:
            losses = head(backbone(part)).square().squeeze(1)
            if accumulates:
                with opt.accumulate(params=backbone.parameters()):
                    opt.weigh(losses).backward()
            else:
                opt.weigh(losses).backward()
        opt.step()
        other.step()
        results.append([p.detach() for m in (backbone, head) for p in m.parameters()])
    for a, b in zip(*results, strict=True):
        assert_same(a, b)


def test_params_must_be_tensors() -> None:
    opt = make()
    for bad in (torch.ones(3), [1.0], 3):
        with pytest.raises(TypeError, match="params must be"), opt.accumulate(params=bad):
            pass


@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_model_s_own_zero_grad_in_a_window(set_to_none: bool) -> None:
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    opt = ABSGD(model.parameters(), lam=1.0)
    with opt.accumulate():
        opt.weigh(model(torch.full((2, 3), 5.0)).squeeze(1)).backward()
        model.zero_grad(set_to_none)
        if set_to_none:
            with pytest.raises(RuntimeError, match=r"dropped, by model.zero_grad.*discard\(\)"):
                opt.weigh(model(torch.ones(2, 3)).squeeze(1))
            opt.discard()
        opt.weigh(model(torch.ones(2, 3)).squeeze(1)).backward()
    opt.finalize_grads_()
    assert opt.log_s.item() == pytest.approx(3.0)
    torch.testing.assert_close(model.weight.grad, torch.ones(1, 3))


@pytest.mark.parametrize("kind", ["weight", "flat"])
@pytest.mark.parametrize("lam", [1.0, -2.0])
def test_gradients_that_are_zero_of_themselves_are_not_taken_for_zeroed(
    kind: str, lam: float
) -> None:
    """Of a micro-batch whose weights are 0, or whose losses are flat where they are."""

    def train(parts: int) -> tuple[Tensor, Tensor]:
        w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        opt = ABSGD([w], lr=0.1, lam=lam)
        margins = torch.tensor([3.0, 2.0, -1.0, -2.0], dtype=torch.float64)  # two are met
        weight = torch.tensor([0.0, 0.0, 0.5, 2.0]) if kind == "weight" else None
        for rows in torch.arange(4).chunk(parts):
            with opt.accumulate():
                losses = (w.sum() + (1 - margins[rows])).clamp(min=0)
                opt.weigh(losses, weight=None if weight is None else weight[rows]).backward()
        opt.step()
        return w.detach(), opt.log_s

    for ours, expected in zip(train(2), train(1), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_a_divisor_cannot_change_in_a_window() -> None:
    opt = make()
    p = opt.param_groups[0]["params"][0]
    with opt.accumulate(divisor=2):
        (opt.weigh(p * 2) / 2).backward()
    with pytest.raises(ValueError, match=r"Invalid divisor value: 4 .*began with 2.*discard"):
        opt.accumulate(divisor=4).__enter__()
    opt.discard()
    with opt.accumulate(divisor=4):
        (opt.weigh(p * 2) / 4).backward()
    opt.finalize_grads_()
    torch.testing.assert_close(p.grad, torch.full((3,), 2 / 3))


def test_two_backward_passes_of_one_micro_batch_add_up() -> None:
    opt = make()
    p = opt.param_groups[0]["params"][0]
    with opt.accumulate():
        total = opt.weigh(p * 2)
        total.backward(retain_graph=True)
        total.backward()
        opt.weigh(p * 2).backward()
    opt.finalize_grads_()
    torch.testing.assert_close(p.grad, torch.full((3,), 1.5 * 2 / 3))


def test_a_state_dict_cannot_be_loaded_in_a_window() -> None:
    opt, criterion = make(), AttentionalLoss(lambda losses, _: losses, 1.0)
    p = accumulated(opt)
    before = opt.log_s.item()
    with pytest.raises(RuntimeError, match=r"no state can be loaded.*discard\(\)"):
        opt.load_state_dict(make().state_dict())
    opt.discard()
    assert p.grad is None and math.isnan(before) and opt.log_s.isnan()
    opt.load_state_dict(make().state_dict())
    with criterion.accumulate([p]):
        criterion(p * 2, None).backward()
        with pytest.raises(RuntimeError, match="no state can be loaded"):
            criterion.load_state_dict(criterion.state_dict())
    criterion.discard()
    criterion.load_state_dict(criterion.state_dict())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("first", [True, False])
def test_a_bad_micro_batch_and_the_way_out(bad: float, first: bool) -> None:
    opt = make()
    p = opt.param_groups[0]["params"][0]
    opt.weigh(p * 2).backward()
    opt.step()
    opt.zero_grad()
    before = opt.log_s.item()
    factors = [bad, 2.0] if first else [2.0, bad]
    for factor in factors:
        with opt.accumulate():
            opt.weigh(p * factor).backward()
    opt.finalize_grads_()
    assert not p.grad.isfinite().any() and opt.log_s.item() == before
    opt.zero_grad()
    with opt.accumulate():
        opt.weigh(p * bad).backward()
    opt.discard()
    with opt.accumulate():
        opt.weigh(p * 2).backward()
    opt.step()
    assert p.isfinite().all()


@pytest.mark.parametrize("stage", ["empty", "handed out", "gradients", "zeroed"])
def test_discard_always_gets_out(stage: str) -> None:
    opt = make()
    p = opt.param_groups[0]["params"][0]
    with opt.accumulate():
        if stage != "empty":
            total = opt.weigh(p * 2)
        if stage == "gradients":
            total.backward()
        if stage == "zeroed":
            opt.zero_grad()
    opt.discard()
    opt.weigh(p * 3)
    assert opt.log_s.item() == pytest.approx(3.0)
    opt.lam = 2.0
    opt.load_state_dict(make().state_dict())


def test_the_backward_pass_of_a_discarded_micro_batch_is_an_error() -> None:
    opt = make()
    p = opt.param_groups[0]["params"][0]
    with opt.accumulate():
        total = opt.weigh(p * 2)
        opt.discard()
        with pytest.raises(RuntimeError, match="dropped the micro-batch whose backward pass"):
            total.backward()


def test_an_abandoned_forward_pass_is_forgotten() -> None:
    """zero_grad() after the first weigh() of a window, whose backward pass then never comes."""
    opt = make()
    p = opt.param_groups[0]["params"][0]
    with opt.accumulate():
        opt.weigh(p * 9)
    opt.zero_grad()
    with opt.accumulate():
        opt.weigh(p * 2).backward()
    opt.finalize_grads_()
    assert opt.log_s.item() == pytest.approx(2.0)


def test_one_context_around_several_steps() -> None:
    one, many = Problem(), Problem()
    large, opt = (ABSGD([p.w], lr=0.01, momentum=0.9, lam=1.0) for p in (one, many))
    large_batches(one, large, large.weigh)
    with opt.accumulate():
        for xs, ys in many.batches:
            opt.zero_grad()
            for x, y in zip(xs, ys, strict=True):
                opt.weigh(many.losses(x, y)).backward()
            opt.step()
    assert_same(many.w, one.w)
    assert_same(opt.log_s, large.log_s)


def test_a_context_without_a_micro_batch_leaves_nothing() -> None:
    problem = Problem()
    opt = ABSGD([problem.w], lr=0.01, lam=1.0)
    losses = problem.losses(torch.cat(problem.batches[0][0]), torch.cat(problem.batches[0][1]))
    with opt.accumulate():
        pass
    with opt.accumulate(), torch.no_grad():
        opt.weigh(losses)
    with pytest.raises(ZeroDivisionError), opt.accumulate():
        raise ZeroDivisionError
    opt.weigh(losses).backward()
    assert opt.log_s.isfinite()


def test_a_tied_parameter_is_scaled_once() -> None:
    gradients = []
    for times in (1, 2):
        problem = Problem()
        criterion = AttentionalLoss(problem.losses, lam=1.0)
        for x, y in zip(*problem.batches[0], strict=True):
            with criterion.accumulate([problem.w] * times):
                criterion(x, y).backward()
        criterion.finalize_grads_()
        gradients.append(problem.w.grad)
    assert torch.equal(*gradients)
