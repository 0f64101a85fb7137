"""Texts as sequences of words: reading them, a vocabulary, batches of like length.

A batch is padded to its longest text, so texts of like length go together: an epoch's random order
is cut into pools of many batches, each pool is sorted by length and cut into batches, and these are
shuffled again. Consecutive batches are then as unlike as in a plain random order.
"""

from __future__ import annotations

import functools
import hashlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from data.lists import parts_of, read_folder, read_utf8
from data.order import EpochBatches, as_is, seed_of
from data.source import Source
from data.subsets import limited
from models import PADDING

UNKNOWN, SPECIAL = 1, 2  # ids of a word out of the vocabulary; how many are no words
TEXTS = frozenset({".txt"})


@dataclass(frozen=True)
class Texts:
    """words: an int32 array of word ids for each text; targets: int64 [N]; classes: their names."""

    words: Sequence[np.ndarray]
    targets: Tensor
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.targets)

    def lengths(self) -> Tensor:
        return torch.tensor([len(words) for words in self.words])

    def subset(self, indices: Tensor) -> Texts:
        words = [self.words[i] for i in indices.tolist()]
        return Texts(words, self.targets[indices], self.classes)

    def fingerprint(self) -> str:
        content = hashlib.blake2b(self.targets.numpy().tobytes(), digest_size=16)
        for words in self.words:
            content.update(words.tobytes() + b".")
        return content.hexdigest()


def read_texts(
    folder: Path, classes: Sequence[str] | None = None
) -> tuple[list[str], Tensor, Sequence[str]]:
    """(texts, targets, classes) of ``folder/<class>/*.txt``, in the order of their names.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is nested otherwise, or a text is not UTF-8; names it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of texts: {folder}")
    files = read_folder(folder, classes, TEXTS)
    texts = [read_utf8(folder / path) for path in files.paths]
    return texts, files.targets, files.classes


class Vocabulary:
    """The most frequent words of the texts that it is made from; ids begin after SPECIAL."""

    def __init__(self, texts: Sequence[str], max_words: int) -> None:
        vectorizer = CountVectorizer(max_features=max_words).fit(texts)
        self.split = vectorizer.build_analyzer()
        self.ids = {word: SPECIAL + i for word, i in vectorizer.vocabulary_.items()}

    def __len__(self) -> int:
        return SPECIAL + len(self.ids)

    def encode(self, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
        """The ids of the first ``max_length`` words of each text; one UNKNOWN for an empty one."""
        return [
            np.array(
                [self.ids.get(word, UNKNOWN) for word in self.split(text)[:max_length]]
                or [UNKNOWN],
                dtype=np.int32,
            )
            for text in texts
        ]


def pad(words: Sequence[np.ndarray]) -> Tensor:
    """[B, T] int32, T the longest of them."""
    return pad_sequence([torch.from_numpy(ids) for ids in words], True, PADDING)


class Padded(Dataset):
    """Batches of texts; takes the (epoch, index) keys of an :class:`EpochBatches`."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        index = [i for _, i in keys]
        return pad([self.texts.words[i] for i in index]), self.texts.targets[index]


class Bucketed(EpochBatches):
    """Batches of texts of like length, drawn from (seed, epoch).

    Args:
        lengths: int64 [N].
        parts: 1: every epoch has all texts. More: a stream that is seen once in so many epochs,
            each of which has a part of it.
        pool: how many batches are sorted together.
    """

    def __init__(
        self, lengths: Tensor, batch_size: int, seed: int, parts: int = 1, pool: int = 50
    ) -> None:
        super().__init__(len(lengths), batch_size, seed)
        self.lengths, self.parts, self.pool = lengths, parts, pool

    def indices(self) -> Tensor:
        """The texts of the epoch, in random order."""
        generator = torch.Generator()
        if self.parts == 1:
            generator.manual_seed(seed_of(self.seed, self.epoch, 0))
            return torch.randperm(self.num_samples, generator=generator)
        generator.manual_seed(seed_of(self.seed, 0))
        stream = torch.randperm(self.num_samples, generator=generator)
        return stream.tensor_split(self.parts)[self.epoch]

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = []
        for pool in self.indices().split(self.pool * self.batch_size):
            batches += pool[self.lengths[pool].argsort(stable=True)].split(self.batch_size)
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch, 2))
        order = torch.randperm(len(batches), generator=generator).tolist()
        for b in order[self.batch :]:
            yield [(self.epoch, index) for index in batches[b].tolist()]

    def __len__(self) -> int:
        return -(-len(self.indices()) // self.batch_size)


# ---- as --data


@functools.lru_cache(maxsize=4)  # a study reads them once
def read_parts(
    train: Path, test: Path | None, max_words: int, max_length: int
) -> tuple[Texts, Texts | None, int]:
    """(training texts, test texts, size of the vocabulary); the vocabulary is the training texts',
    before any are removed: it needs no labels."""
    texts, targets, classes = read_texts(train)
    try:
        vocabulary = Vocabulary(texts, max_words)
    except ValueError:
        raise ValueError(f"{train}: no word of two letters or more in any text") from None
    train_texts = Texts(vocabulary.encode(texts, max_length), targets, classes)
    if test is None:
        return train_texts, None, len(vocabulary)
    texts, targets, _ = read_texts(test, classes)
    test_texts = Texts(vocabulary.encode(texts, max_length), targets, classes)
    return train_texts, test_texts, len(vocabulary)


def open_texts(args: Namespace, root: Path) -> Source:
    train, test, num_words = read_parts(*parts_of(root), args.max_words, args.max_length)

    def evaluation(texts: Texts, batch_size: int) -> DataLoader:
        order = [(0, i) for i in texts.lengths().argsort().tolist()]
        return DataLoader(Padded(texts), 250, sampler=order, collate_fn=as_is)

    parts = args.epochs if args.online else 1
    return Source(
        limited(train, args.limit),
        None if test is None else lambda: limited(test, args.limit),
        ("text", num_words),
        lambda texts, seed: Padded(texts),
        evaluation,
        batches=lambda texts, size, seed: Bucketed(texts.lengths(), size, seed, parts),
    )


def open_imdb(args: Namespace) -> Source:
    """aclImdb, in --data-dir or --data-dir itself: {train,test}/{neg,pos}."""
    root = args.data_dir
    root = root / "aclImdb" if (root / "aclImdb").is_dir() else root
    if not (root / "train" / "neg").is_dir():
        raise FileNotFoundError(
            f"no reviews in {root / 'train' / 'neg'}: --data-dir must hold aclImdb, or be it "
            "(https://ai.stanford.edu/~amaas/data/sentiment/)"
        )
    return open_texts(args, root)
