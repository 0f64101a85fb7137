"""The CUDA operators: loads them, and says why they are not there."""

from __future__ import annotations

from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("torch_absgd_cuda.so")
_failure: str | None = None


def load_cuda_operators() -> None:
    """Registers the operators wherever torch has CUDA, card or no card: that takes no driver.

    Nobody is asked for a card. The question starts CUDA in this process, and workers that it forks
    thereafter could not use the card.
    """
    global _failure
    if not LIBRARY.exists() or torch.version.cuda is None:
        return
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:  # built for another torch; the CPU's operators are not to suffer
        _failure = str(error)


def cuda_status() -> str:
    """``"loaded"``, or a sentence that says why CUDA tensors cannot be used."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA."
    if torch.cuda.device_count() == 0:  # by NVML, which leaves CUDA alone
        return "torch finds no CUDA device: no card, no driver, or CUDA_VISIBLE_DEVICES hides it."
    if torch._C._dispatch_has_kernel_for_dispatch_key("absgd::weigh", "CUDA"):
        return "loaded"
    if _failure:
        return f"{LIBRARY.name} cannot be loaded: {_failure}."
    return (
        f"torch_absgd was built without its CUDA part ({LIBRARY.name} is missing): "
        "install it again with nvcc on PATH and TORCH_ABSGD_CUDA=1."
    )
