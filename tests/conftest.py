"""What every test shares: one thread, a fixed seed, and no data test skipped unnoticed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Where the shared data is, a test that asks for data and skips has not been run: a failure."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and SHARED_DATA.is_dir() and "data" in report.longrepr[2]:
        report.outcome = "failed"
