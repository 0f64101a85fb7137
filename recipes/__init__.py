"""The recipes as a package: the commands torch-absgd-train and torch-absgd-paper.

Each is the script of that name, run as ``python recipes/train.py`` runs it, its folder first on the
path. With several processes: ``torchrun --no-python --nproc-per-node=8 torch-absgd-train …``.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path

NEEDED = ("torchvision", "sklearn", "tqdm", "matplotlib", "tensorboard")  # the extra "recipes"


def _run(script: str) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"error: {', '.join(missing)} not found: pip install 'torch_absgd[recipes]'")
    folder = Path(__file__).resolve().parent
    sys.path.insert(0, str(folder))
    runpy.run_path(str(folder / script), run_name="__main__")


def train() -> None:
    _run("train.py")


def paper() -> None:
    _run("paper.py")
