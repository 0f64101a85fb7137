"""Options of every run, and the losses, optimizer and schedules that they describe."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import torch_absgd as ta
from engine import distributed, lam_option

# What may differ between a run and the one that it resumes: nothing that its numbers depend on.
NOT_IN_CONFIG = {"output_dir", "resume", "stage_one", "stop_epoch", "data_dir", "lists_dir",
                 "download", "workers", "checkpoint_every", "preset", "tsne", "device",
                 "profile", "keep_going", "dry_run", "given"}  # fmt: skip

# What matters in stage two alone, or for speed; γ, α and the guards too, after stage one at λ = ∞.
STAGE_TWO_ONLY = {"optimizer", "lam", "lam_over", "epochs", "stage_two_layers", "weight_decay",
                  "eval_every", "eval_split", "eval_train", "amp", "channels_last",
                  "compile"}  # fmt: skip
PLAY_NO_PART_AT_INFINITY = {"gamma", "alpha", "max_weight", "keep_loss"}


class Parser(argparse.ArgumentParser):
    """Whose errors are one line, and whose help shows the defaults."""

    def __init__(self, description: str | None = None, **others: Any) -> None:
        super().__init__(description=description, formatter_class=WithDefaults, **others)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the options)\n")


class WithDefaults(argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str:
        said, default = action.help or "", action.default
        if default in (None, "", [], argparse.SUPPRESS) or default is False or "default" in said:
            return said
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        return f"{said} (default: {shown})"


def natural(text: str) -> int:
    """The type of an option: a whole number >= 0."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} (must be >= 0)")
    return int(text)


