"""Every system that ABSGD is compared with, by name: what it changes in a run of SGD.

All of them train the same number of epochs in two stages. What begins "from the start" has a stage
one of its own; the others take over SGD's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import classifier_methods as classifiers
import dro
import engine
import meta
import torch_absgd as ta
from data import Images

Setting = dict[str, float]
Step = Callable[[Tensor, Tensor], None]  # from a batch of images and targets


@dataclass(frozen=True)
class Stage:
    """What a method may look at when its stage two begins."""

    run: engine.Run
    criterion: nn.Module
    setting: Setting
    class_counts: list[int]
    held_out: Images | None
    seed: int


def plain_step(stage: Stage) -> Step:
    return lambda images, targets: engine.train_step(stage.run, stage.criterion, images, targets)


@dataclass(frozen=True)
class Method:
    """One system.

    title: as a table names it. options: of the engine (see options.py). own: its own
    hyper-parameters, each with the values that --select may try. criterion: the per-sample loss
    from (class_counts, setting), where ``options`` do not name it. sampling: a kind of samplers.py.
    change: is given the run's model at the start of stage two. step: makes the training step of
    stage two. finish: is given the trained model, the setting, the class counts and the training
    set's (features, targets). held_out: needs a balanced split of the training set.
    """

    title: str
    options: dict[str, Any] = field(default_factory=lambda: {"optimizer": "sgd"})
    own: dict[str, tuple[float, ...]] = field(default_factory=dict)
    criterion: Callable[[Sequence[int], Setting], nn.Module] | None = None
    from_start: bool = False
    sampling: str = "instance"
    change: Callable[[nn.Module, int], Any] | None = None
    step: Callable[[Stage], Step] = plain_step
    finish: Callable[[nn.Module, Setting, list[int], tuple[Tensor, Tensor]], None] | None = None
    held_out: bool = False
    reads_counts: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether training is the engine's, as ``options`` say, to the end."""
        own = (
            self.criterion,
            self.change,
            self.step is not plain_step,
            self.sampling != "instance",
        )
        return not any(own)


def without_momentum(stage: Stage) -> Step:
    """At lr/(1 − β), what momentum's steps add up to, so that all methods may try the same lr."""
    schedule = stage.run.lr_schedule
    for i, group in enumerate(stage.run.optimizer.param_groups):
        schedule.base_lrs[i] /= 1 - group["momentum"]
        group["lr"] /= 1 - group["momentum"]
        group["momentum"] = 0.0
    return plain_step(stage)


def recover_step(stage: Stage) -> Step:
    run, group = stage.run, stage.run.optimizer.param_groups[0]
    recover = dro.Recover(
        run.model, group["lr"], stage.setting["lam"], stage.setting["a"], group["weight_decay"]
    )

    def step(images: Tensor, targets: Tensor) -> None:
        recover.lr = group["lr"] / (1 - group["momentum"])  # as without_momentum
        targets = targets.to(run.args.device)
        recover.step(run.inputs(images), lambda logits: stage.criterion(logits, targets))

    return step


def meta_step(
    stage: Stage, weights: Callable[[Tensor, Tensor], Tensor], base: Tensor | None
) -> Step:
    """A training step with weights from (gain, targets); ``base``: of each class."""
    run, held = stage.run, stage.held_out
    random = torch.Generator().manual_seed(stage.seed)

    def step(images: Tensor, targets: Tensor) -> None:
        chosen = torch.randperm(len(held), generator=random)[: len(targets)]
        targets = targets.to(run.args.device)
        gain = meta.look_ahead(
            run.model,
            (run.inputs(images), targets),
            (run.inputs(held.images[chosen]), held.targets[chosen].to(run.args.device)),
            run.optimizer.param_groups[0]["lr"],
            None if base is None else base[targets],
        )
        p = weights(gain, targets)
        engine.train_step(run, lambda x, y: p * stage.criterion(x, y), images, targets)

    return step


def learning_to_reweight(stage: Stage) -> Step:
    return meta_step(stage, lambda gain, targets: meta.learned_weights(gain), None)


def domain_adaptation(stage: Stage) -> Step:
    base = ta.class_balanced_weights(stage.class_counts).to(stage.run.args.device)
    rate = stage.setting["rate"]
    return meta_step(stage, lambda gain, y: meta.adapted_weights(gain, base[y], rate), base)


