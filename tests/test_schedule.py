"""λ against the epoch: restarts at milestones, damping in between, resuming."""

import copy
import math

import pytest
import torch
from torch import nn

import torch_absgd as ta
from torch_absgd import Damping, LamScheduler


class Recorder:
    """Stands in for an optimizer: what was set, and what was restarted."""

    def __init__(self, lam=math.inf):
        self._lam = lam
        self.calls = []

    @property
    def lam(self):
        return self._lam

    @lam.setter
    def lam(self, lam):
        self.calls.append(("set", lam))
        self._lam = lam

    def restart(self, lam):
        self.calls.append(("restart", lam))
        self._lam = lam


def lams(schedule, epochs):
    values = []
    for _ in range(epochs):
        values.append(float(schedule.target.lam))
        schedule.step()
    return values


def test_milestones_restart_and_hold():
    target = Recorder()
    assert lams(LamScheduler(target, {2: 5.0, 4: -1.0}), 6) == [math.inf] * 2 + [5.0] * 2 + [-1] * 2
    assert target.calls == [("restart", 5.0), ("restart", -1.0)]


def test_milestone_0_applies_at_construction():
    target = Recorder()
    LamScheduler(target, {0: 2.0})
    assert target.calls == [("restart", 2.0)]


def test_linear_damping_is_linear_in_the_inverse_and_restarts_nothing():
    target = Recorder()
    values = lams(LamScheduler(target, damping=Damping(2, 6, lam=0.5)), 9)
    assert values == [math.inf, math.inf, math.inf, 2.0, 1.0, pytest.approx(2 / 3), 0.5, 0.5, 0.5]
    assert all(kind == "set" for kind, _ in target.calls)
    assert len(target.calls) == 4, "λ is set only when it changes"


def test_cosine_damping():
    values = lams(LamScheduler(Recorder(), damping=Damping(0, 4, lam=-1.0, shape="cosine")), 6)
    inverses = [(1 - math.cos(math.pi * t / 4)) / 2 for t in range(5)]
    assert [-1 / value for value in values[1:5]] == pytest.approx(inverses[1:])
    assert values[0] == math.inf and values[4] == values[5] == -1.0


def test_exponential_damping_between_finite_values():
    values = lams(LamScheduler(Recorder(8.0), damping=Damping(1, 4, 1.0, "exponential")), 6)
    assert values == pytest.approx([8, 8, 4, 2, 1, 1])
    values = lams(LamScheduler(Recorder(-1.0), damping=Damping(0, 2, -4.0, "exponential")), 3)
    assert values == pytest.approx([-1, -2, -4])


def test_damping_starts_from_the_last_milestone_and_a_later_one_ends_it():
    target = Recorder()
    schedule = LamScheduler(target, {2: 4.0, 8: 9.0}, Damping(3, 5, 1.0, "exponential"))
    assert lams(schedule, 9) == pytest.approx([math.inf] * 2 + [4, 4, 2, 1, 1, 1, 9])
    assert [call for call in target.calls if call[0] == "restart"] == [
        ("restart", 4.0),
        ("restart", 9.0),
    ]


def test_damping_back_to_infinity():
    values = lams(LamScheduler(Recorder(2.0), damping=Damping(0, 2, math.inf)), 4)
    assert values == [2.0, 4.0, math.inf, math.inf]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: LamScheduler(nn.Linear(1, 1), {1: 1.0}), TypeError, "target .* Linear"),
        (lambda t: LamScheduler(t, [160]), TypeError, r"milestones .* \[160\]"),
        (lambda t: LamScheduler(t, {-1: 1.0}), ValueError, "milestone: -1"),
        (lambda t: LamScheduler(t, {1.5: 1.0}), TypeError, "milestone .* 1.5"),
        (lambda t: LamScheduler(t, {True: 1.0}), TypeError, "milestone .* True"),
        (lambda t: LamScheduler(t, {0: 2.0, 5: 0.0}), ValueError, "milestone 5: 0"),
        (lambda t: LamScheduler(t, {5: math.nan}), ValueError, "milestone 5: nan"),
        (lambda t: LamScheduler(t, {5: "1"}), TypeError, "milestone 5 .* '1'"),
        (lambda t: LamScheduler(t, damping=1.0), TypeError, "damping .* 1.0"),
        (lambda t: LamScheduler(t, {3: 1.0}, Damping(2, 4, 1.0)), ValueError, "milestone: 3"),
        (lambda t: LamScheduler(t, {0: -2.0}, Damping(2, 4, 1.0)), ValueError, "-2.0 to 1.0"),
        (lambda t: LamScheduler(t, damping=Damping(2, 4, 1.0, "exponential")), ValueError, "inf"),
        (lambda t: Damping(4, 4, 1.0), ValueError, "end_epoch: 4"),
        (lambda t: Damping(-1, 4, 1.0), ValueError, "start_epoch: -1"),
        (lambda t: Damping(0, 4, 0.0), ValueError, "lam: 0.0"),
        (lambda t: Damping(0, 4, 1.0, "step"), ValueError, "shape: 'step'"),
    ],
)
def test_bad_arguments_name_the_culprit_and_change_nothing(call, error, message):
    target = Recorder()
    with pytest.raises(error, match=message):
        call(target)
    assert target.calls == []


