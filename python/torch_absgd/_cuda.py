"""Whether the CUDA operators are there, and why not."""

from __future__ import annotations

import torch

from . import _ops


def cuda_status() -> str:
    """``"loaded"``, or a sentence that says why CUDA tensors cannot be used."""
    if torch._C._dispatch_has_kernel_for_dispatch_key("absgd::weigh", "CUDA"):
        return "loaded"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA."
    if not torch.cuda.is_available():
        return "torch finds no CUDA device: no card, no driver, or CUDA_VISIBLE_DEVICES hides it."
    return (
        f"torch_absgd was built without its CUDA part ({_ops._CUDA_LIBRARY.name} is missing): "
        "install it again with nvcc on PATH and TORCH_ABSGD_CUDA=1."
    )