def logit_adjusted(class_counts: Sequence[int], setting: Setting) -> nn.Module:
    return ta.PerSampleLogitAdjusted(class_counts, tau=setting["tau"])


def tau_normalise(model: nn.Module, setting: Setting, *_: Any) -> None:
    classifiers.normalise(model.fc, setting["tau"])


def nearest_class_mean(
    model: nn.Module, _: Setting, __: list[int], trained_on: tuple[Tensor, Tensor]
) -> None:
    model.fc = classifiers.NearestClassMean(*trained_on)


def adjust_after(model: nn.Module, setting: Setting, class_counts: list[int], _: Any) -> None:
    model.fc = classifiers.AdjustedClassifier(model.fc, class_counts, setting["tau"])


SGD = {"optimizer": "sgd"}
ABSGD = {"optimizer": "absgd"}
CB = {"class_balance": "drw"}
CLASSIFIER = {"optimizer": "sgd", "stage_two_layers": ["fc"]}
LAMS = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0)
TAUS = (0.5, 1.0, 1.5, 2.0)

METHODS: dict[str, Method] = {
    "sgd": Method("SGD"),
    "absgd": Method("ABSGD", ABSGD, {"lam": LAMS}),
    "cb": Method("CB weights", {**SGD, **CB}, reads_counts=True),
    "cb-absgd": Method("CB weights + ABSGD", {**ABSGD, **CB}, {"lam": LAMS}, reads_counts=True),
    "focal": Method("Focal", {**SGD, "loss": "focal"}, {"focal_gamma": (0.5, 1.0, 2.0)},
                    from_start=True),
    "ldam": Method("LDAM-DRW", {**SGD, **CB, "loss": "ldam"}, from_start=True, reads_counts=True),
    "ldam-absgd": Method("LDAM-DRW + ABSGD", {**ABSGD, **CB, "loss": "ldam"}, {"lam": LAMS},
                         from_start=True, reads_counts=True),
    "la": Method("Logit-adjusted loss", SGD, {"tau": TAUS}, logit_adjusted, from_start=True,
                 reads_counts=True),
    "la-absgd": Method("Logit-adjusted loss + ABSGD", ABSGD, {"tau": TAUS, "lam": LAMS},
                       logit_adjusted, from_start=True, reads_counts=True),
    "la-post": Method("Logit adjustment, post hoc", SGD, {"tau": TAUS}, finish=adjust_after,
                      reads_counts=True),
    "la-post-absgd": Method("ABSGD + post-hoc logit adjustment", ABSGD, {"tau": TAUS, "lam": LAMS},
                            finish=adjust_after, reads_counts=True),
    "class-sampling": Method("Class-balanced sampling", SGD, from_start=True, sampling="class",
                             reads_counts=True),
    "sqrt-sampling": Method("Square-root sampling", SGD, from_start=True, sampling="sqrt",
                            reads_counts=True),
    "progressive": Method("Progressively balanced sampling", SGD, from_start=True,
                          sampling="progressive", reads_counts=True),
    "crt": Method("cRT", CLASSIFIER, sampling="class", reads_counts=True,
                  change=lambda model, _: classifiers.retrain_classifier(model)),
    "lws": Method("LWS", CLASSIFIER, sampling="class", reads_counts=True,
                  change=classifiers.learn_scales),
    "tau-norm": Method("τ-normalised", SGD, {"tau": (0.25, 0.5, 0.75, 1.0)}, finish=tau_normalise),
    "ncm": Method("NCM", SGD, finish=nearest_class_mean),
    "meta": Method("META (learning to reweight)", SGD, step=learning_to_reweight, held_out=True),
    "meta-da": Method("META (domain adaptation)", SGD, {"rate": (1.0, 10.0, 100.0)},
                      step=domain_adaptation, held_out=True, reads_counts=True),
    "term": Method("TERM", ABSGD, {"lam": LAMS, "gamma": (0.1, 0.5, 0.9)}, step=without_momentum),
    "recover": Method("RECOVER", SGD, {"lam": LAMS, "a": (0.1, 0.5, 0.9)}, step=recover_step),
    "exponentiated": Method("Exponentiated weights of the batch", {**ABSGD, "gamma": 1.0},
                            {"lam": LAMS}),
}  # fmt: skip
