"""One step of each weighting: its picture, and that weight goes where the caption says."""

import pytest
import torch

from studies import toy_2d


def test_the_picture_and_what_it_shows(tmp_path):
    panels = toy_2d.main(["--output", str(tmp_path / "toy.png"), "--lams", "10", "0.5"])
    assert (tmp_path / "toy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    sgd, balanced, mild, sharp = panels
    assert torch.equal(sgd.weights, torch.ones(120))
    for panel in panels:
        assert panel.weights.mean().item() == pytest.approx(1, rel=1e-5)
        assert not torch.equal(panel.before, panel.after)
    on_small_class = [panel.weights[100:].mean().item() for panel in panels]
    assert on_small_class[0] < on_small_class[2] < on_small_class[3]
    assert balanced.recall[1] > sgd.recall[1] and sharp.recall[1] > sgd.recall[1]
    assert torch.allclose(mild.after, sgd.after, atol=0.1)


def test_the_steps_are_gradients_of_the_weighted_losses():
    x, y = toy_2d.make_data(0)
    panel = toy_2d.panels(x, y, [0.5])[-1]
    w = panel.before.clone().requires_grad_()
    logits = x @ w[:2] + w[2]
    losses = torch.nn.functional.softplus(torch.where(y == 1, -logits, logits))
    p = torch.softmax(losses.detach() / 0.5, 0)
    (p * losses).sum().backward()
    torch.testing.assert_close(panel.after, panel.before - toy_2d.LR * w.grad)
