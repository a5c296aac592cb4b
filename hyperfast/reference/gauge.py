"""Gauge fixing of flat weight vectors (Deutsch, section 3.2.2), in plain PyTorch.

A network of positively homogeneous layers, f(s x) = s f(x) for s > 0, computes the same when a filter (all
weights and the bias of one unit or channel) is divided by s and what the next layer reads of it is multiplied by
s. The softmax of its outputs does not change, either, when one number is added to all of them. Two weight
vectors that differ by nothing else are one network; fix_gauge gives both the same representative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..plan import Plan
from ..plan_gauge import SCALE, SHIFT, GaugeRow

DEAD = 1e-30
"""A filter whose mean square is not above this is left as it is: zero stays zero, and gradients finite."""


def fix_gauge(theta: Tensor, plan: Plan, logits: bool = True) -> Tensor:
    """hf.ops.fix_gauge: theta [B,P] -> [B,P] in theta's dtype."""
    if theta.dim() != 2 or theta.shape[1] != plan.num_weights:
        raise ValueError(f"theta must be [B,P] with the plan's P = {plan.num_weights}; got {tuple(theta.shape)}")
    return gauge(theta, plan.gauge.rows(logits))


def gauge(theta: Tensor, rows: Sequence[GaugeRow]) -> Tensor:
    """theta [B,P] -> [B,P], for the layers in order. Of a layer with SCALE, for every filter (w, b) of n elements:

        s = sqrt((sum w^2 + b^2) / n)      w, b <- w / s, b / s      the next layer's columns for it <- s * columns

    where w is what the layer before has made of it; s = 1 for a dead filter. Of a layer with SHIFT:
    b <- b - mean b. Computed in float32 at least.
    """
    values = theta.to(torch.promote_types(theta.dtype, torch.float32))
    fixed: list[Tensor] = []
    scale: Tensor | None = None  # [B, filters of the layer before]
    for row in rows:
        weight = values[:, row.weight : row.weight + row.filters * row.fan_in].unflatten(1, (row.filters, row.fan_in))
        bias = None if row.bias < 0 else values[:, row.bias : row.bias + row.filters]
        if scale is not None:
            weight = weight * scale.repeat_interleave(row.fan_in // scale.shape[1], 1).unsqueeze(1)
        scale = None
        if row.treatment == SCALE:
            squares = weight.square().sum(2) if bias is None else weight.square().sum(2) + bias.square()
            mean = squares / (row.fan_in + (bias is not None))
            scale = torch.where(mean <= DEAD, 1.0, mean).sqrt()
            weight = weight / scale.unsqueeze(2)
            bias = None if bias is None else bias / scale
        elif row.treatment == SHIFT and bias is not None:
            bias = bias - bias.mean(1, keepdim=True)
        fixed.append(weight.flatten(1))
        if bias is not None:
            fixed.append(bias)
    return torch.cat(fixed, 1).to(theta.dtype) if fixed else theta


def make_inputs(
    num_weights: int,
    networks: int,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Tensor:
    """theta [B,P], N(0, 0.3^2)."""
    generator = torch.Generator().manual_seed(seed)
    theta = 0.3 * torch.randn(networks, num_weights, generator=generator, dtype=torch.float64)
    return theta.to(device, dtype)
