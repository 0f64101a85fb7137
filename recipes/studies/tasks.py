"""The tasks of the suite: small, real or standard, each on a CPU in seconds.

A task is features and labels to train on, a training subset for every seed, and what it is judged
on: a part held out of the training set ("validation"), on which settings are chosen, or the test
set, read once at the end. Groups are what accuracy is averaged over: the classes, or hidden
sub-populations of them. Real data that is not bundled with scikit-learn is found in ABSGD_DATA.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_classification
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

import torch_absgd as ta
from data.noise import confusions
from data.text import SPECIAL, Vocabulary

ANIMAL = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0, 0])  # of CIFAR-10's classes; 0: a vehicle
DATA = Path(os.environ.get("ABSGD_DATA", "../shared/data"))


@dataclass(frozen=True)
class Part:
    x: Tensor  # [n, d]
    y: Tensor  # [n], labels
    group: Tensor  # [n]


@dataclass(frozen=True)
class Task:
    """One task; ``counts`` are the training samples kept of each group."""

    name: str
    train: Part
    held: Part
    counts: tuple[int, ...]
    hidden: int  # units of the hidden layer; 0: a linear model
    epochs: int
    batch_size: int = 64
    noise: float = 0.0  # share of labels drawn at random
    is_asymmetric: bool = False  # … or that of CIFAR-10's class which it is confused with
    has_class_weights: bool = True
    num_words: int = 0  # > 0: x are ids of so many words, for an LSTM

    @property
    def num_classes(self) -> int:
        return int(self.train.y.max()) + 1

    def subset(self, seed: int) -> tuple[Tensor, Tensor]:
        """Indices and labels of the seed's training set."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.train.y), generator=generator)
        chosen = [order[self.train.group[order] == g][:n] for g, n in enumerate(self.counts)]
        index = torch.cat(chosen)
        y = self.train.y[index].clone()
        drawn = torch.rand(len(y), generator=generator) < self.noise
        if self.is_asymmetric:
            y[drawn] = torch.tensor(confusions(self.num_classes))[y[drawn]]
        else:
            y[drawn] = torch.randint(self.num_classes, (int(drawn.sum()),), generator=generator)
        return index, y

    def class_weights(self) -> Tensor:
        """By the effective number of samples, from the class counts of the subset."""
        counts = torch.zeros(self.num_classes)
        for g, n in enumerate(self.counts):
            counts[self.train.y[self.train.group == g][0]] += n
        return ta.class_balanced_weights(counts.long())


def standardised(train: Part, held: Part) -> tuple[Part, Part]:
    mean, std = train.x.mean(0), train.x.std(0).clamp(min=1e-6)
    return replace(train, x=(train.x - mean) / std), replace(held, x=(held.x - mean) / std)


def split(part: Part, share: float) -> tuple[Part, Part]:
    """A stratified part of ``share``, and the rest before it."""
    index = np.arange(len(part.y))
    rest, held = train_test_split(index, test_size=share, stratify=part.group, random_state=0)
    return tuple(Part(part.x[i], part.y[i], part.group[i]) for i in (rest, held))  # type: ignore[return-value]


def parts(
    x: np.ndarray, y: np.ndarray, judged_on: str, test_share: float = 0.4
) -> tuple[Part, ...]:
    """Of a set without a test set of its own: to train on, and what it is judged on."""
    targets = torch.tensor(y).long()
    pool, test = split(Part(torch.tensor(x).float(), targets, targets), test_share)
    return (pool, test) if judged_on == "test" else split(pool, 0.25)


def long_tail(train: Part, ratio: float, most: int | None = None) -> tuple[int, ...]:
    fewest = int(torch.bincount(train.group).min())
    num_groups = int(train.group.max()) + 1
    return tuple(ta.long_tailed_counts(min(fewest, most or fewest), num_groups, ratio))


def even_odd(part: Part) -> Part:
    """Label: even or odd; the ten classes become hidden groups."""
    return replace(part, y=part.y % 2)


