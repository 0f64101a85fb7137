"""Files that are always whole, checkpoints first: the old one or the new one, never part of one."""

from __future__ import annotations

import io
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch


def write_whole(content: bytes | memoryview, path: Path) -> None:
    """Writes ``content`` beside ``path``, syncs it to disk, then renames it into place.

    Raises:
        OSError: the disk is full, say; the file at ``path`` is then the old one.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def save(state: dict[str, Any], path: Path) -> None:
    """Raises as :func:`write_whole`."""
    content = io.BytesIO()
    torch.save(state, content)  # into memory: into a file it hides the OSError of a full disk
    write_whole(content.getbuffer(), path)


def load(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """What :func:`save` wrote; tensors on ``device``. Holds tensors and plain values only.

    Raises:
        ValueError: it is something else; nothing of it was executed.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        why = str(error).splitlines()[0]
        if isinstance(error, UnpicklingError):  # torch advises to execute what is in it
            why = "it holds other than tensors and plain values; name a run's checkpoint.pt"
        raise ValueError(f"{path} is not a checkpoint: {why}") from error


def load_run(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """As `load`, of a run of train.py.

    Raises:
        ValueError: it is something else.
    """
    state = load(path, device)
    if not isinstance(state, dict) or "config" not in state:
        raise ValueError(f"{path} holds no run, such as weights alone: name a run's checkpoint.pt")
    return state
