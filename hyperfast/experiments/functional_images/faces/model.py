"""A hypernetwork that makes a coordinate network of a whole picture (Klocek et al., sections 2.1 and 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....models import BranchedHypernetwork, targets
from ....nn import TargetNet
from ....ops import eval_grid
from .config import Config


class FaceFunctions(nn.Module):
    """theta = H(picture); the colour at (y, x) is T(y, x; theta), y and x in [-1,1], -1 and 1 at the edges."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.side = config.side
        self.net = TargetNet(targets.klocek_mlp(2, 3, norm=config.norm, residual=True))
        size = (config.side, config.side)
        self.hypernetwork = BranchedHypernetwork(self.net, 3, size, config.width, config.branch_width)

    def forward(self, pictures: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Pictures [B,3,S,S] in [0,1] -> colours [B,N,3] of pixels [B,N], numbered row by row; None: of all."""
        theta = self.hypernetwork(pictures)
        if pixels is None:
            return eval_grid(theta, self.net, (self.side, self.side)).flatten(1, 2)
        return self.net(centres(pixels, self.side), theta)

    def render(self, theta: Tensor, times: int = 1) -> Tensor:
        """theta [B,P] -> pictures [B,3,R,R], R = times * S.

        Norms that take statistics of their points take them of the S x S pixels at every resolution, so that one
        function is drawn.
        """
        stats = None
        if times > 1:
            every = torch.arange(self.side**2, device=theta.device)
            stats = self.net.statistics(theta, centres(every, self.side))
        size = times * self.side
        return eval_grid(theta, self.net, (size, size), stats=stats).permute(0, 3, 1, 2)


def centres(pixels: Tensor, side: int) -> Tensor:
    """Numbers of pixels [...], row by row -> their (y, x) [...,2] in [-1,1], as eval_grid has them."""
    places = torch.stack([pixels // side, pixels % side], -1)
    return (2 * places + 1) / side - 1


def in_unit(pictures: Tensor, device: torch.device) -> Tensor:
    """uint8 -> float32 in [0,1], on the device."""
    return pictures.to(device).float() / 255
