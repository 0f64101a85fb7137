"""ABSGD's parameter groups, what carries its state, and its smaller methods."""

import copy
import gc
import io
import math
import weakref

import pytest
import torch
from torch import nn

import torch_absgd as ta

LOSSES = torch.tensor([0.2, 1.0, 2.5])


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


def assert_same(a: dict, b: dict) -> None:
    for x, y in zip(a["param_groups"], b["param_groups"], strict=True):
        assert x.keys() == y.keys()
        for name in x:
            equal = x[name] == y[name]
            if isinstance(x[name], torch.Tensor):
                equal = torch.equal(x[name].nan_to_num(7.5), y[name].nan_to_num(7.5))
            assert equal or (x[name] != x[name] and y[name] != y[name]), name


def make(**rule: object) -> ta.ABSGD:
    groups = [{"params": [parameter()]}, {"params": [parameter()], "lr": 0.2}]
    return ta.ABSGD(groups, lr=0.1, **{"lam": 0.5, **rule})


# ---- λ and the like set in a parameter group: as an assignment, or an error


def test_lam_set_in_every_group_is_an_assignment() -> None:
    opt, twin = make(), make()
    for o in (opt, twin):
        o.weigh(LOSSES)
    for group in opt.param_groups:
        group["lam"] = 2.0
    twin.lam = 2.0
    assert opt.lam == 2.0
    assert opt.weigh(LOSSES) == twin.weigh(LOSSES) and opt.log_s == twin.log_s
    assert opt.param_groups[0]["lam"] is opt.param_groups[1]["lam"]


def test_lam_set_in_one_group_is_seen_by_all() -> None:
    opt = make()
    opt.param_groups[1]["lam"] = torch.tensor(3.0)
    opt.weigh(LOSSES)
    assert opt.lam == 3.0 and opt.param_groups[0]["lam"] == 3.0


def test_a_rule_set_in_a_group_is_read_as_one() -> None:
    opt = make()
    opt.param_groups[0]["lam"] = rule = ta.EffectiveSampleSize(0.8)
    assert opt.lam_rule == rule


def test_no_s_init_in_a_group_is_none() -> None:
    opt, twin = make(s_init=2.0), make()
    opt.param_groups[0]["s_init"] = None
    for each in (opt, twin):
        each.weigh(LOSSES)
        each.restart(1.0)
        each.weigh(LOSSES)
    assert opt.log_s == twin.log_s
    ta.ABSGD([{"params": [parameter()], "s_init": None}], lr=0.1)
    with pytest.raises(ValueError, match="s_init is the whole optimizer's"):
        ta.ABSGD([{"params": [parameter()], "s_init": None}], lr=0.1, s_init=2.0)


@pytest.mark.parametrize("name, value", [("gamma", 0.5), ("max_weight", 4.0), ("keep_loss", True)])
def test_constants_set_in_a_group(name: str, value: object) -> None:
    opt, twin = make(), make(**{name: value})
    opt.param_groups[0][name] = value
    for _ in range(3):
        assert opt.weigh(LOSSES) == twin.weigh(LOSSES)
    assert opt.param_groups[1][name] == value and not opt.has_loaded_state


@pytest.mark.parametrize(
    "entries, message",
    [
        (
            [{"lam": 2.0}, {"lam": 3.0}],
            "lam is the whole optimizer's, but parameter groups disagree",
        ),
        ([{"lam": 0.0}], "Invalid lam value: 0.0"),
        ([{"gamma": 1.5}], "Invalid gamma value: 1.5"),
        ([{"max_weight": 0.1}], "Invalid max_weight value: 0.1"),
        ([{"momentum_form": "polyak"}], "momentum_form cannot change"),
    ],
)
def test_a_bad_value_in_a_group_is_an_error_and_is_taken_back(
    entries: list[dict], message: str
) -> None:
    opt = make()
    before = copy.deepcopy(opt.state_dict())
    for group, entry in zip(opt.param_groups, entries, strict=False):
        group.update(entry)
    with pytest.raises(ValueError, match=message):
        opt.weigh(LOSSES)
    assert_same(opt.state_dict(), before)
    opt.weigh(LOSSES)


