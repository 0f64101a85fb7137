"""samplers.py against the formulas of Kang et al. 2020; its order when resumed or shared out."""

import pytest
import torch

from baselines.samplers import ClassBatches, class_probabilities
from engine import distributed

COUNTS = torch.tensor([100, 25, 4])
TARGETS = torch.repeat_interleave(torch.arange(3), COUNTS)[
    torch.randperm(129, generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("instance", 0.0, [100 / 129, 25 / 129, 4 / 129]),
        ("sqrt", 0.0, [10 / 17, 5 / 17, 2 / 17]),
        ("class", 0.0, [1 / 3, 1 / 3, 1 / 3]),
        ("progressive", 0.0, [100 / 129, 25 / 129, 4 / 129]),
        ("progressive", 0.25, [0.75 * n / 129 + 0.25 / 3 for n in (100, 25, 4)]),
        ("progressive", 1.0, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_class_probabilities(kind, progress, expected):
    assert class_probabilities(kind, COUNTS, progress).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["sqrt", "class", "progressive"])
def test_an_empty_class_is_not_drawn(kind):
    assert class_probabilities(kind, torch.tensor([3, 0, 1]), 1.0)[1] == 0


@pytest.mark.parametrize("kind", ["instance", "sqrt", "class"])
def test_classes_are_drawn_so_often_and_images_of_a_class_alike(kind):
    batches = ClassBatches(TARGETS, 43, seed=1, kind=kind)
    drawn = torch.cat([batches.draw(epoch).flatten() for epoch in range(200)])
    p = class_probabilities(kind, COUNTS)
    share = torch.bincount(TARGETS[drawn], minlength=3).double() / len(drawn)
    deviation = (p * (1 - p) / len(drawn)).sqrt()
    assert ((share - p).abs() < 4 * deviation).all()
    expected = (p / COUNTS)[TARGETS] * len(drawn)  # of each image
    times = torch.bincount(drawn, minlength=129)
    assert ((times - expected).abs() < 5 * expected.sqrt()).all()


def test_progressive_moves_over_its_epochs():
    batches = ClassBatches(TARGETS, 129, seed=0, kind="progressive", epochs=11)
    rare = [
        (TARGETS[batches.draw(e).flatten()] == 2).double().mean().item() for e in (0, 5, 10, 20)
    ]
    expected = [4 / 129, (4 / 129 + 1 / 3) / 2, 1 / 3, 1 / 3]
    assert rare == pytest.approx(expected, abs=0.13)
    assert rare[0] < rare[1] < rare[3]


def test_order_is_a_function_of_seed_and_epoch():
    a, b, c = (ClassBatches(TARGETS, 16, seed=s) for s in (3, 3, 4))
    assert torch.equal(a.draw(5), b.draw(5))
    assert not torch.equal(a.draw(5), a.draw(6))
    assert not torch.equal(a.draw(5), c.draw(5))


def test_resuming_in_mid_epoch_yields_the_rest():
    batches = ClassBatches(TARGETS, 16, seed=3)
    batches.start(2)
    whole = list(batches)
    assert len(whole) == len(batches) == 9 and {len(batch) for batch in whole} == {16}
    assert {epoch for batch in whole for epoch, _ in batch} == {2}
    batches.start(2, 4)
    assert list(batches) == whole[4:]


def test_ranks_share_out_the_batches_of_one_process(monkeypatch):
    def all_batches(rank, world_size):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world_size))
        batches = ClassBatches(TARGETS, 12, 3, "sqrt")
        batches.start(1, 2)
        return list(distributed.training_loader(TARGETS, batches).batch_sampler)

    whole, ranks = all_batches(0, 1), [all_batches(rank, 3) for rank in range(3)]
    for batch, parts in zip(whole, zip(*ranks, strict=True), strict=True):
        assert [len(part) for part in parts] == [4, 4, 4]
        assert sorted(batch) == sorted(key for part in parts for key in part)
