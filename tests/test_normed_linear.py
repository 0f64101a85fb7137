"""NormedLinear: cosines, in half precision too."""

from __future__ import annotations

import pytest
import torch

import torch_absgd as ta

HALF = [torch.float16, torch.bfloat16]


def rows(dtype: torch.dtype) -> torch.Tensor:
    """Ordinary, large, small and zero rows, which ``dtype`` holds."""
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    return (x * torch.tensor([1.0, 1e4, 1e-4, 0.0])[:, None]).to(dtype)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])
def test_rows_of_any_size_give_cosines(dtype: torch.dtype) -> None:
    layer = ta.NormedLinear(64, 3, dtype=dtype)
    x = rows(dtype)
    expected = torch.nn.functional.cosine_similarity(
        x.double()[:, None], layer.weight.double()[None], dim=-1, eps=1e-300
    )
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-6)
    out = layer(x)
    assert out.dtype is dtype
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    assert out[3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
def test_gradients_are_finite_and_0_at_a_row_of_zeros(dtype: torch.dtype) -> None:
    layer = ta.NormedLinear(64, 3, dtype=dtype)
    x = rows(dtype).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None
    assert x.grad[:2].isfinite().all() and layer.weight.grad.isfinite().all()
    assert not x.grad[3].any()


def test_float32_is_what_torch_normalizes_bit_for_bit() -> None:
    layer = ta.NormedLinear(64, 3)
    x = rows(torch.float32)[:2]
    unit = torch.nn.functional.normalize
    expected = torch.nn.functional.linear(unit(x, dim=-1), unit(layer.weight, dim=-1))
    assert torch.equal(layer(x), expected)
