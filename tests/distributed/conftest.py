"""Groups of two, three and four processes, shared by all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ranks import Ranks


def _group(world_size: int) -> Iterator[Ranks]:
    ranks = Ranks(world_size)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def two() -> Iterator[Ranks]:
    yield from _group(2)


@pytest.fixture(scope="session")
def three() -> Iterator[Ranks]:
    yield from _group(3)


@pytest.fixture(scope="session")
def four() -> Iterator[Ranks]:
    yield from _group(4)


@pytest.fixture(params=["two", "four"])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    return request.getfixturevalue(request.param)
