"""λ against the epoch: restarts at milestones, ramps, wrapped targets, resuming."""

import copy
import dataclasses
import io
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import torch_absgd as ta
from torch_absgd import EffectiveSampleSize, KLRadius, LamScheduler


class Recorder:
    """Stands in for an optimizer: what was set, and what was restarted. Under a rule it reads the λ
    that its batches found."""

    def __init__(self, lam=math.inf, has_loaded_state=False):
        self._lam = lam
        self.calls = []
        self.has_loaded_state = has_loaded_state

    @property
    def lam(self):
        return self._lam if self.lam_rule is None else 0.7

    @property
    def lam_rule(self):
        return self._lam if isinstance(self._lam, ta.lam_rules.LamRule) else None

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
        values.append(schedule.target._lam)
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


@pytest.mark.parametrize("make", [float, np.float32, np.float64, torch.tensor, np.int64])
def test_lam_may_be_any_number(make):
    target = Recorder()
    LamScheduler(target, {np.int64(0): make(2.0)})
    assert target.calls == [("restart", 2.0)]
    assert lams(LamScheduler(Recorder(), {0: make(1)}, over=np.int64(2)), 3) == [math.inf, 2.0, 1.0]


def test_a_ramp_is_linear_in_the_inverse_and_restarts_nothing():
    target = Recorder()
    values = lams(LamScheduler(target, {2: 0.5}, over=4), 9)
    assert values == [math.inf] * 3 + [2.0, 1.0, pytest.approx(2 / 3), 0.5, 0.5, 0.5]
    assert [kind for kind, _ in target.calls] == ["set"] * 4


@pytest.mark.parametrize(
    ("start", "end", "inverses"),
    [
        (4.0, 1.0, [0.25, 0.5, 0.75, 1.0]),
        (-4.0, -1.0, [-0.25, -0.5, -0.75, -1.0]),
        (1.0, math.inf, [1.0, 2 / 3, 1 / 3, 0.0]),
        (1.0, -0.5, [1.0, 0.0, -1.0, -2.0]),
        (-math.inf, 1.0, [0.0, 1 / 3, 2 / 3, 1.0]),
        (math.nan, 1.0, [0.0, 1 / 3, 2 / 3, 1.0]),  # as a rule without an answer once read
    ],
)
def test_a_ramp_starts_from_what_lam_is(start, end, inverses):
    values = lams(LamScheduler(Recorder(start), {0: end}, over=3), 5)
    assert [1 / lam for lam in values[1:]] == pytest.approx([*inverses[1:], inverses[-1]])
    assert values[3] == values[4] == end
    assert repr(values[0]) == repr(start), "as it was in the milestone's epoch"


@pytest.mark.parametrize(
    ("start", "end", "targets"),
    [
        (math.inf, EffectiveSampleSize(0.8), [0.95, 0.9, 0.85, 0.8]),
        (EffectiveSampleSize(0.8), EffectiveSampleSize(0.4), [0.7, 0.6, 0.5, 0.4]),
        (EffectiveSampleSize(0.6), math.inf, [0.7, 0.8, 0.9]),
        (math.inf, KLRadius(0.4, rate=0.5), [0.1, 0.2, 0.3, 0.4]),
        (KLRadius(0.4), KLRadius(0.8), [0.5, 0.6, 0.7, 0.8]),
    ],
)
@pytest.mark.parametrize("noisy", [False, True])
def test_a_rule_ramps_its_target(start, end, targets, noisy):
    start, end = (
        dataclasses.replace(lam, noisy=noisy) if isinstance(lam, ta.lam_rules.LamRule) else lam
        for lam in (start, end)
    )
    target = Recorder(start)
    values = lams(LamScheduler(target, {1: end}, over=4), 7)
    assert values[:2] == [start] * 2
    assert [rule.target for rule in values[2 : 2 + len(targets)]] == pytest.approx(targets)
    assert values[5] == values[6] == end
    options = end if isinstance(end, ta.lam_rules.LamRule) else start
    for rule in values[2 : 2 + len(targets)]:
        assert type(rule) is type(options)
        assert (rule.noisy, rule.rate) == (noisy, options.rate)
    assert all(kind == "set" for kind, _ in target.calls)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (2.0, EffectiveSampleSize(0.5)),
        (KLRadius(0.1), EffectiveSampleSize(0.5)),
        (EffectiveSampleSize(0.5), 2.0),
    ],
)
def test_another_kind_ramps_from_plain_sgd(start, end):
    values = lams(LamScheduler(Recorder(start), {1: end}, over=2), 4)
    half = 4.0 if end == 2.0 else EffectiveSampleSize(0.75)
    assert values == [start, math.inf, half, end]


