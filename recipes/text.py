"""Reviews as sequences of words: reading them, a vocabulary, batches of like length, a network.

A batch is padded to its longest review, so reviews of like length go together: an epoch's random
order is cut into pools of many batches, each pool is sorted by length and cut into batches, and
these are shuffled again. Consecutive batches are then as unlike as in a plain random order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor, nn
from torch.utils.data import Dataset

import torch_absgd as ta
from data import EpochBatches, seed_of

PADDING, UNKNOWN, SPECIAL = 0, 1, 2  # ids of no word, of a word out of the vocabulary; how many
CLASSES = ("neg", "pos")


@dataclass(frozen=True)
class Reviews:
    """words: an int32 array of word ids for each review; targets: int64 [N], 0 neg, 1 pos."""

    words: Sequence[np.ndarray]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def lengths(self) -> Tensor:
        return torch.tensor([len(words) for words in self.words])

    def subset(self, indices: Tensor) -> Reviews:
        return Reviews([self.words[i] for i in indices.tolist()], self.targets[indices])

    def class_counts(self) -> list[int]:
        return torch.bincount(self.targets, minlength=len(CLASSES)).tolist()


def read_texts(root: str | Path, part: str) -> tuple[list[str], Tensor]:
    """The texts of ``aclImdb/{train,test}/{neg,pos}/<id>_<rating>.txt``, in the order of their
    names, and their targets.

    Raises:
        FileNotFoundError: ``root`` is neither aclImdb nor holds it.
        ValueError: a review is not UTF-8; names it.
    """
    root = Path(root)
    base = root / "aclImdb" if (root / "aclImdb").is_dir() else root
    texts, targets = [], []
    for target, name in enumerate(CLASSES):
        files = sorted((base / part / name).glob("*.txt"))
        if not files:
            raise FileNotFoundError(
                f"no reviews in {base / part / name}: --data-dir must hold aclImdb, or be it "
                "(https://ai.stanford.edu/~amaas/data/sentiment/)"
            )
        for file in files:
            try:
                texts.append(file.read_text(encoding="utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{file} is not UTF-8: {error}") from error
        targets += [target] * len(files)
    return texts, torch.tensor(targets)


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
    padded = np.full((len(words), max(map(len, words))), PADDING, dtype=np.int32)
    for row, ids in zip(padded, words, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(padded)


class Padded(Dataset):
    """Batches of reviews; takes the (epoch, index) keys of an :class:`EpochBatches`."""

    def __init__(self, reviews: Reviews) -> None:
        self.reviews = reviews

    def __len__(self) -> int:
        return len(self.reviews)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        index = [i for _, i in keys]
        return pad([self.reviews.words[i] for i in index]), self.reviews.targets[index]


class Bucketed(EpochBatches):
    """Batches of reviews of like length, drawn from (seed, epoch).

    Args:
        lengths: int64 [N].
        parts: 1: every epoch has all reviews. More: a stream that is seen once in so many epochs,
            each of which has a part of it.
        pool: how many batches are sorted together.
    """

    def __init__(
        self, lengths: Tensor, batch_size: int, seed: int, parts: int = 1, pool: int = 50
    ) -> None:
        super().__init__(len(lengths), batch_size, seed)
        self.lengths, self.parts, self.pool = lengths, parts, pool

    def indices(self) -> Tensor:
        """The reviews of the epoch, in random order."""
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


class BiLSTM(nn.Module):
    """Word ids [B, T], padded at the end, to logits [B, 2]; ``features`` gives [B, 2·hidden].

    A bidirectional LSTM, the maximum of its outputs over the review, dropout and a linear layer.
    The backward direction is an LSTM over each review reversed in place, padding still at its end:
    what comes after a review cannot touch it, so nothing need be packed. The outputs are those of
    a packed ``nn.LSTM(bidirectional=True)``, for which torch has no fused kernel on the CPU.
    """

    def __init__(
        self,
        num_words: int,
        embedding: int = 64,
        hidden: int = 64,
        dropout: float = 0.2,
        normed: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, embedding, padding_idx=PADDING)
        self.forwards = nn.LSTM(embedding, hidden, batch_first=True)
        self.backwards = nn.LSTM(embedding, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = (ta.NormedLinear if normed else nn.Linear)(2 * hidden, len(CLASSES))

    def features(self, words: Tensor) -> Tensor:
        is_word = words != PADDING
        length = is_word.sum(1, keepdim=True)
        position = torch.arange(words.shape[1], device=words.device).expand(words.shape)
        reverse = torch.where(is_word, length - 1 - position, position)
        ahead, _ = self.forwards(self.embedding(words))
        back, _ = self.backwards(self.embedding(words.gather(1, reverse)))
        outputs = torch.cat([ahead, back], 2).masked_fill(~is_word[:, :, None], -torch.inf)
        return outputs.amax(1)

    def forward(self, words: Tensor) -> Tensor:
        return self.fc(self.dropout(self.features(words)))