def test_an_empty_first_group() -> None:
    p = parameter()
    opt = ta.ABSGD([{"params": []}, {"params": [p]}], lr=0.1, momentum=0.9, lam=0.5)
    opt.weigh(LOSSES * p).backward()
    opt.step()
    again = ta.ABSGD([{"params": []}, {"params": [parameter()]}], lr=0.1, momentum=0.9)
    again.load_state_dict(opt.state_dict())
    assert again.log_s == opt.log_s and not torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("index", [0, -1])
def test_a_group_that_is_removed_is_stepped_no_more(index: int) -> None:
    opt = make(momentum=0.9)
    params = [p for group in opt.param_groups for p in group["params"]]
    for _ in range(3):
        for p in params:
            p.grad = torch.ones(3)
        opt.step()
    (gone,) = opt.param_groups.pop(index)["params"]
    (left,) = opt.param_groups[0]["params"]
    was, buffer = gone.detach().clone(), opt.state[left]["momentum_buffer"].clone()
    before = left.detach().clone()
    opt.step()
    assert torch.equal(gone, was)
    lr = opt.param_groups[0]["lr"]
    torch.testing.assert_close(left, before - lr * (0.9 * buffer + 1))


def test_a_group_that_is_added_carries_the_state() -> None:
    opt = make()
    opt.weigh(LOSSES)
    opt.add_param_group({"params": [parameter()]})
    assert opt.param_groups[2]["log_s"] is opt.param_groups[0]["log_s"]
    opt.lam = 7.0
    assert opt.param_groups[2]["lam"] == 7.0


# ---- old state


def before_the_guards(state: dict) -> dict:
    for group in state["param_groups"]:
        for name in ("max_weight", "keep_loss"):
            del group[name]
        group["reports"] = group["reports"][:, :7].clone()
        group["gamma"] = 0.9
    return state


def test_a_checkpoint_of_before_the_guards_loads() -> None:
    opt = make()
    opt.weigh(LOSSES)
    fresh = make(lam=3.0, keep_loss=True)
    fresh.load_state_dict(before_the_guards(copy.deepcopy(opt.state_dict())))
    assert fresh.lam == 0.5 and fresh.log_s == opt.log_s and fresh.weigher.state.keep_loss
    assert fresh.stats().last == opt.stats().last


def test_a_rule_s_old_checkpoint_without_an_answer_read_nan() -> None:
    opt = make(lam=ta.EffectiveSampleSize(0.5))
    state = before_the_guards(copy.deepcopy(opt.state_dict()))
    for group in state["param_groups"]:
        group["lam"] = torch.tensor(math.nan, dtype=torch.float64)
    opt.load_state_dict(state)
    assert opt.lam == math.inf and opt.weigher.state.rule == ta.EffectiveSampleSize(0.5)


def test_pickle_and_deepcopy_keep_the_rule() -> None:
    opt = make(lam=ta.EffectiveSampleSize(0.5), max_weight=3.0, keep_loss=True, gamma=0.7)
    opt.weigh(LOSSES)
    file = io.BytesIO()
    torch.save(opt, file)
    file.seek(0)
    for other in (copy.deepcopy(opt), torch.load(file, weights_only=False)):
        assert other.weigher.state.constants() == pytest.approx(
            opt.weigher.state.constants(), nan_ok=True
        )
        assert other.weigher.state.rule == opt.weigher.state.rule
        assert other.weigh(LOSSES * 2).item() == copy.deepcopy(opt).weigh(LOSSES * 2).item()


# ---- smaller methods


def test_step_parameter_is_the_step_of_one() -> None:
    opt, twin = make(momentum=0.9), make(momentum=0.9)
    for o in (opt, twin):
        for group in o.param_groups:
            group["params"][0].grad = torch.arange(3.0)
    twin.step()
    for group in opt.param_groups:
        opt.step_parameter(group["params"][0])
    for a, b in zip(opt.param_groups, twin.param_groups, strict=True):
        assert torch.equal(a["params"][0], b["params"][0])
    with pytest.raises(ValueError, match="p must be a parameter of this optimizer"):
        opt.step_parameter(parameter())