def test_loading_a_bad_state_changes_nothing():
    schedule = LamScheduler(Recorder(), {1: 1.0})
    before = schedule.state_dict()
    for state in ({"last_epoch": 3}, {"last_epoch": 3, "initial_lam": 0.0}):
        with pytest.raises((KeyError, ValueError)):
            schedule.load_state_dict(state)
        assert schedule.state_dict() == before


def build(kind):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    if kind == "optimizer":
        opt = ta.ABSGD(model.parameters(), lr=0.1, momentum=0.9, gamma=0.5)
        return model, opt, opt, lambda x, y: opt.weigh(per_sample(model(x), y))
    opt = torch.optim.Adam(model.parameters(), lr=0.1)
    criterion = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"), lam=math.inf, gamma=0.5)
    return model, opt, criterion, lambda x, y: criterion(model(x), y)


def per_sample(logits, y):
    return nn.functional.cross_entropy(logits, y, reduction="none")


@pytest.mark.parametrize("kind", ["optimizer", "attentional_loss"])
@pytest.mark.parametrize("stop", [0, 2, 3, 4, 6])
def test_a_resumed_run_is_the_run_that_was_never_stopped(kind, stop):
    def schedule_for(target):
        return LamScheduler(target, {0: 8.0, 6: 1.0}, Damping(2, 4, 2.0))

    def epochs(n, state, schedule):
        _, opt, target, loss = state
        lams = []
        for _ in range(n):
            generator = torch.Generator().manual_seed(schedule.last_epoch)
            x = torch.randn(16, 5, generator=generator)
            loss(x, torch.arange(16) % 3).backward()
            opt.step()
            opt.zero_grad()
            lams.append((float(target.lam), float(target.log_s)))
            schedule.step()
        return lams

    whole = build(kind)
    expected = epochs(8, whole, schedule_for(whole[2]))

    first = build(kind)
    first_schedule = schedule_for(first[2])
    seen = epochs(stop, first, first_schedule)
    saved = copy.deepcopy([part.state_dict() for part in (*first[:3], first_schedule)])

    second = build(kind)
    second_schedule = schedule_for(second[2])
    for part, state in zip((*second[:3], second_schedule), saved, strict=True):
        part.load_state_dict(state)
    assert seen + epochs(8 - stop, second, second_schedule) == expected
    assert torch.equal(whole[0].weight, second[0].weight)


def test_optimizer_log_s_carries_over_in_damping_and_is_forgotten_at_a_milestone():
    _, _, opt, loss = build("optimizer")
    schedule = LamScheduler(opt, {0: 4.0, 2: 1.0}, None)
    damped = LamScheduler(opt, damping=Damping(0, 2, 2.0, "exponential"))
    loss(torch.ones(4, 5), torch.zeros(4, dtype=torch.long))
    estimate = 4.0 * float(opt.log_s)
    damped.step()
    assert float(opt.lam) == pytest.approx(8**0.5)
    assert float(opt.lam) * float(opt.log_s) == pytest.approx(estimate)
    schedule.step()
    assert float(opt.log_s) == float(opt.log_s), "no event, no change"
    schedule.step()
    assert float(opt.lam) == 1.0
    assert math.isnan(float(opt.log_s))
