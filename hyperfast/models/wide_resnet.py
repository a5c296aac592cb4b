"""Wide residual networks, plain and with generated kernels (Ha, Dai and Le, "HyperNetworks", section 4.2, table 1)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import HyperConv2d, TileHypernetwork

_FIRST = 16  # channels of the first convolution, and of both sides of a tile
_GROUPS = (16, 32, 64)


class WideResNet(nn.Module):
    """Images [N,3,H,W] -> logits [N,classes]: a 3x3 convolution, three groups of residual blocks, batch norm, ReLU, mean, linear.

    A block is x + conv(relu(bn(conv(relu(bn(x)))))), its convolutions 3x3 with biases; group g has `blocks` of them with
    16, 32 and 64 times `width` channels, and the second and third group halve height and width in their first block. Where
    sizes differ the shortcut has no parameters either: the mean of 2x2 pixels, and channels of zeros on both sides.

    Args:
        width: k of WRN n-k.
        blocks: N, blocks in a group; n = 6 N + 4.
        generator: makes the kernels of all blocks, each of tiles of 16x16x3x3; None: they are learned themselves. With
            TileHypernetwork() this is the paper's Hyper Residual Network.
        classes: elements of the logits.

    Parameters of WRN 40-1 and 40-2: 562,730 and 2,235,498; with TileHypernetwork() 96,570 and 147,578. Kernels start with
    He's standard deviation, with a generator as its `init` says; biases at 0.

    Raises ValueError, naming the argument, where the generator's kernels are not 3x3 or its tiles do not divide the channels.
    """

    def __init__(
        self, width: int = 1, blocks: int = 6, generator: TileHypernetwork | None = None, classes: int = 10
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("blocks", blocks), ("classes", classes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        if generator is not None and generator.kernel_size != (3, 3):
            raise ValueError(f"generator must make kernels of 3x3; got {generator.kernel_size}")
        self.generator = generator
        self.first = _plain(3, _FIRST, 1)
        layers, channels = [], _FIRST
        for group, size in enumerate(_GROUPS):
            for block in range(blocks):
                stride = 2 if group and not block else 1
                layers.append(_Block(channels, size * width, stride, generator))
                channels = size * width
        self.blocks = nn.ModuleList(layers)
        self.norm = nn.BatchNorm2d(channels)
        self.last = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.with_penalty(images)[0]

    def with_penalty(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, []): also the sum of the squares of all kernels' elements, generated or not; differentiable.

        Generated kernels are made at once, and their part of the sum in the same pass.
        """
        assembled: AbstractContextManager = nullcontext() if self.generator is None else self.generator.assembled(self)
        with assembled as made:
            h = self.first(images)
            for block in self.blocks:
                h = block(h)
            logits = self.last(F.relu(self.norm(h)).mean((2, 3)))
            learned = [m.weight.square().sum() for m in self.modules() if isinstance(m, nn.Conv2d)]
            return logits, torch.stack(learned).sum() + (0 if made is None else made.penalty)


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, generator: TileHypernetwork | None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)
        self.conv1, self.conv2 = _conv(channels, out, stride, generator), _conv(out, out, 1, generator)
        self.stride, self.more = stride, out - channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(self.norm1(x)))
        h = self.conv2(F.relu(self.norm2(h)))
        shortcut = x if self.stride == 1 else F.avg_pool2d(x, self.stride)
        if self.more:
            before = self.more // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.more - before))
        return shortcut + h


def _conv(channels: int, out: int, stride: int, generator: TileHypernetwork | None) -> nn.Module:
    if generator is None:
        return _plain(channels, out, stride)
    return HyperConv2d(channels, out, generator, stride, padding=1)


def _plain(channels: int, out: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, 3, stride, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    conv.get_parameter("bias").data.zero_()
    return conv
