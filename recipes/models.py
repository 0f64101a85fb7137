"""The residual networks for CIFAR of He et al. 2016, Section 4.2, with shortcuts of option A.

ResNet-(6n+2): a 3×3 convolution, three stages of n blocks with 16, 32, 64 channels, global average
pooling and a linear layer; 0.46 M parameters for ResNet-32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torch_absgd as ta


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
    """Images [N, 3, H, W] to logits [N, num_classes]; ``features`` gives [N, 64].

    Args:
        depth: 6n + 2.
        normed: the last layer is :class:`torch_absgd.NormedLinear`, which LDAM needs.
    """

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
        self.fc = (ta.NormedLinear if normed else nn.Linear)(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def stage(in_channels: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
        first = Block(in_channels, channels, stride)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


ARCHS = {f"resnet{depth}": depth for depth in (8, 14, 20, 32, 44, 56, 110)}


def build(arch: str, num_classes: int, normed: bool = False) -> CifarResNet:
    return CifarResNet(ARCHS[arch], num_classes, normed)
