"""Layers for templates that torch.nn does not have. Each is an ordinary module, too: y = template(x) works."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..reference.target_net import normalize


class Cos(nn.Module):
    """cos(x), elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(x)


class Sin(nn.Module):
    """sin(x), elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Residual(nn.Sequential):
    """y = x + f(x) for f = nn.Sequential(...) with equal input and output shapes.

    f's layers become this module's own, so that parameters are named "i.j.weight" as in a nested Sequential.
    """

    def __init__(self, f: nn.Sequential) -> None:
        if not isinstance(f, nn.Sequential):
            raise TypeError(f"Residual takes an nn.Sequential; got {type(f).__name__}")
        super().__init__(OrderedDict(f._modules))

    def forward(self, x: Tensor) -> Tensor:
        added = super().forward(x)
        check_residual("Residual", x, added)
        return x + added


def check_residual(name: str, x: Tensor, added: Tensor) -> None:
    """Raises ValueError unless f(x) has x's shape, behind the networks where x is shared by them: no broadcasting."""
    if added.shape[added.dim() - x.dim() :] != x.shape:
        raise ValueError(f"{name}: f(x) must have x's shape {tuple(x.shape)}; got {tuple(added.shape)}")


class PerTargetNorm(nn.Module):
    """Batch norm inside target networks: y = gamma * (x - mean) / sqrt(var + eps) + beta, biased variance.

    mode="per_target": each unit is normalised over its own network's N points, always those of the call (give
    TargetNet stats= to use others). mode="shared": over all networks' points, with running statistics in eval,
    as nn.BatchNorm1d. gamma, beta [features] are learned, shared by all networks, and not part of theta.
    As a module of its own it takes x [..., N, features].
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int, mode: str = "per_target", eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        if mode not in ("per_target", "shared"):
            raise ValueError(f"mode must be 'per_target' or 'shared'; got {mode!r}")
        self.features, self.mode, self.eps, self.momentum = features, mode, eps, momentum
        self.gamma = nn.Parameter(torch.ones(features))
        self.beta = nn.Parameter(torch.zeros(features))
        if mode == "shared":
            self.register_buffer("running_mean", torch.zeros(features))
            self.register_buffer("running_var", torch.ones(features))

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance) that forward uses for x [..., N, features], and in training keeps a running mean of."""
        if self.mode == "per_target":
            var, mean = torch.var_mean(x, dim=-2, correction=0, keepdim=True)
            return mean, var
        if not self.training:
            return self.running_mean, self.running_var
        points = x.flatten(0, -2)
        var, mean = torch.var_mean(points, dim=0, correction=0)
        self._keep(mean, var, points.shape[0])
        return mean, var

    @property
    def takes_statistics(self) -> bool:
        """Whether forward takes statistics of its points, or has them."""
        return self.mode == "per_target" or self.training

    def pooled(self, mean: Tensor, var: Tensor, points: int) -> tuple[Tensor, Tensor]:
        """As statistics(), from each network's mean and biased variance [B,features] over so many points."""
        if self.mode == "per_target":
            return mean, var
        center = mean.mean(0)
        var = (var + (mean - center).square()).mean(0)
        self._keep(center, var, points * mean.shape[0])
        return center, var

    def _keep(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Takes the statistics of `count` points into the running ones."""
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = var * (count / max(count - 1, 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)

    def forward(self, x: Tensor, stats: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if x.shape[-1] != self.features:
            raise ValueError(f"x must have {self.features} features in its last dimension; got {tuple(x.shape)}")
        mean, var = self.statistics(x) if stats is None else stats
        return normalize(x, mean, var, self.gamma, self.beta, self.eps)

    def extra_repr(self) -> str:
        return f"{self.features}, mode={self.mode!r}, eps={self.eps}, momentum={self.momentum}"
