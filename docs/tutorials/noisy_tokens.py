"""A small language model on sentences of which some are garbage: attention to sequences, λ < 0.

    python docs/tutorials/noisy_tokens.py

A made-up language: the next of 12 tokens is (3·token + 1) mod 12; in three of ten sentences all
tokens are random. Sentences have different lengths, padded with −100 in the targets. Seconds on a
CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import torch_absgd as ta

TOKENS, LENGTH, PADDING, NOISE = 12, 16, -100, 0.3


def sentences(n: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, their targets (each the next token), and which sentences are garbage."""
    words = torch.randint(TOKENS, (n, 1))
    for _ in range(LENGTH):
        words = torch.cat([words, (3 * words[:, -1:] + 1) % TOKENS], 1)
    is_garbage = torch.rand(n) < noise
    words = torch.where(is_garbage[:, None], torch.randint_like(words, TOKENS), words)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (n, 1))
    targets = words[:, 1:].masked_fill(torch.arange(LENGTH) >= lengths, PADDING)
    return words[:, :-1], targets, is_garbage


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 16)
        self.recurrence = nn.GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, TOKENS)

    def forward(self, words: Tensor) -> Tensor:
        """Logits, (N, C, T)."""
        return self.head(self.recurrence(self.embedding(words))[0]).transpose(1, 2)


def main() -> None:
    torch.manual_seed(0)
    words, targets, is_garbage = sentences(512, NOISE)
    model = Model()
    opt = ta.ABSGD(model.parameters(), lr=0.5, momentum=0.9)
    schedule = ta.LamScheduler(opt, milestones={5: -0.5})
    # A loss a sentence, the mean over its tokens that are no padding.
    per_sentence = ta.PerSampleCrossEntropy(ignore_index=PADDING, per="sample")
    for _ in range(10):
        weights = torch.empty(len(words))
        for batch in torch.randperm(len(words)).split(64):
            opt.weigh(per_sentence(model(words[batch]), targets[batch])).backward()
            weights[batch] = opt.weights
            opt.step()
            opt.zero_grad()
        schedule.step()
    test_words, test_targets, _ = sentences(256, 0.0)
    with torch.no_grad():
        is_right = model(test_words).argmax(1) == test_targets
    accuracy = float(is_right[test_targets != PADDING].double().mean())
    print(f"mean weight: sentences {weights[~is_garbage].mean():.2f}, ", end="")
    print(f"garbage {weights[is_garbage].mean():.2f}; next tokens right: {accuracy:.1%}")


if __name__ == "__main__":
    main()
