"""kill −9 at random moments: every run ends with the bits of one that was never stopped.

    python tests/campaign/kills.py 200 [SEED] [KIND …]

kills at least so many times, "half" not counted. A story is a run of a kind that is stopped up to
five times, each time in one of these ways, and resumed to its end:

    any        at a random moment
    writing    as soon as a file of its folder changes after a random moment
    half       in the midst of a write, when a file reaches a random size (SIGXFSZ, as deadly)
    full       no file can grow over a random size, as on a full disk; then at a random moment
    read_only  the folder becomes read-only at a random moment; killed at another
    worker     (torchrun) one of two processes, which torchrun then starts again by itself

After each the checkpoint must be whole and none that was there may be lost; after an error the run
must have said what the disk said.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))
from forked import Forked
from killed_runs import KINDS, Fault
from runs import differences

# The last is what torch.save says when it writes the file itself, as transformers has it do.
DISK = ("File too large", "Permission denied", "Read-only file system", "iostream error")
NO_KILL = ("half", "error", "story")


@contextlib.contextmanager
def small_files(size: int, action: Any = signal.SIG_IGN) -> Iterator[None]:
    """No file grows over ``size`` bytes; ``action``: signal.SIG_DFL, to die of it at once."""
    signal.signal(signal.SIGXFSZ, action)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:  # how it ended can be told
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@contextlib.contextmanager
def permissions_obeyed() -> Iterator[None]:
    """Root, too, may not write into a read-only folder."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    nothing = (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset(header, nothing)
    yield


def changes_of(folder: Path) -> set[tuple[str, int, int]]:
    found = set()
    for place, folders, files in os.walk(folder):  # which passes over what has gone meanwhile
        for path in (os.path.join(place, name) for name in (*folders, *files)):
            try:
                stat = os.stat(path)
            except FileNotFoundError:
                continue
            found.add((path, stat.st_size, stat.st_mtime_ns))
    return found


def children(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for file in files for child in file.read_text().split()]


class Story:
    """One run of a kind, and how it is killed."""

    def __init__(self, kind: Any, folder: Path, rng: random.Random, seconds: float, largest: int):
        self.kind, self.folder, self.rng = kind, folder, rng
        self.seconds, self.largest = seconds, largest  # that a run takes, bytes of its files
        self.output = folder.with_suffix(".out")
        self.counts: Counter[str] = Counter()
        folder.mkdir()

    def start(self, fault: Fault = contextlib.nullcontext) -> Forked:
        return Forked(lambda: self.kind.run(self.folder, fault), self.output)

    def pause(self, process: Forked, longest: float) -> None:
        end = time.monotonic() + self.rng.uniform(0, longest)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)

    def kill(self, process: Forked, way: str) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            self.counts[way] += 1
        process.wait()

    def any(self) -> Forked:
        process = self.start()
        self.pause(process, self.seconds)
        self.kill(process, "any")
        return process

    def writing(self) -> Forked:
        process = self.start()
        self.pause(process, self.seconds)
        before = changes_of(self.folder)
        while process.poll() is None and changes_of(self.folder) == before:
            pass
        self.kill(process, "writing")
        return process

    def half(self) -> Forked:
        size = self.rng.randrange(self.largest)
        process = self.start(lambda: small_files(size, signal.SIG_DFL))
        process.wait()
        self.counts["half"] += process.returncode == -signal.SIGXFSZ
        return process

    def full(self) -> Forked:
        size = self.rng.randrange(self.largest)
        process = self.start(lambda: small_files(size))
        self.pause(process, 2 * self.seconds)
        self.kill(process, "full")
        return process

    def read_only(self) -> Forked:
        process = self.start(permissions_obeyed)
        self.pause(process, self.seconds)
        self.folder.chmod(0o555)
        self.pause(process, self.seconds / 2)
        self.kill(process, "read_only")
        self.folder.chmod(0o755)
        return process

    def worker(self) -> Forked:
        process = self.start()
        self.pause(process, self.seconds)
        workers = children(process.pid)
        # For one that dies after its training, torch's agent may wait for ever, where it forks.
        if process.poll() is None and workers and self.kind.trains(self.folder):
            os.kill(self.rng.choice(workers), signal.SIGKILL)
            self.counts["worker"] += 1
        process.wait()
        assert process.returncode == 0, self.output.read_text()
        return process

    def place(self) -> tuple[int, ...]:
        """Where the run would go on; its checkpoint is read whole."""
        try:
            return self.kind.progress(self.folder)
        except Exception as error:
            raise AssertionError(f"the checkpoint is not whole: {error}") from error

    def tell(self, ways: Sequence[str]) -> None:
        """Stops the run in these ways, as long as it is not at its end.

        Raises:
            AssertionError: something was lost.
        """
        before = self.place()
        for way in ways:
            process = getattr(self, way)()
            after = self.place()
            assert after >= before, f"{way}: was at {before}, is at {after}"
            before = after
            if process.returncode == 0:
                return
            if process.returncode > 0:  # it ended by itself: why?
                said = self.output.read_text()
                assert any(reason in said for reason in DISK), f"{way}: {said}"
                self.counts["error"] += 1

    def finish(self) -> dict[str, Any]:
        process = self.start()
        process.wait()
        assert process.returncode == 0, self.output.read_text()
        assert not [*self.folder.rglob("*.tmp")]
        return self.kind.end(self.folder)


