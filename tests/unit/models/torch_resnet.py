"""Residual networks in PyTorch, written down once more for comparison; names as torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Basic or bottleneck block."""

    def __init__(self, inputs: int, inner: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        outputs = 4 * inner if bottleneck else inner
        if bottleneck:
            self.conv1, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
            self.conv2, self.bn2 = conv(inner, inner, 3, stride), nn.BatchNorm2d(inner)
            self.conv3, self.bn3 = conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        else:
            self.conv1, self.bn1 = conv(inputs, inner, 3, stride), nn.BatchNorm2d(inner)
            self.conv2, self.bn2 = conv(inner, inner, 3), nn.BatchNorm2d(inner)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(torch.relu(y)))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    """ResNet of any depth; images [B, C, H, W]."""

    def __init__(self, depth: int, channels: int, base: int, num_classes: int) -> None:
        super().__init__()
        small = depth in (20, 32, 56)
        counts = [(depth - 2) // 6] * 3 if small else {18: [2, 2, 2, 2], 50: [3, 4, 6, 3]}[depth]
        self.conv1 = conv(channels, base, 3) if small else conv(channels, base, 7, 2)
        self.bn1 = nn.BatchNorm2d(base)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.groups, inputs = [], base
        for group, count in enumerate(counts):
            blocks, inner = [], base * 2**group
            for i in range(count):
                blocks.append(Block(inputs, inner, 2 if group and not i else 1, depth == 50))
                inputs = 4 * inner if depth == 50 else inner
            self.groups.append(f"layer{group + 1}")
            setattr(self, self.groups[-1], nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for name in self.groups:
            x = getattr(self, name)(x)
        return self.fc(x.mean((2, 3)))
