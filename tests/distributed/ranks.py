"""Processes that form a gloo group and run a test's functions, started once and used many times."""

from __future__ import annotations

import multiprocessing as mp
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 120.0  # seconds; only a hang takes this long


def _serve(rank: int, world_size: int, store: Path, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    while (task := pipe.recv()) is not None:
        function, arguments = task
        torch.manual_seed(0)
        try:
            pipe.send((function(*arguments), None))
        except BaseException:
            pipe.send((None, traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    """``world_size`` processes; `run` calls a function in all of them at once."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.processes: list[mp.Process] = []

    def _start(self) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed", "torch_absgd"])  # imported once
        store = Path(tempfile.mkdtemp()) / "store"
        self.pipes = []
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            arguments = (rank, self.world_size, store, theirs)
            self.processes.append(context.Process(target=_serve, args=arguments, daemon=True))
            self.processes[-1].start()
            self.pipes.append(ours)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What ``function(*arguments)``, of a module that can be imported, returns on each rank.

        Raises:
            AssertionError: with the first traceback, if it raises on a rank or does not return.
        """
        if not self.processes:
            self._start()
        for pipe in self.pipes:
            pipe.send((function, arguments))
        results = []
        waiting = dict(enumerate(self.pipes))
        while waiting:  # whoever is ready first: one rank's error leaves the others waiting for it
            ready = mp.connection.wait(waiting.values(), TIMEOUT)
            if not ready:
                self.stop()
                raise AssertionError(f"ranks {sorted(waiting)} did not return: a collective hangs")
            for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
                result, error = waiting.pop(rank).recv()
                if error is not None:
                    self.stop()
                    raise AssertionError(f"rank {rank}: {error}")
                results.append((rank, result))
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self.processes = []
