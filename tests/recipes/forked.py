"""A function as a process of its own, with all that is imported: starting one costs nothing."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def script(path: Path, options: Sequence[str]) -> Callable[[], None]:
    """``python path *options``, for :class:`Forked`."""

    def run() -> None:
        sys.argv, sys.path[0] = [str(path), *options], str(path.parent)
        runpy.run_path(str(path), run_name="__main__")

    return run


class Forked:
    """Calls ``function`` in a process that leads a group of its own, ``preexec_fn`` before it; what
    they print is in ``output``. The part of subprocess.Popen that tests use."""

    def __init__(
        self, function: Callable[[], Any], output: Path, preexec_fn: Callable[[], Any] | None = None
    ) -> None:
        self.output, self.returncode = output, None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(function, preexec_fn)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpgid(self.pid, self.pid)  # whichever of the two is first

    def _run(self, function: Callable[[], Any], preexec_fn: Callable[[], Any] | None) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for stream in (1, 2):
                os.dup2(file, stream)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1) for n in (1, 2))
            if preexec_fn:
                preexec_fn()
            function()
            code = 0
        except SystemExit as end:
            code = end.code or 0
            if isinstance(code, str):
                print(code)
                code = 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"did not end in {timeout} s: {self.output.read_text()}")
            time.sleep(0.005)
        return self.returncode

    def communicate(self, timeout: float = 240) -> tuple[str, None]:
        self.wait(timeout)
        return self.output.read_text(), None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)
