"""The cross-entropy of the paper's digits under generated points, against PyTorch that makes all pairs, and pykeops."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import hyperfast as hf
from hyperfast.reference.kde import kde_cross_entropy, make_inputs

from .case import Case
from .peers import installed

B, L, N = 32, 28 * 28, 400
SAMPLES_AT_ONCE = 4  # 5 MB of pairs


def cases(device: str = "cpu") -> list[Case]:
    """Training's: the gradient of the generated points alone; and every gradient. All weights are positive."""
    pairs = B * L * N
    return [
        Case(
            family="kde",
            name=name,
            shape={"B": B, "L": L, "n": N, "peers": ", ".join(PEERS), "peers not installed": ", ".join(MISSING)},
            inputs=lambda device: make_inputs(B, L, N, device=device),
            ours=hf.ops.kde_cross_entropy,
            reference=kde_cross_entropy,
            baselines={"eager": eager, "loop": loop, "careful": careful, "cdist": cdist, **PEERS},
            flops=14 * pairs,
            flops_with_backward=(14 + per_pair) * pairs,
            bytes=4 * B * (5 * L + 2 * N),  # points, weights and two numbers kept a point; the centres
            gradient_of=gradient_of,
            compiled=("careful", "eager"),
            long=name != "digits",
        )
        for name, gradient_of, per_pair in (("digits", (1,), 13), ("digits, all gradients", (0, 1, 2, 3), 23))
    ]


# ---- baselines: points [B,L,2], mu [B,n,2], weight [B,L], sigma [B] -> [B] ----------------------------


def eager(points: Tensor, mu: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """The equation as it is usually written down."""
    squares = (points.unsqueeze(2) - mu.unsqueeze(1)).square().sum(-1)
    return _from_logits(-squares / (2 * sigma.square()).view(-1, 1, 1), weight, sigma)


def loop(points: Tensor, mu: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """One sample after the other: its pairs stay in cache."""
    every = zip(*(t.split(1) for t in (points, mu, weight, sigma)), strict=True)
    return torch.cat([eager(*one) for one in every])


def _from_logits(logits: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """logits [B,L,n]: -|x - mu|^2 / (2 sigma^2)."""
    normalizer = torch.log(2 * math.pi * logits.shape[2] * sigma.square())
    return weight.sum(1) * normalizer - (weight * torch.logsumexp(logits, 2)).sum(1)


def careful(points: Tensor, mu: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """All logits of some samples from one product of centred coordinates, -|x|^2 - |mu|^2 + 2 x mu over 2 sigma^2."""
    parts = []
    for x, m, w, s in zip(*(t.split(SAMPLES_AT_ONCE) for t in (points, mu, weight, sigma)), strict=True):
        scale, middle = (s * math.sqrt(2)).view(-1, 1, 1), m.detach().mean(1, keepdim=True)
        x, m = (x - middle) / scale, (m - middle) / scale
        squares = x.square().sum(2, keepdim=True), m.square().sum(2, keepdim=True)
        ones = torch.ones_like(squares[0]), torch.ones_like(squares[1])
        rows, columns = torch.cat([2 * x, -squares[0], ones[0]], 2), torch.cat([m, ones[1], -squares[1]], 2)
        parts.append(_from_logits(rows @ columns.transpose(1, 2), w, s))
    return torch.cat(parts)


def cdist(points: Tensor, mu: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """torch.cdist by differences, some samples at a time."""
    parts = []
    for x, m, w, s in zip(*(t.split(SAMPLES_AT_ONCE) for t in (points, mu, weight, sigma)), strict=True):
        distance = torch.cdist(x, m, compute_mode="donot_use_mm_for_euclid_dist")
        parts.append(_from_logits(-distance.square() / (2 * s.square()).view(-1, 1, 1), w, s))
    return torch.cat(parts)


def _pykeops(points: Tensor, mu: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    from pykeops.torch import LazyTensor

    scale = (sigma * math.sqrt(2)).view(-1, 1, 1)
    x, m = (LazyTensor((t / scale).unsqueeze(dim).contiguous()) for t, dim in ((points, 2), (mu, 1)))
    logsumexp = (-((x - m) ** 2).sum(-1)).logsumexp(dim=2).squeeze(-1)
    normalizer = torch.log(2 * math.pi * mu.shape[1] * sigma.square())
    return weight.sum(1) * normalizer - (weight * logsumexp).sum(1)


PEERS, MISSING = installed({"pykeops": ("pykeops", _pykeops)})
