import pytest
import torch

import models

# He et al. 2016, Table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M.
PARAMETERS = {
    "resnet8": 75_290, "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586,
    "resnet56": 853_018, "resnet110": 1_727_962,
}  # fmt: skip


@pytest.mark.parametrize("arch", PARAMETERS)
def test_number_of_parameters(arch):
    model = models.build(arch, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("normed", [False, True])
def test_shapes_and_gradients(normed):
    model = models.build("resnet14", num_classes=7, normed=normed)
    x = torch.randn(3, 3, 32, 32)
    assert models.features(model, x).shape == (3, 64)
    logits = model(x)
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_shortcut_of_option_a_has_no_parameters_and_pads_with_zeros():
    block = models.Block(2, 4, stride=2)
    x = torch.randn(1, 2, 4, 4)
    y = block.shortcut(x)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_depth_must_be_6n_plus_2():
    with pytest.raises(ValueError, match="33"):
        models.CifarResNet(33, 10)


@pytest.mark.parametrize("content", [b"", b"no weights"])
def test_a_file_that_holds_no_weights_is_named(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pt holds no state_dict"):
        models.load_weights(torch.nn.Linear(1, 1), str(tmp_path / "w.pt"))
