"""Batch norms whose statistics are those of all ranks' samples: torch's own for that, SyncBatchNorm, needs a GPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..nn import PerTargetNorm
from . import ranks


def share_statistics(model: nn.Module) -> None:
    """Every batch norm of the model, also one inside target networks, takes the statistics of all ranks' samples.

    Parameters, buffers and their names stay. Raises ValueError for a batch norm of another kind. One rank: nothing changes.
    """
    if ranks.count() == 1:
        return
    for name, module in model.named_modules():
        if type(module) in _SHARED:
            module.__class__ = _SHARED[type(module)]
        elif isinstance(module, _BatchNorm) and not isinstance(module, _SharedBatchNorm):
            raise ValueError(f"{name} is a {type(module).__name__}, which several ranks cannot share")


def pooled(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all ranks' samples, of means and variances [features] of as many on each."""
    means, variances = ranks.gathered(torch.stack([mean, var]).unsqueeze(0)).unbind(1)
    center = means.mean(0)
    return center, (variances + (means - center).square()).mean(0)


class _SharedBatchNorm(_BatchNorm):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over all dimensions of x [N,C,...] but the second."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        others = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x, others, correction=0)
        mean, var = pooled(mean, var)
        self._keep(mean, var, ranks.count() * x.numel() // x.shape[1])
        shape = [-1] + [1] * (x.dim() - 2)
        scale = (var + self.eps).rsqrt() * self.weight
        return (x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)

    @torch.no_grad()
    def _keep(self, mean: Tensor, var: Tensor, samples: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var * (samples / (samples - 1)), momentum)


class _SharedBatchNorm1d(_SharedBatchNorm, nn.BatchNorm1d):
    pass


class _SharedBatchNorm2d(_SharedBatchNorm, nn.BatchNorm2d):
    pass


class _SharedPerTargetNorm(PerTargetNorm):
    """With mode="shared" over all ranks' networks; a network's own statistics are not shared."""

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.mode == "per_target" or not self.training:
            return super().statistics(x)
        points = x.flatten(0, -2)
        var, mean = torch.var_mean(points, dim=0, correction=0)
        return self.pooled(mean.unsqueeze(0), var.unsqueeze(0), len(points))

    def pooled(self, mean: Tensor, var: Tensor, points: int) -> tuple[Tensor, Tensor]:
        if self.mode == "shared":
            mean, var = ranks.gathered(torch.stack([mean, var], 1)).unbind(1)
        return super().pooled(mean, var, points)


_SHARED: dict[type, type] = {
    nn.BatchNorm1d: _SharedBatchNorm1d,
    nn.BatchNorm2d: _SharedBatchNorm2d,
    PerTargetNorm: _SharedPerTargetNorm,
}
