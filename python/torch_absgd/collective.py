"""Who shares a batch, and the rows that its ranks gather."""

from __future__ import annotations

from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor

ProcessGroup = Any  # torch.distributed.ProcessGroup, where torch was built with it


class Collective:
    """The ranks over which the batch is one.

    Args:
        process_group: the group whose gradients are averaged; None: the default group, if one is
            initialised; "local": this process alone.
    """

    def __init__(self, process_group: ProcessGroup | Literal["local"] | None = None) -> None:
        self.process_group = process_group

    def group(self) -> ProcessGroup | None:
        """None for one process."""
        if isinstance(self.process_group, str):
            return None
        if self.process_group is not None:
            return self.process_group
        return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None

    def world_size(self) -> int:
        group = self.group()
        return 1 if group is None else dist.get_world_size(group)

    def gather(self, own: Tensor) -> Tensor:
        """The ranks' rows, one after the other, in the order of ranks."""
        rows = own.new_empty(self.world_size() * own.numel())
        dist.all_gather_into_tensor(rows, own, group=self.group())
        return rows

    def start_gather(self, own: Tensor) -> tuple[Tensor, Any]:
        """As `gather`; the rows are there once the work, returned too, has been waited for."""
        rows = own.new_empty(self.world_size() * own.numel())
        work = dist.all_gather_into_tensor(rows, own, group=self.group(), async_op=True)
        return rows, work

    def __reduce__(self) -> tuple[type[Collective], tuple[str | None]]:
        # A process group cannot be copied; a copy finds the default group again.
        return Collective, ("local" if isinstance(self.process_group, str) else None,)