class Kills:
    """Stories of one kind, beside a run that nothing stops."""

    def __init__(self, name: str, root: Path, seed: int) -> None:
        self.name, self.root, self.seed = name, root, seed
        root.mkdir()
        self.kind = KINDS[name](root / "data")
        self.counts: Counter[str] = Counter()
        self.seconds, self.largest = 0.0, 0
        begin = time.monotonic()
        whole = self.story(seed)
        self.whole = whole.finish()
        self.seconds = time.monotonic() - begin
        self.largest = max(size for _, size, _ in changes_of(whole.folder))
        whole.folder.rename(root / "whole")

    def story(self, seed: int) -> Story:
        rng = random.Random(f"{self.name} {seed}")
        return Story(self.kind, self.root / f"run-{seed}", rng, self.seconds, self.largest)

    @property
    def done(self) -> int:
        return sum(n for way, n in self.counts.items() if way not in NO_KILL)

    def any_ways(self, seed: int) -> list[str]:
        ways = ["any", "writing", "full", "read_only"]
        ways += ["half"] if self.kind.processes == 1 else ["worker", "worker"]
        rng = random.Random(seed)
        return rng.choices(ways, k=rng.randint(1, 5))

    def next_story(self, ways: Sequence[str] = ()) -> None:
        """Stopped in these ways, or in random ones."""
        seed = self.seed + self.counts["story"]
        story = self.story(seed)
        try:
            story.tell(ways or self.any_ways(seed))
            found = differences(story.finish(), self.whole)
            assert found == [], found
        except AssertionError as error:
            raise AssertionError(f"{self.name}, seed {seed}, {story.counts}: {error}") from error
        self.counts += story.counts
        self.counts["story"] += 1

    def line(self) -> str:
        half, errors, stories = (self.counts[name] for name in NO_KILL)
        ways = ", ".join(f"{w} {n}" for w, n in sorted(self.counts.items()) if w not in NO_KILL)
        return (
            f"{self.name}: {self.done} kills ({ways}), {half} deaths within a write and "
            f"{errors} errors of the disk in {stories} runs, {self.seconds:.1f} s each"
        )


def main(count: int, seed: int = 0, *names: str) -> int:
    torch.set_num_threads(1)
    names = names or tuple(KINDS)
    total = runs = 0
    with tempfile.TemporaryDirectory() as root:
        tempfile.tempdir = root
        os.environ["TMPDIR"] = root  # Lightning renames from there
        for i, name in enumerate(names):
            share = (i + 1) * count // len(names) - i * count // len(names)
            kills = Kills(name, Path(root) / name, seed)
            while kills.done < share:
                kills.next_story()
            total, runs = total + kills.done, runs + kills.counts["story"]
            print(kills.line(), flush=True)
    print(
        f"{total} kills, {runs} runs that ended as those that nothing stopped; no checkpoint lost"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:]))
