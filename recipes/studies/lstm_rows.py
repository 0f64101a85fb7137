"""Many small LSTMs at once, [rows, …]: texts as word ids in, logits out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LSTMRows:
    """An embedding, one LSTM and a linear layer on the maximum of its outputs over the words.

    Torch's default start, the same for all rows of a seed; torch's order of gates (i, f, g, o).
    """

    def __init__(
        self, num_words: int, hidden: int, num_classes: int, seeds: Sequence[int], methods: int
    ) -> None:
        made = []
        for seed in seeds:
            torch.manual_seed(seed)
            lstm = nn.LSTM(hidden, hidden)
            made.append([nn.Embedding(num_words, hidden), lstm, nn.Linear(hidden, num_classes)])

        def rows(tensors: Sequence[Tensor]) -> Tensor:
            stacked = torch.stack([t.detach() for t in tensors])
            return stacked.repeat(methods, 1, 1).requires_grad_()

        self.parameters = [
            rows([words.weight for words, _, _ in made]),
            rows([lstm.weight_ih_l0.T for _, lstm, _ in made]),
            rows([lstm.weight_hh_l0.T for _, lstm, _ in made]),
            rows([(lstm.bias_ih_l0 + lstm.bias_hh_l0)[None] for _, lstm, _ in made]),
            rows([last.weight.T for _, _, last in made]),
            rows([last.bias[None] for _, _, last in made]),
        ]

    def __call__(self, ids: Tensor) -> Tensor:
        """[rows, B, T] or, the same for all rows, [B, T]; to [rows, B, C]."""
        words, W_x, W_h, b, W, b_last = self.parameters
        R, V, _ = words.shape
        offset = V * torch.arange(R)[:, None, None]
        # Every word's share of the gates, first: [V, 4h] is less than a batch's words.
        inputs = (torch.matmul(words, W_x) + b).flatten(0, 1)
        gates = F.embedding((ids + offset).movedim(2, 0), inputs)  # [T, R, B, 4h]
        h = c = torch.zeros(())
        outputs = []
        for t, x in enumerate(gates):
            i, f, g, o = (x + torch.matmul(h, W_h) if t else x).chunk(4, 2)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.matmul(torch.stack(outputs).amax(0), W) + b_last
