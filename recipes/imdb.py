"""ABSGD and SGD on IMDB's reviews with 90 % of the negative training reviews removed.

    python recipes/imdb.py --preset absgd-ce --data-dir data --output-dir runs/imdb-absgd-ce
    python recipes/imdb.py --preset smoke --data-dir data --output-dir runs/imdb-smoke

A bidirectional LSTM; the test set is IMDB's own, half of it negative. Offline: all reviews in every
epoch. Online (--online): each review is seen once, in a stream whose class counts are not known to
the method; an epoch is then one of --epochs parts of the stream.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import data
import engine
import options
import text

# The paper's setting: 90 epochs, SGD for 60, then ABSGD; lr 0.01, ÷100 at 30 and ÷10,000 at 60.
PAPER: dict[str, Any] = {
    "epochs": 90, "stage_two": 60, "lr": 0.01, "lr_milestones": [30, 60], "lr_factor": 0.01,
    "warmup_epochs": 0, "lam": 5.0,
}  # fmt: skip

# Each review once: a stream in ten parts, ABSGD from its second half on.
ONLINE: dict[str, Any] = {
    **PAPER, "online": True, "epochs": 10, "stage_two": 5, "lr": 0.1, "lr_milestones": [],
}  # fmt: skip

# A setting in which a CPU trains several seeds: a smaller network, fewer epochs and, for these, a
# larger lr. imdb_table.py chooses lr and λ.
SMALL: dict[str, Any] = {
    **PAPER, "epochs": 12, "stage_two": 8, "lr": 0.5, "lr_milestones": [8], "lr_factor": 0.1,
    "batch_size": 32, "max_length": 200, "embedding": 32, "hidden": 32,
}  # fmt: skip

SMOKE: dict[str, Any] = {
    **SMALL, "epochs": 3, "stage_two": 2, "lr_milestones": [2], "limit": 2000,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    f"{prefix}{optimizer}-{loss}": {**setting, "optimizer": optimizer, "loss": loss}
    for prefix, setting in (("", PAPER), ("online-", ONLINE), ("small-", SMALL))
    for optimizer in ("sgd", "absgd")
    for loss in ("ce", "focal")
} | {"smoke": SMOKE}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    parser.add_argument("--preset", choices=sorted(PRESETS), metavar="NAME",
                        help=f"{', '.join(PRESETS)}; options given beside it win")
    imdb = parser.add_argument_group("data")
    imdb.add_argument("--data-dir", type=Path, default=Path("data"), help="holds aclImdb, or is it")
    imdb.add_argument("--keep-negative", type=float, default=0.1, metavar="FRACTION",
                      help="of the negative training reviews")
    imdb.add_argument("--limit", type=int, metavar="N",
                      help="at most N reviews of each class and split, for a quick trial")
    imdb.add_argument("--online", action="store_true", help="each review once, in a stream")
    imdb.add_argument("--max-words", type=int, default=20_000, help="of the vocabulary")
    imdb.add_argument("--max-length", type=int, default=256, help="words of a review that are read")
    net = parser.add_argument_group("network")
    net.add_argument("--embedding", type=int, default=128)
    net.add_argument("--hidden", type=int, default=128, help="in each direction")
    net.add_argument("--dropout", type=float, default=0.2)
    # fmt: on
    options.add_training_options(parser)
    parser.set_defaults(recipe="imdb", **PAPER)
    return parser


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    preset = parser.parse_known_args(argv)[0].preset
    if preset:
        parser.set_defaults(**PRESETS[preset])
    args = parser.parse_args(argv)
    options.check(parser, args)
    if not 0 < args.keep_negative <= 1:
        parser.error(f"--keep-negative must be in (0, 1], got {args.keep_negative}")
    if args.online and args.class_balance != "none":
        parser.error("--online: class counts are not known, so --class-balance must be none")
    return args


@functools.lru_cache(maxsize=4)
def load(
    root: Path, part: str, limit: int | None, max_words: int, max_length: int
) -> tuple[text.Reviews, int]:
    """(reviews, size of the vocabulary); the vocabulary is the training texts', before any are
    removed: it needs no labels."""
    texts, targets = text.read_texts(root, "train")
    vocabulary = text.Vocabulary(texts, max_words)
    if part == "test":
        texts, targets = text.read_texts(root, "test")
    reviews = text.Reviews(vocabulary.encode(texts, max_length), targets)
    if limit:
        counts = [min(limit, n) for n in reviews.class_counts()]
        reviews = reviews.subset(data.choose(targets, counts, seed=0))
    return reviews, len(vocabulary)


def training_splits(
    args: argparse.Namespace, reviews: text.Reviews
) -> tuple[text.Reviews, text.Reviews | None]:
    """(training, validation or None) of the reviews that are kept, drawn from the seed."""
    negative, positive = reviews.class_counts()
    counts = [max(1, round(args.keep_negative * negative)), positive]
    kept = reviews.subset(data.choose(reviews.targets, counts, args.seed))
    return data.hold_out(kept, args.validate, args.seed) if args.validate else (kept, None)


def build(args: argparse.Namespace) -> tuple[text.BiLSTM, engine.Task]:
    """The network, and the reviews as the engine wants them."""
    read = functools.partial(
        load, args.data_dir, limit=args.limit, max_words=args.max_words, max_length=args.max_length
    )
    reviews, num_words = read(part="train")
    train, validation = training_splits(args, reviews)

    def split(name: str) -> DataLoader:
        reviews = validation if name == "validation" else read(part="test")[0]
        order = [(0, i) for i in reviews.lengths().argsort().tolist()]
        return DataLoader(text.Padded(reviews), 250, sampler=order, collate_fn=data.as_is)

    parts = args.epochs if args.online else 1
    batches = text.Bucketed(train.lengths(), args.batch_size, args.seed, parts)
    loader, _ = data.training_loader(
        text.Padded(train), args.batch_size, args.seed, args.workers, batches=batches
    )
    model = text.BiLSTM(
        num_words, args.embedding, args.hidden, args.dropout, normed=args.loss == "ldam"
    )
    return model, engine.Task(
        loader, batches, train.class_counts(), split, lambda words: words, text.CLASSES
    )


def main(argv: Sequence[str] | None = None) -> dict[str, Any] | None:
    args = parse(argv)
    torch.manual_seed(args.seed)
    model, task = build(args)
    counts = dict(zip(text.CLASSES, task.class_counts, strict=True))
    print(f"IMDB: {sum(task.class_counts)} training reviews, {counts}")
    return engine.fit(args, model, task)


if __name__ == "__main__":
    try:
        main()
    except (FileExistsError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
