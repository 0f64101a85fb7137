"""What every record of a study says of where it comes from, and its file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from engine import checkpoint


def commit() -> str:
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip()


def machine() -> str:
    """The processor's name where Linux tells it, its cores and torch's version."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{os.cpu_count()} cores of {name}, one thread, torch {torch.__version__}"


def write(made: dict[str, Any], key: str, file: Path) -> None:
    """JSON, whole or not at all, with a line for each element of the list ``made[key]``."""
    lines = ",\n".join(json.dumps(m, ensure_ascii=False) for m in made[key])
    head = json.dumps({**made, key: []}, ensure_ascii=False, indent=1)
    text = head.replace(f'"{key}": []', f'"{key}": [\n{lines}\n]') + "\n"
    checkpoint.write_whole(text.encode(), file)