@pytest.mark.parametrize("over", [3, 30])
@pytest.mark.parametrize("fraction", [0.6, 0.7, 0.9])
def test_a_rule_turns_noisy_through_plain_sgd(over, fraction):
    start, end = EffectiveSampleSize(0.8), EffectiveSampleSize(fraction, noisy=True)
    values = lams(LamScheduler(Recorder(start), {0: end}, over=over), over + 1)
    found = [0.0 if lam == math.inf else lam.selectivity for lam in values]
    line = [0.2 + (fraction - 1.2) * epoch / over for epoch in range(over + 1)]
    assert found == pytest.approx(line, abs=1e-12)
    assert values[-1] == end


def test_a_later_milestone_goes_on_from_what_lam_is():
    schedule = LamScheduler(Recorder(), {0: 1.0, 2: 0.25}, over=4)
    inverses = [1 / lam for lam in lams(schedule, 8)]
    assert inverses == pytest.approx([0, 0.25, 0.5, 1.375, 2.25, 3.125, 4, 4])


def test_lam_set_by_hand_is_where_the_next_ramp_starts():
    target = Recorder()
    schedule = LamScheduler(target, {2: 1.0}, over=2)
    schedule.step()
    target.lam = 2.0
    schedule.step()
    schedule.step()
    assert 1 / target.lam == pytest.approx(0.75)


@pytest.mark.parametrize("over", [0, 3])
@pytest.mark.parametrize("lam", [1.0, EffectiveSampleSize(0.5)])
def test_milestone_0_leaves_a_loaded_target_alone(over, lam):
    target = Recorder(2.0, has_loaded_state=True)
    schedule = LamScheduler(target, {0: lam, 5: 3.0}, over)
    assert target.calls == []
    schedule.load_state_dict({"last_epoch": 4, "ramp_start": math.inf})
    schedule.step()
    assert target.calls == ([("restart", 3.0)] if over == 0 else [])


class Wrapper:
    """As Lightning's and torch.compile's: passes on what it is asked, keeps what is assigned."""

    def __init__(self, wrapped, name="optimizer"):
        self.__dict__["wrapped"] = wrapped
        self.__dict__[name] = wrapped

    def __getattr__(self, name):
        return getattr(self.__dict__["wrapped"], name)


def test_looks_through_wrappers():
    target = Recorder()
    schedule = LamScheduler(Wrapper(Wrapper(target)), {0: 2.0, 1: 1.0}, over=1)
    assert schedule.target is target
    schedule.step()
    assert target.lam == 2.0
    loss = ta.AttentionalLoss(nn.CrossEntropyLoss(reduction="none"))
    loss.optimizer = target  # what has λ itself comes first
    assert LamScheduler(loss, {}).target is loss
    assert LamScheduler(Wrapper(loss, "_orig_mod"), {}).target is loss


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: LamScheduler(nn.Linear(1, 1), {1: 1.0}), TypeError, "target .* Linear"),
        (lambda t: LamScheduler(t, [160]), TypeError, r"milestones .* \[160\]"),
        (lambda t: LamScheduler(t, {-1: 1.0}), ValueError, "milestone value: -1"),
        (lambda t: LamScheduler(t, {1.5: 1.0}), TypeError, "milestone .* 1.5"),
        (lambda t: LamScheduler(t, {True: 1.0}), TypeError, "milestone .* True"),
        (lambda t: LamScheduler(t, {0: 2.0, 5: 0.0}), ValueError, "milestone 5: .* 0.0"),
        (lambda t: LamScheduler(t, {0: 2.0, 5: torch.tensor(0)}), ValueError, "milestone 5: .* 0"),
        (lambda t: LamScheduler(t, {5: math.nan}), ValueError, "milestone 5: .* nan"),
        (lambda t: LamScheduler(t, {5: "1"}), TypeError, "milestone 5: .* '1'"),
        (lambda t: LamScheduler(t, {5: torch.ones(2)}), ValueError, "milestone 5: .*shape"),
        (lambda t: LamScheduler(t, {0: 1.0}, over=-1), ValueError, "over value: -1"),
        (lambda t: LamScheduler(t, {0: 1.0}, over=1.5), TypeError, "over .* 1.5"),
        (lambda t: LamScheduler(t, {0: 1.0}, over=True), TypeError, "over .* True"),
    ],
)
def test_bad_arguments_name_the_culprit_and_change_nothing(call, error, message):
    target = Recorder()
    with pytest.raises(error, match=message):
        call(target)
    assert target.calls == []


