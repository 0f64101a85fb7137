"""The networks of the recipes. Each has a last layer ``fc``; :func:`features` gives its inputs.

CIFAR's are those of He et al. 2016, Section 4.2, with shortcuts of option A: ResNet-(6n+2) is a 3×3
convolution, three stages of n blocks with 16, 32, 64 channels, global average pooling and a linear
layer; 0.46 M parameters for ResNet-32. Any network of torchvision will do for larger images, an MLP
for vectors and a bidirectional LSTM for texts.
"""

from __future__ import annotations

import difflib
from argparse import Namespace
from pickle import UnpicklingError

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import torch_absgd as ta


def classifier(width: int, num_classes: int, normed: bool) -> nn.Module:
    """A last layer; LDAM needs a normalised one."""
    return (ta.NormedLinear if normed else nn.Linear)(width, num_classes)


@torch.no_grad()
def features(model: nn.Module, inputs: Tensor) -> Tensor:
    """What ``model.fc`` is given for ``inputs``, [N, D]."""
    seen: list[Tensor] = []
    handle = model.fc.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        model(inputs)
    finally:
        handle.remove()
    return seen[0]


def conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, channels - in_channels

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: subsample, and pad the channels with zeros; it has no parameters."""
        if self.stride == 1 and self.added == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """Images [N, 3, H, W] to logits [N, num_classes]; ``depth`` is 6n + 2."""

    def __init__(self, depth: int, num_classes: int, normed: bool = False) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"Invalid depth: {depth} (must be 6n + 2: 8, 14, 20, 32, 44, 56, …)")
        n = (depth - 2) // 6
        self.conv = conv3x3(3, 16)
        self.bn = nn.BatchNorm2d(16)
        self.layer1 = self.stage(16, 16, 1, n)
        self.layer2 = self.stage(16, 32, 2, n)
        self.layer3 = self.stage(32, 64, 2, n)
        self.fc = classifier(64, num_classes, normed)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def stage(in_channels: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
        first = Block(in_channels, channels, stride)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class MLP(nn.Module):
    """Vectors [N, D] to logits [N, C]: one hidden layer."""

    def __init__(self, width: int, hidden: int, num_classes: int, normed: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.fc = classifier(hidden, num_classes, normed)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(x).relu())


PADDING = 0  # the id of no word


class BiLSTM(nn.Module):
    """Word ids [B, T], padded at the end, to logits [B, C].

    A bidirectional LSTM, the maximum of its outputs over the text, dropout and a linear layer.
    The backward direction is an LSTM over each text reversed in place, padding still at its end:
    what comes after a text cannot touch it, so nothing need be packed. The outputs are those of
    a packed ``nn.LSTM(bidirectional=True)``, for which torch has no fused kernel on the CPU.
    """

    def __init__(
        self,
        num_words: int,
        num_classes: int = 2,
        embedding: int = 64,
        hidden: int = 64,
        dropout: float = 0.2,
        normed: bool = False,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, embedding, padding_idx=PADDING)
        self.forwards = nn.LSTM(embedding, hidden, batch_first=True)
        self.backwards = nn.LSTM(embedding, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.fc = classifier(2 * hidden, num_classes, normed)

    def forward(self, words: Tensor) -> Tensor:
        is_word = words != PADDING
        length = is_word.sum(1, keepdim=True)
        position = torch.arange(words.shape[1], device=words.device).expand(words.shape)
        reverse = torch.where(is_word, length - 1 - position, position)
        ahead, _ = self.forwards(self.embedding(words))
        back, _ = self.backwards(self.embedding(words.gather(1, reverse)))
        outputs = torch.cat([ahead, back], 2).masked_fill(~is_word[:, :, None], -torch.inf)
        return self.fc(self.dropout(outputs.amax(1)))


# ---- networks of torchvision


def from_torchvision(arch: str, num_classes: int, pretrained: str, normed: bool) -> nn.Module:
    """torchvision's network with a last layer ``fc`` for ``num_classes``.

    Args:
        pretrained: "none", "imagenet" (torchvision's weights, fetched at first use) or a file.

    Raises:
        ValueError: torchvision has no such network, its last layer is not a linear one, or the file
            of weights does not fit.
    """
    known = torchvision.models.list_models(torchvision.models)
    if arch in ARCHS:
        raise ValueError(f"--pretrained is for torchvision's networks, not --arch {arch}: to go on "
                         "from a run of train.py, --stage-one or --resume")  # fmt: skip
    if arch not in known:
        near = difflib.get_close_matches(arch, [*known, *ARCHS])
        raise ValueError(f"--arch {arch}: not in torchvision.models; near: {', '.join(near)}")
    weights = "IMAGENET1K_V1" if pretrained == "imagenet" else None
    network = torchvision.models.get_model(arch, weights=weights)
    name, last = [(n, m) for n, m in network.named_modules() if not list(m.children())][-1]
    if not isinstance(last, nn.Linear):
        raise ValueError(f"--arch {arch}: its last layer is a {type(last).__name__}, not linear")
    fc = classifier(last.in_features, num_classes, normed)
    if name == "fc":
        network.fc = fc
    else:  # it passes its input on, to an fc after all the rest
        network.set_submodule(name, nn.Identity())
        network.fc = fc
        network.register_forward_hook(lambda network, _, output: network.fc(output))
    if pretrained not in ("none", "imagenet"):
        load_weights(network, pretrained, name)
    return network


def load_weights(network: nn.Module, file: str, last: str = "fc") -> None:
    """A state_dict, itself or under "state_dict" or "model", with or without DDP's "module."; all
    of it must fit but the last layer, which is left out.

    Args:
        last: what the last layer is called in ``file``, if not fc.
    """
    try:
        state = dict(torch.load(file, map_location="cpu", weights_only=True))
    except (UnpicklingError, RuntimeError, EOFError, TypeError, ValueError) as error:
        raise ValueError(f"--pretrained {file} holds no state_dict") from error
    for name in ("state_dict", "model"):
        state = state.get(name, state)

    def without_last(state: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {key.removeprefix("module."): value for key, value in state.items()}
        return {k: v for k, v in names.items() if not k.startswith(("fc.", f"{last}."))}

    state, expected = without_last(state), without_last(network.state_dict())
    shapes, wanted = (
        {(k, getattr(v, "shape", None)) for k, v in part.items()} for part in (state, expected)
    )
    wrong = sorted({key for key, _ in shapes ^ wanted})
    if wrong:
        raise ValueError(f"--pretrained {file} is of another network: {', '.join(wrong[:5])}")
    network.load_state_dict(state, strict=False)


# ---- by name

ARCHS = {f"resnet{depth}": depth for depth in (8, 14, 20, 32, 44, 56, 110)}  # CIFAR's


def build(arch: str, num_classes: int, normed: bool = False) -> CifarResNet:
    return CifarResNet(ARCHS[arch], num_classes, normed)


def default_arch(kind: str, small_images: bool) -> str:
    """For ("image", "vector" or "text") inputs."""
    return {"vector": "mlp", "text": "lstm"}.get(kind, "resnet32" if small_images else "resnet50")


def network(args: Namespace, inputs: tuple[str, int], num_classes: int) -> nn.Module:
    """What --arch names, for inputs of (kind, width) as :class:`data.source.Source` has them.

    Raises:
        ValueError: the network is not for such inputs.
    """
    kind, width = inputs
    normed = args.loss == "ldam"
    if (args.arch in ("mlp", "lstm")) != (kind != "image"):
        raise ValueError(f"--arch {args.arch} is not for {kind} inputs: leave it out")
    if kind == "vector":
        return MLP(width, args.hidden or 64, num_classes, normed)
    if kind == "text":
        return BiLSTM(width, num_classes, args.embedding, args.hidden or 128, args.dropout, normed)
    if args.arch in ARCHS and args.pretrained == "none":
        return build(args.arch, num_classes, normed)
    return from_torchvision(args.arch, num_classes, args.pretrained, normed)
