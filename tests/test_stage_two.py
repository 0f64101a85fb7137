"""freeze_except: only the named layers train, and frozen statistics stay frozen."""

import copy
import io

import pytest
import torch
from torch import nn

import torch_absgd as ta
from torch_absgd import freeze_except, unfreeze


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.layer20 = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer20(self.layer2(self.layer1(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


def train_steps(model, parameters, steps=3):
    model.train()
    opt = ta.ABSGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, lam=1.0)
    for _ in range(steps):
        x, y = torch.randn(8, 1, 8, 8), torch.arange(8) % 3
        opt.weigh(nn.functional.cross_entropy(model(x), y, reduction="none")).backward()
        opt.step()
        opt.zero_grad()


def changed(model, before):
    after = model.state_dict()
    return {name for name in after if not torch.equal(after[name], before[name])}


def snapshot(model):
    return copy.deepcopy(model.state_dict())


def test_only_the_named_layers_and_their_statistics_change():
    model = Net()
    before = snapshot(model)
    trainable = freeze_except(model, "layer2", "fc")
    assert [id(p) for p in trainable] == [
        id(p) for p in (*model.layer2.parameters(), *model.fc.parameters())
    ]
    train_steps(model, trainable)
    names = {name for name in before if name.startswith(("layer2.", "fc."))}
    assert changed(model, before) == names


def test_frozen_batch_norm_normalises_by_its_running_statistics():
    model = Net()
    freeze_except(model, "fc")
    model.train()
    assert not model.layer1[1].training and model.dropout.training and model.fc.training
    x = torch.randn(4, 4, 8, 8)
    bn = model.layer20
    bn.running_mean.fill_(3.0)
    torch.testing.assert_close(bn(x), (x - 3.0) / (1 + bn.eps) ** 0.5)
    model.eval().train()
    assert not bn.training


def test_a_prefix_is_of_whole_names():
    model = Net()
    freeze_except(model, "layer2.0")
    assert model.layer2[0].weight.requires_grad
    assert not model.layer2[1].weight.requires_grad
    assert not model.layer20.weight.requires_grad


def test_gradients_of_frozen_parameters_are_dropped():
    model = Net()
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    freeze_except(model, "fc")
    assert model.layer1[0].weight.grad is None
    assert model.fc.weight.grad is not None


def test_unfreeze_restores_what_was_trainable():
    model = Net()
    model.layer1[0].bias.requires_grad_(False)
    freeze_except(model, "fc")
    freeze_except(model, "layer2")  # replaces, does not add
    assert not model.fc.weight.requires_grad and model.layer2[0].weight.requires_grad
    unfreeze(model)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["layer1.0.bias"]
    before = snapshot(model)
    train_steps(model, [p for p in model.parameters() if p.requires_grad])
    assert changed(model, before) == set(before) - {"layer1.0.bias"}
    unfreeze(model)  # harmless


def test_unfreeze_keeps_the_mode_of_the_model():
    model = Net()
    freeze_except(model, "fc")
    unfreeze(model.eval())
    assert not any(module.training for module in model.modules())
    unfreeze(model.train())
    assert all(module.training for module in model.modules())


def test_state_dict_is_an_unfrozen_models():
    model = Net()
    plain = Net().state_dict()
    freeze_except(model, "fc")
    assert model.state_dict().keys() == plain.keys()
    model.load_state_dict(plain)
    assert not model.layer1[0].weight.requires_grad


@pytest.mark.parametrize("duplicate", ["deepcopy", "save"])
def test_a_copy_is_frozen_on_its_own(duplicate):
    model = Net()
    freeze_except(model, "fc")
    if duplicate == "deepcopy":
        copied = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    unfreeze(model)
    before = snapshot(copied)
    train_steps(copied, [p for p in copied.parameters() if p.requires_grad])
    assert changed(copied, before) == {"fc.weight", "fc.bias"}
    model.train()
    assert model.layer20.training and not copied.layer20.training


@pytest.mark.parametrize("names", [(), ("layer3",), ("fc", "layer"), ("",), ("dropout",)])
def test_a_wrong_name_lists_what_there_is_and_changes_nothing(names):
    model = Net()
    with pytest.raises(ValueError, match=r"available: layer1, layer1\.0, .*layer20, fc") as error:
        freeze_except(model, *names)
    wrong = [name for name in names if name != "fc"]
    assert not wrong or repr(wrong[0]) in str(error.value)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


class Tied(nn.Module):
    """A language model's: the head's weight is the embedding's, and one block stands twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.lower, self.upper = block, block
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.norm(self.upper(self.lower(self.embed(x)))))


@pytest.mark.parametrize(
    ("names", "trainable"),
    [
        (("head",), {"embed.weight", "head.bias"}),
        (("embed",), {"embed.weight"}),
        (("norm",), {"norm.weight", "norm.bias"}),
        (("upper.0",), {"lower.0.weight", "lower.0.bias"}),
    ],
)
def test_tied_parameters_and_shared_modules_are_known_by_each_name(names, trainable):
    model = Tied()
    returned = freeze_except(model, *names)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    assert len(returned) == len(trainable)
    x = torch.arange(10) % 5
    model.train()
    nn.functional.cross_entropy(model(x), x).backward()
    assert all(p.grad is not None for p in returned)
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_statistics_of_a_shared_module_follow_either_name():
    for name in ("lower", "upper"):
        model = Tied()
        freeze_except(model, name)
        model.train()
        assert model.lower[1].training and not model.norm.training


@pytest.mark.parametrize("then", [lambda model: model, copy.deepcopy])
def test_a_frozen_batch_norm_stays_frozen_as_a_synchronised_one(then):
    model = Net()
    freeze_except(model, "layer2", "fc")
    model = then(nn.SyncBatchNorm.convert_sync_batchnorm(model))
    assert type(model.layer20) is nn.SyncBatchNorm
    for _ in range(2):
        model.train()
        model.layer1.train()  # what was replaced keeps itself frozen from here on
        assert not model.layer1[1].training and not model.layer20.training
        assert model.layer2[1].training and model.layer1.training
    before = snapshot(model)
    model.layer20(torch.randn(2, 4, 3, 3))
    assert changed(model, before) == set()
    unfreeze(model)
    assert all(module.training for module in model.modules())
    model.train()
    assert model.layer20.training


def test_a_frozen_part_of_a_model_stays_frozen_when_the_whole_trains():
    whole = nn.ModuleList([Net(), nn.BatchNorm1d(3)])
    freeze_except(whole[0], "fc")
    whole.train()
    assert whole[1].training and not whole[0].layer20.training


def test_a_frozen_block_may_be_replaced():
    model = nn.Sequential(nn.Sequential(nn.BatchNorm1d(3)), nn.Linear(3, 2))
    ta.freeze_except(model, "1")
    model[0] = nn.Identity()
    model.train()
    assert model.training