def positive(text: str) -> int:
    """The type of an option: a whole number >= 1."""
    if natural(text) == 0:
        raise argparse.ArgumentTypeError("0 (must be >= 1)")
    return int(text)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that do not depend on the data set."""
    # fmt: off
    loss = parser.add_argument_group("loss")
    loss.add_argument("--loss", choices=("ce", "focal", "ldam"), default="ce",
                      help="of a sample")
    loss.add_argument("--focal-gamma", type=float, default=1.0, help="of the focal loss")
    loss.add_argument("--class-balance", choices=("none", "cb", "drw"), default="none",
                      help="class weights by the effective number of samples (Cui et al. 2019, "
                      "beta 0.9999): from the start (cb), or from --stage-two (drw, deferred)")
    loss.add_argument("--class-weights", choices=("inside", "outside"), default="inside",
                      help="they multiply the loss, as in the paper; or stand outside the "
                      "exponential, as the base measure")

    opt = parser.add_argument_group("optimizer")
    opt.add_argument("--optimizer", choices=("sgd", "absgd"), default="absgd",
                     help="sgd is ABSGD at lambda = inf throughout")
    opt.add_argument("--lr", type=float, default=0.1, help="learning rate")
    opt.add_argument("--momentum", type=float, default=0.9, help="the paper's beta")
    opt.add_argument("--momentum-form", choices=("torch", "polyak"), default="torch",
                     help="as torch.optim.SGD, or the paper's Equation 2")
    opt.add_argument("--weight-decay", type=float, default=2e-4, help="as torch.optim.SGD's")
    opt.add_argument("--gamma", type=float, help="moving average of the normaliser (default: "
                     "0.9, and 1 where a rule finds lambda)")
    opt.add_argument("--alpha", type=float, default=1.0, help="the released code's abAlpha")
    opt.add_argument("--max-weight", type=float, metavar="C", help="cap of a sample's weight")
    opt.add_argument("--keep-loss", action="store_true",
                     help="scale the weights so that the weighted loss is the plain one")
    opt.add_argument("--batch-size", type=positive, default=128, help="of all processes together")
    opt.add_argument("--epochs", type=positive, default=200, help="of both stages")
    opt.add_argument("--warmup-epochs", type=natural,
                     help="linear warm-up of lr (default: 5, at most a tenth of --epochs)")
    opt.add_argument("--lr-schedule", choices=("step", "cosine"), default="step",
                     help="step: at --lr-milestones; cosine: to 0 at the end of each stage, from "
                     "--lr again at the start of stage two")
    opt.add_argument("--lr-milestones", type=int, nargs="*", metavar="EPOCH",
                     help="default: 160 180; of at most 160 --epochs, 0.8 and 0.9")
    opt.add_argument("--lr-factor", type=float, default=0.01, help="at each milestone")
    opt.add_argument("--layers", nargs="+", metavar="NAME",
                     help="train only these modules of the network (layer4 fc), the rest frozen")
    opt.add_argument("--stage-two-layers", nargs="+", metavar="NAME",
                     help="the same in stage two (fc); default: as --layers")

    lam = parser.add_argument_group("lambda")
    lam.add_argument("--lam", type=lam_option.argument, default=5.0,
                     help="in stage two; < 0 for noisy labels. ess:0.8 (ess:0.8:noisy) with "
                     "--keep-loss finds it so that 0.8 of a batch is effective, kl:0.5 so that "
                     "the weights are 0.5 nats from uniform")
    lam.add_argument("--lam-start", type=lam_option.argument, default=math.inf,
                     help="in stage one (inf: SGD); equal to --lam: one stage, lambda fixed")
    lam.add_argument("--stage-two", type=natural, metavar="EPOCH",
                     help="first epoch of stage two; equal to --epochs: there is none (default: "
                     "160; of at most 160 --epochs, 0.8)")
    lam.add_argument("--lam-over", type=natural, default=0, metavar="EPOCHS",
                     help="0: restart at --lam; otherwise go there over so many epochs")

    run = parser.add_argument_group("run")
    run.add_argument("--seed", type=natural, default=0, help="of all that is drawn")
    run.add_argument("--device", default=distributed.default_device(), help="cpu, cuda, cuda:1")
    run.add_argument("--workers", type=natural, default=0, help="loader processes")
    run.add_argument("--amp", choices=("bf16", "fp16"), help="automatic mixed precision")
    run.add_argument("--channels-last", action="store_true")
    run.add_argument("--compile", action="store_true", help="torch.compile the model")
    run.add_argument("--profile", action="store_true",
                     help="print which share of each epoch went to data, forward, backward, step")
    run.add_argument("--output-dir", type=Path, required=True)
    run.add_argument("--resume", action="store_true",
                     help="continue the run in --output-dir if there is one")
    run.add_argument("--stage-one", type=Path, metavar="CHECKPOINT",
                     help="begin with another run's checkpoint, of the same stage one")
    run.add_argument("--stop-epoch", type=positive, metavar="EPOCH",
                     help="stop before this epoch, leaving a checkpoint and no results")
    run.add_argument("--checkpoint-every", type=natural, default=0, metavar="BATCHES",
                     help="also within an epoch; a checkpoint follows every epoch in any case")
    run.add_argument("--keep-going", action="store_true",
                     help="exit with 0 even if the accuracy is that of chance, or the weights "
                     "collapsed")

    evaluation = parser.add_argument_group("evaluation")
    evaluation.add_argument("--validate", type=float, default=0.0, metavar="FRACTION",
                            help="hold out this part of each class of the training set, report on "
                            "it, and leave the test set unread: for choosing hyper-parameters")
    evaluation.add_argument("--eval-every", type=natural, default=0, metavar="EPOCHS",
                            help="also evaluate during training, on --eval-split")
    evaluation.add_argument("--eval-split", choices=("validation", "test"), default="validation",
                            help="test only to draw a curve, never to choose anything")
    evaluation.add_argument("--eval-train", action="store_true",
                            help="with --eval-every: on the training samples too, unaugmented")
    evaluation.add_argument("--tsne", action="store_true", help="plot t-SNE of the features")
    # fmt: on


def fill_in(args: argparse.Namespace) -> None:
    """The defaults that depend on --epochs: a run too short for those of 200 epochs has them in
    proportion."""
    epochs = args.epochs if args.epochs <= 160 else 200
    if args.stage_two is None:
        args.stage_two = epochs * 4 // 5
    if args.lr_milestones is None:
        of = 200 if args.lr_schedule == "cosine" else epochs  # which does not read them
        args.lr_milestones = sorted({of * 4 // 5, of * 9 // 10} - {0})
    if args.warmup_epochs is None:
        args.warmup_epochs = min(5, args.epochs // 10)


def changes_lam(args: argparse.Namespace) -> bool:
    """Whether stage two is at another λ than stage one."""
    return args.optimizer == "absgd" and args.lam != args.lam_start


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with the parser's error if options contradict each other. From here on, the first
    process of a run alone prints."""
    distributed.silence()
    fault = next(_faults(args), None)
    if fault:
        parser.error(fault)


def _faults(args: argparse.Namespace) -> Any:
    try:
        device = torch.device(args.device)
        if device.type != "cuda":
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        yield f"--device {args.device}: no such device (cpu, cuda, cuda:1)"
        return
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        yield (f"--device {args.device}: torch sees {count or 'no'} CUDA card{'s' * (count != 1)}; "
               "--device cpu trains without")  # fmt: skip
    if not 0 <= args.validate < 1:
        yield f"--validate must be in [0, 1), got {args.validate}"
    if args.eval_every and args.eval_split == "validation" and not args.validate:
        yield "--eval-every on the validation split needs --validate FRACTION"
    if args.eval_every and args.eval_split == "test" and args.validate:
        yield "--validate leaves the test set unread: drop --eval-split test"
    try:  # what they are made of is checked by what they are
        build_optimizer(args, nn.ParameterList([torch.zeros(1)]))
        build_losses(args, [1, 1], "cpu")
    except ValueError as error:
        yield str(error)
    if args.stage_one and not args.stage_one.exists():
        yield f"--stage-one: no such file: {args.stage_one}"


def config_of(args: argparse.Namespace) -> dict[str, object]:
    """The options that a run's numbers depend on, as JSON and checkpoints hold them."""
    config = {k: v for k, v in sorted(vars(args).items()) if k not in NOT_IN_CONFIG}
    return {k: str(v) if isinstance(v, Path) else v for k, v in config.items()}


