"""Every system that ABSGD is compared with, by name: what it changes in a run of SGD.

    python recipes/train.py --data cifar10 --method crt --output-dir runs/crt

All of them train the same number of epochs in two stages. What begins "from the start" has a stage
one of its own; the others can take over SGD's (--stage-one).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import torch_absgd as ta
from baselines import classifiers, dro, meta
from baselines.samplers import ClassBatches
from data.order import EpochBatches, seed_of
from engine import loop
from engine.options import ClassWeighted, positive
from engine.run import Changes, Run

Args = argparse.Namespace
Held = Callable[[Tensor], tuple[Tensor, Tensor]]  # from indices to inputs and targets held out


@dataclass(frozen=True)
class Method:
    """One system.

    title: as a table names it. options: what it sets, which options given beside it overrule. own:
    its own hyper-parameters, each with the values that a study may try. criterion: the per-sample
    loss from (class_counts, args), where ``options`` do not name it. sampling: a kind of
    samplers.py. change: is given the model at the start of stage two. step: the name of the
    training step of stage two, a method of Applied. finish: changes the trained model. held_out:
    needs a balanced split of the training set. reads_counts: needs the class counts.
    """

    title: str
    options: dict[str, Any] = field(default_factory=lambda: {"optimizer": "sgd"})
    own: dict[str, tuple[float, ...]] = field(default_factory=dict)
    criterion: Callable[[Sequence[int], Args], nn.Module] | None = None
    from_start: bool = False
    sampling: str = "instance"
    change: Callable[[nn.Module, int], Any] | None = None
    step: str = "plain"
    finish: Callable[[Run], None] = lambda run: None
    held_out: bool = False
    reads_counts: bool = False

    @property
    def has_stage_two(self) -> bool:
        """Whether it changes anything there, its ``options`` aside."""
        begins_late = self.sampling != "instance" and not self.from_start
        return begins_late or self.change is not None or self.step != "plain"


def logit_adjusted(class_counts: Sequence[int], args: Args) -> nn.Module:
    return ta.PerSampleLogitAdjusted(class_counts, tau=args.tau)


def nearest_class_mean(run: Run) -> None:
    features, targets = loop.predict(run, "train", features=True)
    ncm = classifiers.NearestClassMean(features, targets, len(run.task.class_counts))
    run.model.fc = ncm.to(run.args.device)


def adjust_after(run: Run) -> None:
    fc, counts = run.model.fc, run.task.class_counts
    run.model.fc = classifiers.AdjustedClassifier(fc, counts, run.args.tau).to(run.args.device)


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
    "tau-norm": Method("τ-normalised", SGD, {"tau": (0.25, 0.5, 0.75, 1.0)},
                       finish=lambda run: classifiers.normalise(run.model.fc, run.args.tau)),
    "ncm": Method("NCM", SGD, finish=nearest_class_mean),
    "meta": Method("META (learning to reweight)", SGD, step="learning_to_reweight", held_out=True),
    "meta-da": Method("META (domain adaptation)", SGD, {"meta_rate": (1.0, 10.0, 100.0)},
                      step="domain_adaptation", held_out=True, reads_counts=True),
    "term": Method("TERM", ABSGD, {"lam": LAMS, "gamma": (0.1, 0.5, 0.9)}, step="no_momentum"),
    "recover": Method("RECOVER", SGD, {"lam": LAMS, "recover_a": (0.1, 0.5, 0.9)}, step="recover"),
    "exponentiated": Method("Exponentiated weights of the batch", {**ABSGD, "gamma": 1.0},
                            {"lam": LAMS}),
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    # fmt: off
    group = parser.add_argument_group("method")
    group.add_argument("--method", choices=METHODS, metavar="NAME",
                       help="another system, with what it sets: " + ", ".join(METHODS))
    group.add_argument("--tau", type=float, default=1.0,
                       help="of logit adjustment and of tau-normalisation")
    group.add_argument("--recover-a", type=float, default=0.1, help="RECOVER's a")
    group.add_argument("--meta-rate", type=float, default=10.0, help="meta-da's step of epsilon")
    group.add_argument("--held-out", type=positive, default=10, metavar="N",
                       help="samples of each class that META sets aside, of small classes a half")
    # fmt: on


class Applied(Changes):
    """A method in a run.

    Args:
        held_out: how many samples META holds out, and from indices into them to a batch.
    """

    def __init__(self, method: Method, held_out: tuple[int, Held] | None = None) -> None:
        self.method, self.held_out = method, held_out
        self.held_out_samples = held_out[0] if held_out else 0
        self.recovering: dro.Recover | None = None

    def criterion(self, run: Run, epoch: int) -> Any | None:
        own = self.method.criterion
        if own is None or not (self.method.from_start or epoch >= run.args.stage_two):
            return None
        return ClassWeighted(own(run.task.class_counts, run.args)).to(run.args.device)

    def batches(self, run: Run, in_stage_two: bool) -> EpochBatches:
        kind = self.method.sampling
        if kind == "instance" or not (in_stage_two or self.method.from_start):
            return run.task.batches
        args = run.args
        return ClassBatches(run.task.targets, args.batch_size, args.seed, kind, args.epochs)

    def enter_stage_two(self, run: Run) -> None:
        if self.method.change is not None:
            self.method.change(run.model, len(run.task.class_counts))
            run.model.to(run.args.device)
            run.build_training()  # momentum is another model's
        if self.method.step == "no_momentum":
            without_momentum(run)
        if self.method.step == "recover":
            group = run.optimizer.param_groups[0]
            self.recovering = dro.Recover(
                run.model, group["lr"], float(run.args.lam), run.args.recover_a,
                group["weight_decay"],
            )  # fmt: skip

    def step(self, run: Run, criterion: Any, inputs: Tensor, targets: Tensor) -> None:
        if not run.in_stage_two or self.method.step in ("plain", "no_momentum"):
            run.train_step(criterion, inputs, targets)
        else:
            getattr(self, self.method.step)(run, criterion, inputs, targets)

    def recover(self, run: Run, criterion: Any, inputs: Tensor, targets: Tensor) -> None:
        group = run.optimizer.param_groups[0]
        self.recovering.lr = group["lr"] / (1 - group["momentum"])  # as without_momentum
        targets = targets.to(run.args.device)
        losses = self.recovering.step(run.inputs(inputs), lambda logits: criterion(logits, targets))
        run.meter.add(losses, torch.ones_like(losses), targets)

    def learning_to_reweight(self, run: Run, criterion: Any, x: Tensor, y: Tensor) -> None:
        gain = self._gain(run, x, y, None)
        self._weighted_step(run, criterion, x, y, meta.learned_weights(gain))

    def domain_adaptation(self, run: Run, criterion: Any, x: Tensor, y: Tensor) -> None:
        of_class = ta.class_balanced_weights(run.task.class_counts).to(run.args.device)
        base = of_class[y.to(run.args.device)]
        gain = self._gain(run, x, y, base)
        p = meta.adapted_weights(gain, base, run.args.meta_rate)
        self._weighted_step(run, criterion, x, y, p)

    def _gain(self, run: Run, x: Tensor, y: Tensor, base: Tensor | None) -> Tensor:
        args, (size, held) = run.args, self.held_out
        seed = seed_of(args.seed, run.epoch, 3, run.batch)  # so that a resumed run draws the same
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        held_x, held_y = held(order[: len(y)])
        loss = meta.twice_differentiable(args.loss, run.task.class_counts, args.focal_gamma)
        return meta.look_ahead(
            run.model,
            (run.inputs(x), y.to(args.device)),
            (run.inputs(held_x), held_y.to(args.device)),
            run.optimizer.param_groups[0]["lr"],
            base,
            loss,
        )

    def _weighted_step(self, run: Run, criterion: Any, x: Tensor, y: Tensor, p: Tensor) -> None:
        weighted = ClassWeighted(lambda logits, targets: p * criterion(logits, targets))
        run.train_step(weighted, x, y)

    def finish(self, run: Run) -> None:
        self.method.finish(run)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.recovering is None else self.recovering.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.recovering is not None:
            self.recovering.load_state_dict(state)


def without_momentum(run: Run) -> None:
    """At lr/(1 − β), what momentum's steps add up to, so that all methods may try the same lr."""
    for i, group in enumerate(run.optimizer.param_groups):
        run.lr_schedule.base_lrs[i] /= 1 - group["momentum"]
        group["lr"] /= 1 - group["momentum"]
        group["momentum"] = 0.0