@pytest.mark.parametrize(
    "state",
    [
        {"last_epoch": 3},
        {"last_epoch": 3, "initial_lam": 0.0},
        {"last_epoch": -1, "ramp_start": 1.0},
        {"last_epoch": 3, "ramp_start": 0.0},
        {"last_epoch": 3, "ramp_start": [9.0, 0.5, 1.0, 1.0, 1e-12, 1e6]},
    ],
)
def test_loading_a_bad_state_changes_nothing(state):
    schedule = LamScheduler(Recorder(), {1: 1.0})
    before = schedule.state_dict()
    with pytest.raises((KeyError, ValueError)):
        schedule.load_state_dict(state)
    assert schedule.state_dict() == before


@pytest.mark.parametrize(
    ("milestones", "initial", "start"),
    [
        ({2: 1.0}, 4.0, 4.0),
        ({2: 1.0}, math.nan, math.inf),
        ({0: 8.0, 2: 1.0}, math.inf, 8.0),
        ({0: EffectiveSampleSize(0.9), 2: EffectiveSampleSize(0.5)}, math.inf, None),
    ],
)
def test_states_of_the_first_version_load(milestones, initial, start):
    schedule = LamScheduler(Recorder(has_loaded_state=True), milestones, over=4)
    schedule.load_state_dict({"last_epoch": 3, "initial_lam": initial})
    assert schedule.last_epoch == 3
    assert schedule.ramp_start == (start if start is not None else milestones[0])


@pytest.mark.parametrize("stop", range(9))
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_ramp_resumes_exactly(stop, order):
    """Also where λ at the ramp's start was set by hand, and the target loads before or after the
    schedule is made."""
    milestones = {1: 0.3, 3: KLRadius(0.7), 4: KLRadius(0.1), 6: -2.0}

    def epochs(schedule, begin, end):
        values = []
        for epoch in range(begin, end):
            if epoch == 1:
                schedule.target.lam = 7.0
            values.append(schedule.target._lam)
            schedule.step()
        return values

    whole = epochs(LamScheduler(Recorder(), milestones, over=3), 0, 10)
    first = LamScheduler(Recorder(), milestones, over=3)
    seen = epochs(first, 0, stop)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Recorder(first.target._lam, has_loaded_state=order == "before")
    resumed = LamScheduler(second, milestones, over=3)
    second._lam = first.target._lam
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert seen + epochs(resumed, stop, 10) == whole


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
@pytest.mark.parametrize("over", [0, 2])
@pytest.mark.parametrize("stop", [0, 2, 3, 4, 6])
def test_a_resumed_run_is_the_run_that_was_never_stopped(kind, stop, over):
    def schedule_for(target):
        return LamScheduler(target, {0: 8.0, 2: 2.0, 6: 1.0}, over)

    def epochs(n, state, schedule):
        _, opt, target, loss = state
        lams = []
        for _ in range(n):
            generator = torch.Generator().manual_seed(schedule.last_epoch)
            x = torch.randn(16, 5, generator=generator)
            loss(x, torch.arange(16) % 3).backward()
            opt.step()
            opt.zero_grad()
            lams.append(str((float(target.lam), float(target.log_s))))
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


def test_log_s_carries_over_in_a_ramp_and_is_forgotten_at_a_restart():
    _, _, opt, loss = build("optimizer")
    opt.lam = 4.0
    ramp = LamScheduler(opt, {0: 1.0}, over=3)
    restart = LamScheduler(opt, {1: 1.0})
    loss(torch.ones(4, 5), torch.zeros(4, dtype=torch.long))
    estimate = 4.0 * float(opt.log_s)
    ramp.step()
    assert float(opt.lam) == pytest.approx(2.0)
    assert float(opt.lam) * float(opt.log_s) == pytest.approx(estimate)
    restart.step()
    assert float(opt.lam) == 1.0
    assert math.isnan(float(opt.log_s))


@pytest.mark.parametrize("kind", ["optimizer", "attentional_loss"])
def test_a_schedule_of_a_target_that_was_saved_at_a_restart_begins_nothing_anew(kind):
    first = build(kind)
    schedule = LamScheduler(first[2], {0: 5.0, 1: 1.0})
    first[3](torch.ones(3, 5), torch.arange(3)).backward()
    schedule.step()
    second = build(kind)
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    again = LamScheduler(second[2], {0: 5.0, 1: 1.0})
    again.load_state_dict(schedule.state_dict())
    assert float(second[2].lam) == float(first[2].lam) == 1.0


def test_a_schedule_that_was_not_loaded_beside_its_target_warns():
    first = build("optimizer")
    first[3](torch.ones(3, 5), torch.arange(3)).backward()
    second = build("optimizer")
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    schedule = LamScheduler(second[2], {4: 1.0})
    with pytest.warns(UserWarning, match=r"load schedule.state_dict\(\) too"):
        schedule.step()
    again = LamScheduler(second[2], {4: 1.0})
    again.load_state_dict({"last_epoch": 0, "ramp_start": math.inf})
    for silent in (again, schedule):  # loaded; has said so
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            silent.step()
