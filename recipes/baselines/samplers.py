"""Samplers that choose the class first: class-balanced, square-root, progressively balanced.

Kang et al.: Decoupling Representation and Classifier for Long-Tailed Recognition. ICLR 2020,
Section 3: class j is drawn with probability p_j ∝ n_j^q, and then one of its images at random, with
replacement. q = 1 is the usual instance-balanced sampling, q = 0 the class-balanced one, q = ½ the
square root; "progressive" goes linearly from q = 1 to q = 0 over the epochs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from data.order import EpochBatches, seed_of

POWERS = {"instance": 1.0, "sqrt": 0.5, "class": 0.0}


def class_probabilities(kind: str, class_counts: Tensor, progress: float = 0.0) -> Tensor:
    """p_j, float64 [C] (Kang et al. 2020, Equations 1 and 2); 0 for an empty class.

    Args:
        kind: one of POWERS, or "progressive".
        class_counts: n_j ≥ 0.
        progress: t/T in [0, 1], which only "progressive" reads.
    """
    if kind == "progressive":
        begin, end = (class_probabilities(k, class_counts) for k in ("instance", "class"))
        return (1 - progress) * begin + progress * end
    n = class_counts.double()
    p = torch.where(n > 0, n ** POWERS[kind], 0.0)
    return p / p.sum()


class ClassBatches(EpochBatches):
    """Yields batches of (epoch, index), in the place of :class:`data.order.EpochBatches`.

    What is drawn is a pure function of (seed, epoch): ``start(epoch, batch)`` resumes, and every
    rank of a distributed run draws the same batches, of which :class:`engine.distributed.Share`
    gives it a part. All batches are full.

    Args:
        targets: int64 [N], the class of each training image.
        batch_size: of the global batch.
        kind: as :func:`class_probabilities` has it.
        epochs: over which "progressive" goes from t/T = 0 to 1.
    """

    def __init__(
        self, targets: Tensor, batch_size: int, seed: int, kind: str = "class", epochs: int = 1
    ) -> None:
        self.kind, self.epochs = kind, epochs
        self.counts = torch.bincount(targets)
        self.by_class = torch.argsort(targets, stable=True)  # the images of class 0, 1, …
        self.offsets = self.counts.cumsum(0) - self.counts
        batches = -(-len(targets) // batch_size)
        super().__init__(batches * batch_size, batch_size, seed)

    def draw(self, epoch: int) -> Tensor:
        """The indices of an epoch's global batches, [batches, batch_size]."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, 2))
        progress = min(epoch / max(self.epochs - 1, 1), 1.0)
        p = class_probabilities(self.kind, self.counts, progress)
        drawn = self.num_samples
        classes = torch.multinomial(p, drawn, replacement=True, generator=generator)
        place = torch.rand(drawn, generator=generator, dtype=torch.float64) * self.counts[classes]
        return self.by_class[self.offsets[classes] + place.long()].view(-1, self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.draw(self.epoch)[self.batch :].tolist():
            yield [(self.epoch, index) for index in batch]
