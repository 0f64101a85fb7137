"""step_in_backward needs gradients that are final when they are ready: not under DDP or FSDP."""

from __future__ import annotations

import pytest

import torch_absgd as ta
from parallel import pair
from ranks import Ranks


def attach(wrapper: str) -> None:
    _, (_, opt) = pair(wrapper, 1.0)
    reason = {"ddp": "averaged over the 2 ranks", "fsdp2": "FSDP"}[wrapper]
    with pytest.raises(RuntimeError, match=reason):
        ta.step_in_backward(opt)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_it_is_refused(two: Ranks, wrapper: str) -> None:
    two.run(attach, wrapper)
