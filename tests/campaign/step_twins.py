"""Random changes between steps, the same to ABSGD and to torch.optim.SGD, which must stay equal.

A long run, of so many steps (and from another seed than 0, if given), under AddressSanitizer:

    tests/sanitized.sh address python tests/campaign/step_twins.py 100000
"""

from __future__ import annotations

import copy
import random
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD
from tqdm import trange

from torch_absgd import ABSGD

STEPS = 15  # of a pair


class Twins:
    """ABSGD and SGD over equal parameters, to which the same things are done."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        shapes = [(), (0,), (3,), (2, 3), (4, 4), (2, 3, 2, 2)]
        values = [self.normal(self.random.choice(shapes)) for _ in range(5)]
        options = {
            "lr": 0.05,
            "momentum": self.random.choice((0.0, 0.9)),
            "weight_decay": self.random.choice((0.0, 0.01)),
        }
        options["nesterov"] = options["momentum"] > 0 and self.random.random() < 0.3
        self.sides = [[nn.Parameter(v.clone()) for v in values] for _ in range(2)]
        self.opts = [ABSGD(self.sides[0], **options), SGD(self.sides[1], **options, foreach=False)]

    def normal(self, shape: Any) -> Tensor:
        values = torch.Generator().manual_seed(self.random.randrange(1 << 30))
        return torch.randn(shape, generator=values)

    def set_gradients(self) -> None:
        for p, q in zip(*self.sides, strict=True):
            if self.random.random() < 0.1:
                p.grad = q.grad = None
                continue
            grad = self.normal(p.shape).to(p.dtype)
            layout = self.random.random()
            if layout < 0.1 and grad.dim() > 1:
                grad = grad.transpose(0, 1).contiguous().transpose(0, 1)
            elif layout < 0.15:
                grad = torch._neg_view(grad)
            elif layout < 0.2 and grad.dim() > 0:
                grad = torch.cat([grad, grad])[: len(grad)]
            if p.grad is not None and layout > 0.6 and p.grad.dtype == grad.dtype:
                for t in (p, q):
                    if t.grad.shape == grad.shape and not t.grad.is_neg():
                        t.grad.copy_(grad)
                    else:
                        t.grad = grad.clone()
            else:
                p.grad, q.grad = grad, grad.clone()

    def change(self) -> None:
        index, kind = self.random.randrange(5), self.random.randrange(12)
        same = self.random.random()
        for side, opt in zip(self.sides, self.opts, strict=True):
            p = side[index]
            state = opt.state[p]
            buffer = state.get("momentum_buffer")
            if kind == 0:
                p.data = p.data.clone()
            elif kind == 1 and p.dim() > 1:
                p.grad = None
                p.data = p.data.transpose(0, 1)
                state.clear()
            elif kind == 2:
                p.grad = None
                p.data = p.data.to(torch.float64 if p.dtype == torch.float32 else torch.float32)
                if same < 0.5:
                    state.clear()
            elif kind == 3:
                p.grad = None
                p.data = p.data.reshape(-1)[: max(1, p.numel() // 2)]
                state.clear()
            elif kind == 4 and buffer is not None:
                state["momentum_buffer"] = torch.full_like(buffer, same)
            elif kind == 5 and buffer is not None:
                state["momentum_buffer"] = buffer.to(torch.float64)
            elif kind == 6:
                state.clear()
            elif kind == 7:
                opt.load_state_dict(copy.deepcopy(opt.state_dict()))
            elif kind == 8:
                p.data.set_(torch.full_like(p.data, same))
            elif kind == 9:
                p.grad = None
                p.data = torch.full((self.random_size(same),), same, dtype=p.dtype)
                state.clear()
            elif kind == 10:
                p.data = torch._neg_view(p.data.clone())
            elif kind == 11 and buffer is not None:
                state["momentum_buffer"] = torch._neg_view(buffer.clone())

    @staticmethod
    def random_size(same: float) -> int:
        return 1 + int(40_000 * same**6)

    def compare(self) -> None:
        for p, q in zip(*self.sides, strict=True):
            torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-5)
            a, b = (o.state[t] for o, t in zip(self.opts, (p, q), strict=True))
            assert {*a} == {*b}
            for name in a:
                torch.testing.assert_close(a[name], b[name], rtol=2e-5, atol=2e-5)

    def run(self, steps: int) -> None:
        for step in range(steps):
            if step % 3 == 2:
                self.change()
            self.set_gradients()
            for opt in self.opts:
                opt.step()
            self.compare()


def main(steps: int, first_seed: int = 0) -> None:
    pairs = steps // STEPS
    for seed in trange(first_seed, first_seed + pairs, unit="pair"):
        try:
            Twins(seed).run(STEPS)
        except Exception as error:
            raise AssertionError(f"Twins({seed}).run({STEPS})") from error
    print(f"{pairs * STEPS} steps of {pairs} pairs, seeds from {first_seed}: all equal")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
