"""The path that the hypernetwork's points lie on: its values, its density, and the peaks it passes (figure 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ....ops import nearest_neighbor
from .config import Evaluation
from .mixture import DEVIATIONS, MEANS, value


@dataclass(frozen=True)
class Path1D:
    """The images of equally spaced z."""

    z: Tensor
    """[n] in [-1, 1]."""
    y: Tensor
    """[n,2]."""
    value: Tensor
    """[n]: f(y)."""
    distance: Tensor
    """[n], to the nearest other point."""


@torch.no_grad()
def trace(hypernetwork: nn.Module, settings: Evaluation, device: torch.device) -> Path1D:
    """The path at settings.points values of z."""
    z = torch.linspace(-1, 1, settings.points, device=device)
    y = hypernetwork(z.unsqueeze(1))
    return Path1D(z, y, value(y), nearest_neighbor(y)[0])


def peaks(path: Path1D) -> list[dict[str, float]]:
    """For each component: how near the path comes to its mean, in its standard deviations, and f there."""
    means = torch.tensor(MEANS, dtype=path.y.dtype, device=path.y.device)
    nearest = torch.cdist(means, path.y).min(1).values.tolist()
    return [
        {"component": i, "mean_x": x, "mean_y": y, "nearest_in_deviations": d / s, "value_at_mean": f}
        for i, ((x, y), d, s, f) in enumerate(zip(MEANS, nearest, DEVIATIONS, value(means).tolist(), strict=True))
    ]
