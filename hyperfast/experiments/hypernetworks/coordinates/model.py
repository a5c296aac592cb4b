"""A network of coordinates makes the first layer's weights of a network 784-256-10."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....nn import TargetNet
from .config import Config

GRID = (28, 28, 16, 16)  # rows and columns of the pixels, rows and columns of the hidden units


def centres(sizes: tuple[int, ...]) -> Tensor:
    """[prod(sizes), len(sizes)] float32: the coordinates of all points of a grid, the last axis fastest.

    Each axis has its n points at (2i + 1) / n - 1: the centres of n equal parts of [-1, 1].
    """
    axes = [(2 * torch.arange(n, dtype=torch.float32) + 1) / n - 1 for n in sizes]
    return torch.cartesian_prod(*axes)


class CoordinateMLP(nn.Module):
    """images [N,1,28,28] -> logits [N,10]: 784 -> 256 ReLU units, which lie on a grid of 16x16, -> 10.

    config.net == "coordinates": the weight from the pixel at (y, x) to the unit at (v, u) is net(y, x, v, u) of a
    network 4-25-25-1 with ReLU, whose 801 parameters are learned. Biases and the last layer are learned themselves.
    """

    grid: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.hidden = nn.Linear(28 * 28, 16 * 16)
        self.last = nn.Linear(16 * 16, 10)
        self.net: TargetNet | None = None
        if config.net == "coordinates":
            bias = self.hidden.bias
            self.hidden = nn.Module()  # of the layer's parameters only the bias
            self.hidden.bias = bias
            self.net = TargetNet(
                nn.Sequential(
                    nn.Linear(len(GRID), config.width), nn.ReLU(),
                    nn.Linear(config.width, config.width), nn.ReLU(),
                    nn.Linear(config.width, 1),
                )
            )  # fmt: skip
            self.register_buffer("grid", centres(GRID), persistent=False)
            self.theta = nn.Parameter(self._initial(self.net.init(1)))

    @torch.no_grad()
    def _initial(self, theta: Tensor) -> Tensor:
        """theta [1,P], its last layer rescaled and shifted: the generated weights start with mean 0 and He's deviation.

        As PyTorch initialises the network, all weights are of one sign nearly: every hidden unit then is silent on every
        image, or none is on any, and training stays where it is.
        """
        net = self.net
        assert net is not None
        made = net(self.grid, theta)
        scale = (2 / (28 * 28)) ** 0.5 / made.std()
        parts = net.unflatten(theta.clone())
        last_weight, last_bias = list(parts.values())[-2:]
        last_weight.mul_(scale)
        last_bias.sub_(made.mean()).mul_(scale)
        return net.flatten(parts)

    def weight(self) -> Tensor:
        """[28*28, 16*16], differentiable."""
        if self.net is None:
            return self.hidden.weight.t()
        # The one place that makes the weights: hf.ops.eval_grid(self.theta, self.net, GRID) is to take over here, and the
        # buffer `grid` and centres() to go.
        return self.net(self.grid, self.theta).view(28 * 28, 16 * 16)

    def forward(self, images: Tensor) -> Tensor:
        h = torch.addmm(self.hidden.bias, images.flatten(1), self.weight())
        return self.last(F.relu(h))