def as_named_now(config: dict[str, Any]) -> dict[str, Any]:
    """The options of a checkpoint made before --data, when --dataset named its set."""
    config = dict(config)
    if "dataset" in config:
        config["data"] = config.pop("dataset")
        if config.get("gamma") == 0.9:
            config["gamma"] = None  # the default, which is now resolved by the optimizer
    return config


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """name: (ours, theirs) of options that differ; what theirs do not name is as if it were the
    same."""
    theirs = as_named_now(theirs)
    return {k: (v, theirs[k]) for k, v in ours.items() if k in theirs and v != theirs[k]}


def may_differ_after_stage_one(args: argparse.Namespace, theirs: dict[str, Any]) -> set[str]:
    """What a run may have otherwise than the run whose stage one it takes over."""
    free = STAGE_TWO_ONLY | {"method", "tau", "recover_a", "meta_rate"}
    if args.class_balance != "cb" and theirs.get("class_balance") != "cb":
        free |= {"class_balance", "class_weights"}
    if args.lam_start == math.inf:
        free |= PLAY_NO_PART_AT_INFINITY

    def before(milestones: Sequence[int]) -> list[int]:
        return [m for m in milestones if m < args.stage_two]

    if before(args.lr_milestones) == before(theirs.get("lr_milestones", args.lr_milestones)):
        free |= {"lr_milestones"} if args.lr_schedule == "step" else set()
    if not before(args.lr_milestones) or args.lr_schedule == "cosine":
        free |= {"lr_factor"}
    return free


class ClassWeighted(nn.Module):
    """A per-sample loss and, for weights outside the exponential, each sample's weight."""

    def __init__(self, loss: nn.Module, weight: Tensor | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.loss(logits, targets)

    def of_samples(self, targets: Tensor) -> dict[str, Tensor]:
        """The keyword that ``weigh`` is called with."""
        return {} if self.weight is None else {"weight": self.weight[targets]}


def build_losses(
    args: argparse.Namespace, class_counts: Sequence[int], device: str
) -> Callable[[int], ClassWeighted]:
    """The per-sample loss as a function of the epoch: DRW's weights begin with stage two."""

    def build(weight: Tensor | None) -> ClassWeighted:
        inside = weight if args.class_weights == "inside" else None
        outside = weight if args.class_weights == "outside" else None
        if args.loss == "ldam":
            loss: nn.Module = ta.PerSampleLDAM(class_counts, weight=inside)
        elif args.loss == "focal":
            loss = ta.PerSampleFocal(gamma=args.focal_gamma, weight=inside)
        else:
            loss = ta.PerSampleCrossEntropy(weight=inside)
        return ClassWeighted(loss, outside).to(device)

    plain = build(None)
    if args.class_balance == "none":
        return lambda epoch: plain
    balanced = build(ta.class_balanced_weights(class_counts))
    begin = 0 if args.class_balance == "cb" else args.stage_two
    return lambda epoch: balanced if epoch >= begin else plain


def check_layers(args: argparse.Namespace, model: nn.Module) -> None:
    """Raises ValueError if --layers or --stage-two-layers names no module of ``model``."""
    for name in ("layers", "stage_two_layers"):
        try:
            if getattr(args, name):
                ta.freeze_except(model, *getattr(args, name))
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')}: {error}") from None
        finally:
            ta.unfreeze(model)


def freeze(args: argparse.Namespace, model: nn.Module, epoch: int) -> None:
    """Leaves trainable what --layers, or in stage two --stage-two-layers, says: by default all.

    Raises:
        ValueError: a name is no module of ``model``; lists those that are.
    """
    in_stage_two = epoch >= args.stage_two and args.stage_two_layers
    layers = args.stage_two_layers if in_stage_two else args.layers
    if layers:
        ta.freeze_except(model, *layers)
    else:
        ta.unfreeze(model)


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> ta.ABSGD:
    return ta.ABSGD(
        model.parameters(),
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        lam=math.inf if args.optimizer == "sgd" else lam_option.parse(args.lam_start),
        gamma=args.gamma,
        alpha=args.alpha,
        momentum_form=args.momentum_form,
        max_weight=args.max_weight,
        keep_loss=args.keep_loss,
    )


def build_schedules(
    args: argparse.Namespace, optimizer: ta.ABSGD
) -> tuple[LambdaLR, ta.LamScheduler]:
    """Warm-up and decay of lr; stage two of λ. Both count epochs."""

    def lr_factor(epoch: int) -> float:
        if epoch < args.warmup_epochs:
            return (epoch + 1) / args.warmup_epochs
        if args.lr_schedule == "cosine":
            begin, end = 0, min(args.stage_two, args.epochs)
            if epoch >= end:
                begin, end = end, max(args.epochs, epoch + 1)
            return (1 + math.cos(math.pi * (epoch - begin) / (end - begin))) / 2
        return args.lr_factor ** sum(epoch >= milestone for milestone in args.lr_milestones)

    milestones: dict[int, Any] = {}
    if changes_lam(args):
        milestones = {args.stage_two: lam_option.parse(args.lam)}
    scheduler = ta.LamScheduler(optimizer, milestones, over=args.lam_over)
    return LambdaLR(optimizer, lr_factor), scheduler