def hidden_tail(train: Part, ratio: float, most: int | None = None) -> tuple[int, ...]:
    """Of ten classes that are five and five of a label: a long tail within either."""
    counts = long_tail_of(5, min(int(torch.bincount(train.group).min()), most or 10**9), ratio)
    return tuple(counts[g // 2] for g in range(10))


def long_tail_of(groups: int, n_max: int, ratio: float) -> Sequence[int]:
    return ta.long_tailed_counts(n_max, groups, ratio)


def digits_lt(judged_on: str) -> Task:
    x, y = load_digits(return_X_y=True)
    train, held = parts(x / 16, y, judged_on)
    return Task("digits, long tail", train, held, long_tail(train, 50), 64, 40)


def digits_hidden(judged_on: str) -> Task:
    task = digits_lt(judged_on)
    train, held = even_odd(task.train), even_odd(task.held)
    return replace(
        task, name="digits, hidden groups", train=train, held=held, counts=hidden_tail(train, 50)
    )


def digits_noise(judged_on: str) -> Task:
    task = digits_lt(judged_on)
    counts = tuple(torch.bincount(task.train.group).tolist())
    return replace(task, name="digits, 40 % noise", counts=counts, noise=0.4, epochs=20,
                   has_class_weights=False)  # fmt: skip


def digits_balanced(judged_on: str) -> Task:
    task = replace(digits_noise(judged_on), name="digits, balanced", noise=0.0)
    return task


def breast_cancer(judged_on: str) -> Task:
    x, y = load_breast_cancer(return_X_y=True)
    train, held = standardised(*parts(x, y, judged_on))
    return Task("breast cancer, ρ = 20", train, held, long_tail(train, 20), 16, 40)


def wine(judged_on: str) -> Task:
    x, y = load_wine(return_X_y=True)
    train, held = standardised(*parts(x, y, judged_on))
    return Task("wine, ρ = 10", train, held, long_tail(train, 10), 16, 60, batch_size=16)


def synthetic(judged_on: str) -> Task:
    x, y = make_classification(
        12000, 20, n_informative=15, n_redundant=0, n_classes=10, n_clusters_per_class=2,
        class_sep=1.5, flip_y=0.0, random_state=0,
    )  # fmt: skip
    train, held = standardised(*parts(x, y, judged_on))
    return Task("synthetic, ρ = 100", train, held, long_tail(train, 100, 500), 32, 20)


@cache
def imdb_texts() -> tuple[list[str], Tensor, list[str], Tensor]:
    """IMDB's reviews and whether they are positive: its training set, its test set."""

    def read(name: str) -> tuple[list[str], Tensor]:
        files = [f for c in ("neg", "pos") for f in sorted((DATA / "aclImdb" / name / c).iterdir())]
        return [f.read_text() for f in files], torch.tensor([f.parent.name == "pos" for f in files])

    return *read("train"), *read("test")


@cache
def imdb_words() -> tuple[Part, Part]:
    """tf-idf of the thousand most frequent words, rows of length 10."""
    texts, y, test_texts, test_y = imdb_texts()
    vectors = TfidfVectorizer(max_features=1000, sublinear_tf=True, dtype=np.float32)
    x, test_x = vectors.fit_transform(texts), vectors.transform(test_texts)
    made = [(x, y.long()), (test_x, test_y.long())]
    return tuple(Part(10 * torch.from_numpy(x.toarray()), y, y) for x, y in made)  # type: ignore[return-value]


@cache
def imdb_endings(length: int, num_words: int) -> tuple[Part, Part]:
    """The last ``length`` words of each review as ids, 0 before it begins, 1 for a rare word."""
    texts, y, test_texts, test_y = imdb_texts()
    vocabulary = Vocabulary(texts, num_words - SPECIAL)

    def ids(texts: Sequence[str]) -> Tensor:
        rows = [row[-length:] for row in vocabulary.encode(texts, 10**6)]
        return torch.stack([F.pad(torch.tensor(row), (length - len(row), 0)) for row in rows])

    made = [(ids(texts), y.long()), (ids(test_texts), test_y.long())]
    return tuple(Part(x, y, y) for x, y in made)  # type: ignore[return-value]


def imdb_task(
    name: str, made: tuple[Part, Part], judged_on: str, ratio: int, most: int, **kind: int
) -> Task:
    """``ratio`` negative reviews, ``most`` in all, for a positive one; judged on 5,000."""
    train, held = made
    if judged_on == "validation":
        train, held = split(train, 0.2)
    else:
        held, _ = split(held, 0.8)
    return Task(name, train, held, long_tail(train, ratio, most)[::-1], **kind)


def imdb(judged_on: str) -> Task:
    made = imdb_words()
    return imdb_task("IMDB words, ρ = 10", made, judged_on, 10, 2000, hidden=0, epochs=15)


def imdb_lstm(judged_on: str) -> Task:
    """At ρ = 10, plain SGD on so few short texts learns the common class alone."""
    made = imdb_endings(length=30, num_words=500)
    return imdb_task(
        "IMDB LSTM, ρ = 4", made, judged_on, 4, 1600, hidden=16, epochs=10, num_words=500
    )


@cache
def cifar_made(seed: int) -> dict[str, Tensor]:
    """From a file that `cifar_features.py` makes."""
    return torch.load(DATA / f"cifar10_features_seed{seed}.pt", weights_only=True)


def cifar_part(seed: int, name: str) -> Part:
    made = cifar_made(seed)
    y = made[f"{name}_y"]
    return Part(made[f"{name}_x"].float(), y, y)


def cifar_features(judged_on: str, seed: int = 0) -> Task:
    """Features of a ResNet-32 trained for 160 epochs on CIFAR-10-LT, ρ = 100; a linear model.

    Judged on images that the subset left out, 500 a class and none of class 0, or the test set.
    """
    train, held = cifar_part(seed, "train"), cifar_part(seed, judged_on)
    counts = tuple(torch.bincount(train.y).tolist())
    name = "CIFAR-10-LT features, ρ = 100" + f", network {seed}" * (seed > 0)
    return Task(name, train, held, counts, 0, 8, batch_size=128)


def cifar_features_1(judged_on: str) -> Task:
    return cifar_features(judged_on, seed=1)


def cifar_hidden(judged_on: str, seed: int = 0) -> Task:
    """The same features: animal or vehicle, its ten classes hidden, a long tail over all ten."""
    task = cifar_features(judged_on, seed)
    train, held = (replace(p, y=ANIMAL[p.y]) for p in (task.train, task.held))
    name = task.name.replace("features, ρ = 100", "features, hidden groups")
    return replace(task, name=name, train=train, held=held)


def cifar_hidden_1(judged_on: str) -> Task:
    return cifar_hidden(judged_on, seed=1)


def cifar_noise(judged_on: str, noise: float = 0.2) -> Task:
    """500 images a class of all training images, a share of the labels drawn at random."""
    train, validation = split(cifar_part(0, "some"), 0.375)
    held = validation if judged_on == "validation" else cifar_part(0, "test")
    return Task(
        f"CIFAR-10 features, {noise:.0%} noise".replace("%", " %"), train, held, (500,) * 10, 0, 12,
        noise=noise, has_class_weights=False,
    )  # fmt: skip


def cifar_noise_40(judged_on: str) -> Task:
    return cifar_noise(judged_on, 0.4)


def cifar_asym(judged_on: str, noise: float = 0.2) -> Task:
    task = cifar_noise(judged_on, noise)
    return replace(task, name=task.name.replace("noise", "asymmetric noise"), is_asymmetric=True)


def cifar_asym_40(judged_on: str) -> Task:
    return cifar_asym(judged_on, 0.4)


def imdb_noise(judged_on: str) -> Task:
    task = imdb_task(
        "IMDB words, 40 % noise", imdb_words(), judged_on, 1, 2000, hidden=0, epochs=15
    )
    return replace(task, noise=0.4, has_class_weights=False)


@cache
def clothes() -> tuple[Part, Part]:
    """Fashion-MNIST, 14×14."""
    folder = Path("/usr/share/datasets/fashion-mnist")
    made = []
    for name in ("train", "t10k"):
        files = [str(folder / f"{name}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")]
        images = read_idx(files[0])[16:].reshape(-1, 1, 28, 28)
        small = torch.nn.functional.avg_pool2d(images.float() / 255, 2).flatten(1)
        y = read_idx(files[1])[8:].long()
        made.append(Part(small, y, y))
    return tuple(made)  # type: ignore[return-value]


def read_idx(path: str) -> Tensor:
    with gzip.open(path) as file:
        return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)


def clothes_lt(judged_on: str) -> Task:
    """Left alone when the README's snippet was chosen."""
    train, held = clothes()
    if judged_on == "validation":
        train, held = split(train, 0.05)
    return Task("clothes, long tail", train, held, long_tail(train, 50, 600), 64, 12)


def clothes_hidden(judged_on: str) -> Task:
    task = clothes_lt(judged_on)
    train, held = even_odd(task.train), even_odd(task.held)
    return replace(task, name="clothes, hidden groups", train=train, held=held,
                   counts=hidden_tail(train, 50, 600))  # fmt: skip


TASKS: dict[str, Callable[[str], Task]] = {
    f.__name__: f
    for f in (
        digits_lt, digits_hidden, digits_noise, digits_balanced, breast_cancer, wine, synthetic,
        imdb, imdb_lstm, cifar_features, cifar_features_1, cifar_hidden, cifar_hidden_1,
        cifar_noise, cifar_noise_40,
    )
}  # fmt: skip
UNTOUCHED = {f.__name__: f for f in (clothes_lt, clothes_hidden)}
NOT_IN_SUITE = {f.__name__: f for f in (cifar_asym, cifar_asym_40, imdb_noise)}