@pytest.mark.parametrize("fused", [None, True, False])
def test_amp_scaling_is_supported_as_torch_s_sgd_does(fused: bool | None) -> None:
    p = parameter()
    opt = ta.ABSGD([p], lr=0.1, fused=fused)
    assert opt._step_supports_amp_scaling == bool(fused)
    assert copy.deepcopy(opt)._step_supports_amp_scaling == bool(fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(opt.weigh(p * torch.tensor([1.0, 2.0, math.inf]))).backward()
    before = p.detach().clone()
    scaler.step(opt)
    scaler.update()
    assert torch.equal(p, before) and scaler.get_scale() == 2.0


def test_repr_shows_lam_and_the_rule() -> None:
    assert "lam=0.5" in repr(make())
    text = repr(make(lam=ta.EffectiveSampleSize(0.8), max_weight=5.0, keep_loss=True))
    assert "EffectiveSampleSize" in text and "max_weight=5" in text and "keep_loss=True" in text
    assert "tensor(" not in text
    criterion = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=0.5, max_weight=5.0)
    assert "lam=0.5, max_weight=5" in repr(criterion)


def test_stats_are_a_mapping_and_a_table() -> None:
    opt = make()
    opt.weigh(LOSSES)
    numbers = dict(opt.stats())
    assert numbers["lam"] == 0.5 and numbers["count"] == 3 and numbers["kappa"] == 1
    assert all(isinstance(v, float) for v in numbers.values())
    assert "effective_samples" in str(opt.stats()) and "last batch" in str(opt.stats())
    with pytest.raises(KeyError, match="effective_samples"):
        opt.stats()["ess"]


def test_a_stepper_does_not_outlive_its_optimizer() -> None:
    p = parameter()
    opt = ta.ABSGD([p], lr=0.1)
    ta.step_in_backward(opt)
    gone = weakref.ref(opt)
    del opt
    gc.collect()
    assert gone() is None
    p.square().sum().backward()
    assert torch.equal(p, torch.ones(3)) and p.grad is not None


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_shared_layer_under_activation_checkpointing(use_reentrant: bool) -> None:
    """Reentrant checkpointing has a shared parameter's gradient ready in parts."""
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    layer = nn.Linear(3, 3)
    reference = copy.deepcopy(layer)
    opt, plain = (ta.ABSGD(m.parameters(), lr=0.1, lam=1.0) for m in (layer, reference))
    ta.step_in_backward(opt)
    x = torch.randn(4, 3, requires_grad=True)
    once = checkpoint(layer, x, use_reentrant=use_reentrant)
    twice = checkpoint(layer, once.relu(), use_reentrant=use_reentrant)
    loss = opt.weigh(twice.square().mean(1))
    if use_reentrant:
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            loss.backward()
        return
    loss.backward()
    plain.weigh(reference(reference(x).relu()).square().mean(1)).backward()
    plain.step()
    torch.testing.assert_close(layer.weight, reference.weight)


def test_a_criterion_that_shares_the_state_may_move_it() -> None:
    """The groups then follow, and do not bring back what they held."""
    opt = make()
    criterion = ta.AttentionalLoss(lambda losses, _: losses, optimizer=opt)
    opt.weigh(LOSSES)
    opt.weigher.state.move(torch.device("cpu"))
    for name in ("lam", "log_s", "log_s_lam", "reports", "lam_rule"):  # as if on another device
        setattr(opt.weigher.state, name, getattr(opt.weigher.state, name).clone())
    criterion(LOSSES * 3, None)
    log_s = opt.log_s.item()
    assert opt.state_dict()["param_groups"][0]["log_s"] == log_s
    opt.weigh(LOSSES)
    assert opt.param_groups[1]["log_s"] is opt.weigher.state.log_s


def test_a_state_without_a_history_is_none_to_go_on_from() -> None:
    """accelerate's prepare() loads a new optimizer's own state into it."""
    opt = make(momentum=0.9)
    opt.load_state_dict(opt.state_dict())
    assert not opt.has_loaded_state
    opt.weigh(LOSSES)
    other = make()
    other.load_state_dict(opt.state_dict())
    assert other.has_loaded_state
    sgd = torch.optim.SGD([parameter()], lr=0.1, momentum=0.9)
    (p,) = sgd.param_groups[0]["params"]
    p.grad = torch.ones(3)
    sgd.step()
    from_sgd = ta.ABSGD([parameter()], lr=0.1, momentum=0.9)
    from_sgd.load_state_dict(sgd.state_dict())
    assert from_sgd.has_loaded_state
