"""Trains a classifier on your data, or on a set of the paper, with SGD, ABSGD or another method.

    python recipes/train.py --data flowers --arch resnet50 --pretrained imagenet --output-dir runs/a
    python recipes/train.py --data patients.csv --target outcome --validate 0.2 --output-dir runs/b
    python recipes/train.py --data reviews --output-dir runs/c       # reviews/train/<class>/*.txt
    python recipes/train.py --data list.txt --test test.txt --data-dir images --output-dir runs/d
    python recipes/train.py --preset cifar10-lt-100-absgd-cb-ce --data-dir data --output-dir runs/e
    torchrun --nproc-per-node=8 recipes/train.py --data flowers --output-dir runs/f

Choose hyper-parameters with --validate 0.2, for every method alike; the test set is then not read.
After a kill, --resume ends with the bits of a run that was never stopped.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import models
import presets
from baselines import methods
from baselines.methods import METHODS, Applied, Method
from data import decode, noise
from data.open import NAMES, look_at, make_splits, open_source
from data.source import Source
from data.subsets import Records, class_counts, take_balanced
from engine import distributed, loop, options
from engine.options import positive
from engine.run import Task


def build_parser() -> argparse.ArgumentParser:
    parser = options.Parser(__doc__)
    # fmt: off
    parser.add_argument("--preset", metavar="NAME",
                        help="the paper's settings by name (recipes/presets.py lists them); "
                        "options given beside it win")
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="WHAT",
                      help="a folder with train/<class>/* of images or texts, a list of `path "
                      "label` lines, a table (.csv, .parquet), or " + ", ".join(NAMES))
    data.add_argument("--data-dir", type=Path,
                      help="where a set by name is, or the paths of a list begin")
    data.add_argument("--lists-dir", type=Path, help="where published lists are, if elsewhere")
    data.add_argument("--test", type=Path, metavar="FILE", help="list or table to test on")
    data.add_argument("--target", metavar="COLUMN", help="of a table: the class")
    data.add_argument("--drop", nargs="+", default=[], metavar="COLUMN",
                      help="of a table: no inputs (a row's name, say)")
    data.add_argument("--download", action="store_true", help="fetch CIFAR if it is not there")
    data.add_argument("--limit", type=positive, metavar="N",
                      help="only N samples of each class and split, for a quick trial")
    data.add_argument("--keep", nargs="+", default=[], metavar="CLASS:FRACTION",
                      help="of these classes only a part of the training samples stays")
    data.add_argument("--imbalance", choices=("lt", "step", "none"), default="none",
                      help="make it long-tailed or step-imbalanced")
    data.add_argument("--imbalance-ratio", type=float, default=100.0,
                      help="largest class over smallest")
    data.add_argument("--label-noise", metavar="KIND:RATE",
                      help="sym:0.4 (to any other class), asym:0.4 (CIFAR: to the class it is "
                      "confused with), uniform:0.4 (to any class)")
    data.add_argument("--validate-clean", action="store_true",
                      help="--validate holds out before imbalance and noise are made")
    images = parser.add_argument_group("images")
    images.add_argument("--image-size", type=positive, default=224, help="of image files")
    images.add_argument("--colour-jitter", type=float, default=0.4, help="0: none")
    images.add_argument("--shrink", type=positive, default=1, help="CIFAR: average so many pixels")
    images.add_argument("--decode", choices=decode.DECODERS,
                        default="torchvision" if decode.HAS_FAST_DECODER else "pil",
                        help="torchvision: its own JPEG decoder, the default where it is built in")
    texts = parser.add_argument_group("texts")
    texts.add_argument("--max-words", type=positive, default=20_000, help="of the vocabulary")
    texts.add_argument("--max-length", type=positive, default=256, help="words of a text")
    texts.add_argument("--online", action="store_true",
                       help="each text once, in a stream of --epochs parts")
    net = parser.add_argument_group("network")
    net.add_argument("--arch", help="resnet20 … resnet110 (CIFAR's), or any of torchvision.models")
    net.add_argument("--pretrained", default="none", metavar="none|imagenet|FILE",
                     help="begin from nothing, from torchvision's ImageNet weights (fetched at "
                     "first use), or from a file with a state_dict; the last layer begins anew")
    net.add_argument("--hidden", type=positive, help="of the MLP (64), the LSTM each way (128)")
    net.add_argument("--embedding", type=positive, default=128, help="of the LSTM")
    net.add_argument("--dropout", type=float, default=0.2, help="of the LSTM")
    # fmt: on
    options.add_training_options(parser)
    methods.add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="look at all data; train nothing")
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    early, _ = parser.parse_known_args(argv)
    if early.preset:
        if early.preset not in presets.PRESETS:
            near = [name for name in presets.PRESETS if early.preset.split("-")[0] in name]
            parser.error(f"--preset {early.preset}: there is none; try {', '.join(near[:12])}")
        parser.set_defaults(**presets.PRESETS[early.preset])
    method = early.method or (early.preset and presets.PRESETS[early.preset].get("method"))
    if method:
        parser.set_defaults(**METHODS[method].options)
    args = parser.parse_args(argv)
    args.given = {name for name, v in vars(args).items() if v != parser.get_default(name)}
    options.fill_in(args)
    options.check(parser, args)
    fault = next(faults(args), None)
    if fault:
        parser.error(fault)
    return args


def idle(args: argparse.Namespace) -> list[str]:
    """The options that were given and change nothing."""
    own = METHODS[args.method].own if args.method else {}
    has_loss = has_own_loss(args)
    is_idle = {
        "pretrained": args.arch in ("mlp", "lstm"),
        "online": args.arch != "lstm",
        "lam": args.optimizer == "sgd" and "lam" not in own,
        "tau": "tau" not in own,
        "recover_a": "recover_a" not in own,
        "meta_rate": "meta_rate" not in own,
        "focal_gamma": args.loss != "focal",
        "class_balance": has_loss,
        "class_weights": args.class_balance == "none" or has_loss,
        "eval_train": not args.eval_every,
        "stop_epoch": args.stop_epoch is not None and args.stop_epoch > args.epochs,
    }
    found = [name for name, on in is_idle.items() if on and name in args.given]
    return [f"--{name.replace('_', '-')}" for name in found]


def notes(args: argparse.Namespace) -> list[str]:
    """What is odd about the options, but no error."""
    found = [f"note: {option} has no effect here" for option in idle(args)]
    method = METHODS.get(args.method)
    decays = sum(epoch <= args.stage_two for epoch in args.lr_milestones)
    lr = args.lr * args.lr_factor**decays
    if method and method.change and args.lr_schedule == "step" and lr < 0.1 * args.lr:
        found.append(
            f"note: --method {args.method} begins a part of the network anew, at a learning rate "
            f"of {lr:g}: try --lr-schedule cosine or --lr-factor 0.1"
        )
    return found


def has_own_loss(args: argparse.Namespace) -> bool:
    """Whether --method is a loss, which those of --loss and --class-balance give way to."""
    return args.method is not None and METHODS[args.method].criterion is not None


def faults(args: argparse.Namespace) -> Any:
    if args.data is None:
        yield "--data WHAT or --preset NAME is needed"
    if args.imbalance_ratio < 1:
        yield f"--imbalance-ratio must be >= 1, got {args.imbalance_ratio}"
    if args.pretrained not in ("none", "imagenet") and not Path(args.pretrained).is_file():
        yield f"--pretrained: neither none nor imagenet nor a file: {args.pretrained}"
    if has_own_loss(args) and "loss" in args.given:
        yield f"--method {args.method} is a loss of its own: leave out --loss {args.loss}"
    if args.online and (args.class_balance != "none" or args.loss == "ldam"):
        yield "--online: class counts are not known, so no class balance and no LDAM"
    method = METHODS.get(args.method)
    lost = next((option for option, on in of_stage_two(args, method).items() if on), None)
    if lost and args.stage_two > args.epochs and args.stop_epoch is None:
        of = "" if "stage_two" in args.given else f" of --preset {args.preset}"
        yield (f"--stage-two {args.stage_two}{of} is past --epochs {args.epochs}, so {lost} has no "
               f"effect: lower it; at {args.epochs}, stage one alone is trained")  # fmt: skip
    if method and (method.held_out or method.step == "recover") and distributed.world_size() > 1:
        yield f"--method {args.method} is not for several processes"
    if method and method.step == "recover" and isinstance(args.lam, str):
        yield "--method recover needs a number for --lam"
    if args.label_noise:
        try:
            noise.parse_noise(args.label_noise)
        except ValueError as error:
            yield str(error)
    named = args.data in NAMES or str(args.data).startswith("covid-lt-")
    if named and args.data_dir is None:
        args.data_dir = Path("data")


def of_stage_two(args: argparse.Namespace, method: Method | None) -> dict[str, bool]:
    """The options that begin with stage two, and whether the run has each."""
    return {
        f"--lam {args.lam}": options.changes_lam(args),
        "--class-balance drw": args.class_balance == "drw" and not has_own_loss(args),
        "--stage-two-layers": bool(args.stage_two_layers),
        f"--method {args.method}": method is not None and method.has_stage_two,
    }


def plan(args: argparse.Namespace) -> str:
    """One line: where stage two begins, and with what."""
    begun = [what for what, on in of_stage_two(args, METHODS.get(args.method)).items() if on]
    if not begun:
        lam = f"absgd at lambda {args.lam}" if args.optimizer == "absgd" else "sgd"
        return f"one stage, of {lam}"
    if args.stage_two >= args.epochs:
        return f"no stage two in {args.epochs} epochs: {', '.join(begun)} will not begin"
    return f"stage two from epoch {args.stage_two} of {args.epochs}: {', '.join(begun)}"


def build(args: argparse.Namespace) -> tuple[nn.Module, Task, Applied | None]:
    """The network, what there is to learn, and what --method changes; all data are looked at."""
    source = open_source(args)
    splits = make_splits(args, source)
    odd = look_at(splits)
    check_empty(args, splits.train)
    train, method, held = splits.train, METHODS.get(args.method), None
    if method and method.held_out:
        per_class = max(1, min(args.held_out, min(class_counts(train)) // 2))
        train, held = take_balanced(train, per_class, args.seed)
    parts = {"train": train, splits.split: splits.judge()}
    task = task_of(args, source, parts, splits.split)
    args.arch = args.arch or models.default_arch(
        source.input[0], small_images=args.data in ("cifar10", "cifar100", "fashion-mnist")
    )
    network = models.network(args, source.input, len(train.classes))
    options.check_layers(args, network)
    counts = task.class_counts
    print(
        f"{args.data}: {sum(counts)} training samples of {len(counts)} classes, per class "
        f"{max(counts)} to {min(counts)}; {len(parts[splits.split])} to judge by "
        f"({splits.split}); {args.arch}"
    )
    for line in odd:
        print(f"note: {line}")
    return network, task, method and Applied(method, held and (len(held), drawing(source, held)))


def check_empty(args: argparse.Namespace, train: Records) -> None:
    """Raises ValueError where a class has no samples and something computes with its count."""
    method, counts = METHODS.get(args.method), class_counts(train)
    empty = [str(name) for name, n in zip(train.classes, counts, strict=True) if n == 0]
    needs = {
        f"--class-balance {args.class_balance}": args.class_balance != "none",
        "--loss ldam": args.loss == "ldam",
        f"--method {args.method}": method and (method.criterion or method.held_out),
    }
    for option, on in needs.items():
        if empty and on:
            raise ValueError(
                f"{option} takes training samples of every class, and there are none of "
                f"{', '.join(empty[:5])}: remove its folder, or number the labels without gaps"
            )


def task_of(
    args: argparse.Namespace, source: Source, parts: dict[str, Records], judged_by: str
) -> Task:
    train = parts["train"]
    return Task(
        source.training(train, args.seed),
        source.batches(train, args.batch_size, args.seed),
        train.targets,
        class_counts(train),
        lambda name: source.evaluation(parts[name], args.batch_size),
        judged_by,
        source.prepare,
        train.classes,
        " ".join(parts[name].fingerprint() for name in ("train", judged_by)),
    )


def drawing(source: Source, held: Records) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """From indices into ``held`` to a batch, without augmentation."""

    def draw(indices: Tensor) -> tuple[Tensor, Tensor]:
        loader: DataLoader = source.evaluation(held.subset(indices), len(indices))
        inputs, targets = zip(*loader, strict=True)
        return torch.cat(inputs), torch.cat(targets)

    return draw


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    """A run, from its options to the contents of results.json and whether to keep going in spite of
    alarms; None where there are none."""
    args = parse(argv)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = True
    network, task, changes = build(args)
    for line in (plan(args), *notes(args)):
        print(line)
    if args.dry_run:
        print(f"would train {args.epochs} epochs of {len(task.batches)} batches")
        return None
    results = loop.fit(args, network, task, changes)
    return results and {**results, "keep_going": args.keep_going}


def run(main: Callable[[], Any] = main) -> None:
    """``main``, with what a user can set right told in one line, and its end as an exit status: 1
    an error, 3 numbers that should not be used."""
    warnings.filterwarnings("ignore", "The image decoding and encoding")  # of torchvision 0.29
    try:
        results = main()
    except (OSError, ValueError, FloatingPointError) as error:
        # An error in a loader's process arrives with that process's traceback before its message.
        sys.exit(f"error: {str(error).strip().splitlines()[-1]}")
    except KeyboardInterrupt:
        sys.exit("stopped: --resume goes on from the last checkpoint")
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        sys.exit("error: a loader process died (out of memory?): --resume goes on, perhaps with "
                 "fewer --workers")  # fmt: skip
    if results and results.get("alarms") and not results["keep_going"]:
        sys.exit(3)


if __name__ == "__main__":
    run()
