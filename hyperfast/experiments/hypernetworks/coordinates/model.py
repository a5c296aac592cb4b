"""A network of coordinates makes the first layer's weights of a network 784-256-10."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....nn import TargetNet
from ....ops import eval_grid
from .config import Config

GRID = (28, 28, 16, 16)  # rows and columns of the pixels, rows and columns of the hidden units


class CoordinateMLP(nn.Module):
    """images [N,1,28,28] -> logits [N,10]: pixels less config.mean, 784 -> 256 ReLU units on a grid of 16x16 -> 10.

    config.net == "coordinates": the weight from the pixel at (y, x) to the unit at (v, u) is net(y, x, v, u) of a
    network 4-25-25-1 with ReLU, whose 801 parameters are learned. Biases and the last layer are learned themselves.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.mean = config.mean
        hidden = nn.Linear(28 * 28, 16 * 16)
        self.bias = hidden.bias
        self.last = nn.Linear(16 * 16, 10)
        self.net: TargetNet | None = None
        if config.net == "direct":
            self.direct = hidden.weight
        else:
            self.net = TargetNet(
                nn.Sequential(
                    nn.Linear(len(GRID), config.width), nn.ReLU(),
                    nn.Linear(config.width, config.width), nn.ReLU(),
                    nn.Linear(config.width, 1),
                )
            )  # fmt: skip
            self.theta = nn.Parameter(self.net.init(1))
            self._rescale(self.net)

    @torch.no_grad()
    def _rescale(self, net: TargetNet) -> None:
        """Of theta the last layer, so that the generated weights start with mean 0 and He's deviation.

        As PyTorch initialises the network, nearly all of them are of one sign, and the hidden units nearly the same.
        """
        made = self.weight()
        scale = math.sqrt(2 / len(made)) / made.std()
        last_weight, last_bias = list(net.unflatten(self.theta).values())[-2:]  # views
        last_weight.mul_(scale)
        last_bias.sub_(made.mean()).mul_(scale)

    def weight(self) -> Tensor:
        """[28*28, 16*16], differentiable."""
        if self.net is None:
            return self.direct.t()
        return eval_grid(self.theta, self.net, GRID).view(28 * 28, 16 * 16)

    def forward(self, images: Tensor) -> Tensor:
        h = torch.addmm(self.bias, images.flatten(1) - self.mean, self.weight())
        return self.last(F.relu(h))
