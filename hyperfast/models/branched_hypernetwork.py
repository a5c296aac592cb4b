"""A convolutional hypernetwork: a picture to the weights of a target network (Klocek et al., section 3.1, figure 5).

A trunk that all layers of the target share, then a branch for each of them. Every n x n convolution is one of 1 x n
and one of n x 1; every layer is followed by batch norm and ReLU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import TargetNet
from ..ops.checks import check_size, check_tensor

# Standard deviation of what a picture adds to the generated weights at the start, relative to the weights themselves.
VARIATION = 0.3
# The same of Fourier features: a function of many periods is another one after a small change.
FOURIER_VARIATION = 0.03
# Standard deviation of what the pixels add to the last layer's weights at the start, in the layer's unit.
FIRST_DETAILS = 0.1


def layers_of(net: TargetNet) -> list[slice]:
    """The columns of theta that each layer has, in order: a weight and the bias that follows it."""
    places: dict[str, slice] = {}
    for entry in net.plan.layout:
        name = entry.name.rpartition(".")[0]
        places[name] = slice(places.get(name, entry.place).start, entry.place.stop)
    return list(places.values())


def _layer(*convolutions: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(*convolutions, nn.BatchNorm2d(channels), nn.ReLU())


def separable(inputs: int, outputs: int, n: int = 3, stride: int = 1) -> nn.Sequential:
    """An n x n convolution as 1 x n, then n x 1, with batch norm and ReLU: [B,inputs,H,W] -> [B,outputs,H/s,W/s]."""
    return _layer(
        nn.Conv2d(inputs, outputs, (1, n), (1, stride), (0, n // 2), bias=False),
        nn.Conv2d(outputs, outputs, (n, 1), (stride, 1), (n // 2, 0), bias=False),
        channels=outputs,
    )


class Inception(nn.Module):
    """1 x 1, 3 x 3 and 5 x 5 convolutions and a 3 x 3 average side by side: [B,inputs,H,W] -> [B,channels,H,W]."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        each = channels // 4

        def pointwise() -> nn.Conv2d:
            return nn.Conv2d(inputs, each, 1, bias=False)

        self.branches = nn.ModuleList(
            [
                _layer(pointwise(), channels=each),
                separable(inputs, each, 3),
                separable(inputs, each, 5),
                _layer(nn.AvgPool2d(3, 1, 1), pointwise(), channels=each),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Trunk(nn.Module):
    """What all branches share, [B,inputs,H,W] -> [B,outputs,H/2,W/2], and what it is made of, [B,width,H,W].

    A residual lies between the inception and the widening.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.inception = Inception(inputs, width)
        self.residual = nn.Sequential(*(separable(width, width) for _ in range(3)))
        self.widen = nn.Sequential(separable(width, 2 * width), nn.MaxPool2d(2, ceil_mode=True))
        self.spread = separable(2 * width, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inception(x)
        x = x + self.residual(x)
        return self.spread(self.widen(x)), x


class Branch(nn.Sequential):
    """Features [B,width,H,W] -> what one layer's weights are linear in, [B,width].

    Two strided convolutions, then a linear layer over all places: a mean over them would lose where things are.
    """

    def __init__(self, width: int, size: tuple[int, int]) -> None:
        places = 1
        for side in size:
            places *= -(-side // 4)
        super().__init__(
            separable(width, width, stride=2),
            separable(width, width, stride=2),
            nn.Flatten(),
            nn.Linear(width * places, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
        )


class BranchedHypernetwork(nn.Module):
    """Pictures [B,C,H,W] -> weights theta [B,P] of one target network each.

    Layers of the target are those of net.layout: a weight and the bias that follows it share a branch. A branch gives
    weights in units of 1 / sqrt(fan_in), so that a step of Adam, which is of one size for all parameters, moves the
    weights of all layers by the same part of themselves. They start as PyTorch would initialise them, the same for
    every picture, plus a smaller part that depends on the picture. With `frequencies` they start as random Fourier
    features, for targets of cosines: a first layer whose weights for input i are U(-1, 1) frequencies[i], biases
    U(-pi, pi), hidden weights that keep the variance of what they read, and a last layer of 0.

    Args:
        net: the target network.
        in_channels: C: 1 for grey pictures, 3 for RGB.
        size: (H, W) of the pictures, in pixels.
        width: channels of the trunk, a multiple of 4.
        branch_width: channels of the branches.
        frequencies: of each input of the target the largest weight that it starts with, in radians a unit; None: PyTorch's
            initial weights.
        details: whether the last layer's weights are linear in the trunk's features of every pixel, too. All that a
            branch tells of a picture are branch_width numbers.

    Raises:
        ValueError: naming the argument, what was expected and what came.
    """

    unit: Tensor

    def __init__(
        self,
        net: TargetNet,
        in_channels: int,
        size: tuple[int, int],
        width: int = 12,
        branch_width: int = 128,
        frequencies: Sequence[float] | None = None,
        details: bool = False,
    ) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"width must be a positive multiple of 4, the parts of the inception; got {width}")
        if min(in_channels, branch_width, *size) < 1:
            raise ValueError(
                f"in_channels, branch_width and size must be positive; got {in_channels}, {branch_width}, {size}"
            )
        self.in_channels, self.size = in_channels, tuple(size)
        layers = layers_of(net)
        self.trunk = Trunk(in_channels, width, branch_width)
        half = (-(-size[0] // 2), -(-size[1] // 2))
        self.branches = nn.ModuleList(Branch(branch_width, half) for _ in layers)
        self.weights = nn.ModuleList(nn.Linear(branch_width, place.stop - place.start) for place in layers)
        last = layers[-1]
        places = width * size[0] * size[1]
        self.details = nn.Linear(places, last.stop - last.start, bias=False) if details else None
        self.register_buffer("unit", torch.empty(net.num_weights), persistent=False)
        self._start(net, VARIATION if frequencies is None else FOURIER_VARIATION)
        if frequencies is not None:
            self._start_fourier(net, frequencies)

    @torch.no_grad()
    def _start(self, net: TargetNet, variation: float) -> None:
        for weight in self.weights.parameters():
            if weight.dim() == 1:
                nn.init.uniform_(weight, -1, 1)
            else:
                # A feature's mean square is 1/2 behind batch norm and ReLU; U(-1, 1) has the deviation 1 / sqrt 3.
                nn.init.normal_(weight, 0, variation * (2 / 3 / weight.shape[1]) ** 0.5)
        for entry in net.plan.layout:
            self.unit[entry.place] = entry.fan_in**-0.5 if entry.fan_in else 1.0
        if self.details is not None:
            nn.init.normal_(self.details.weight, 0, FIRST_DETAILS * self.details.in_features**-0.5)

    @torch.no_grad()
    def _start_fourier(self, net: TargetNet, frequencies: Sequence[float]) -> None:
        first, inputs = net.plan.layout[0], net.plan.layout[0].shape[1]
        if inputs != len(frequencies):
            raise ValueError(f"frequencies must be {inputs}, one an input of the target; got {len(frequencies)}")
        last = layers_of(net)[-1]
        for entry in net.plan.layout:
            if entry.place.start >= last.start:
                break
            if len(entry.shape) == 1:
                self.unit[entry.place] = math.pi
            else:  # a cosine's mean square is 1/2, that of U(-1, 1) 1/3
                self.unit[entry.place] = (6 / entry.fan_in) ** 0.5
        self.unit[first.place] = self.unit.new_tensor(frequencies).expand(first.shape).flatten()
        *_, last_bias = self.weights.parameters()
        nn.init.zeros_(last_bias)

    def forward(self, pictures: Tensor, last: Tensor | None = None) -> Tensor:
        """[B,C,H,W] -> [B,P], in the order of net.layout; last [B,1]: a factor of the last layer's weights."""
        check_tensor("pictures", pictures, (4,), "[B,C,H,W]")
        for dim, expected in enumerate((self.in_channels, *self.size), 1):
            check_size("pictures", pictures, dim, expected, "the constructor's")
        features, pixels = self.trunk(pictures)
        # Units go into the layers that make the weights: those are smaller than the weights of many pictures.
        units = self.unit.split([layer.out_features for layer in self.weights])
        parts = [
            F.linear(branch(features), layer.weight * unit.unsqueeze(1), layer.bias * unit)
            for branch, layer, unit in zip(self.branches, self.weights, units, strict=True)
        ]
        if self.details is not None:
            parts[-1] = parts[-1] + F.linear(pixels.flatten(1), self.details.weight * units[-1].unsqueeze(1))
        if last is not None:
            parts[-1] = parts[-1] * last
        return torch.cat(parts, 1)
