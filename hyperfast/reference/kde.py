"""Cross-entropy of weighted points under a Gaussian kernel density estimate, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def kde_cross_entropy(points: Tensor, mu: Tensor, weight: Tensor, sigma: Tensor) -> Tensor:
    """ce_b = - sum_l w_bl log p_bl, with log_density's p: Klocek et al., equation 1.

    points [B,L,2], mu [B,n,2], weight [B,L], sigma [B] -> [B]. A point of weight zero counts for nothing, also where
    its coordinates are not finite.
    """
    absent = (weight == 0) & ~points.isfinite().all(-1)
    points = points.masked_fill(absent.unsqueeze(-1), 0)
    log_p = log_density(points, mu, sigma).masked_fill(absent, 0)
    return -(weight * log_p).sum(-1)


def log_density(points: Tensor, mu: Tensor, sigma: Tensor) -> Tensor:
    """log p_bl = log( 1/n sum_i N(x_bl; mu_bi, sigma_b^2 I) ), nats; sigma is a standard deviation.

    points [B,L,2], mu [B,n,2], sigma [B] -> [B,L]. Finite wherever the squared distances are.

    Taken relative to the nearest centre: torch.logsumexp does so for its value, but its gradient, exp(x - result), no
    longer sums to 1 where the result is so large that log n is lost in its rounding.
    """
    squares = (points.unsqueeze(2) - mu.unsqueeze(1)).square().sum(-1)
    nearest = squares.detach().amin(-1, keepdim=True)
    nearest = nearest.masked_fill(~nearest.isfinite(), 0)
    double_variance = 2 * sigma.square().view(-1, 1, 1)
    terms = torch.exp((nearest - squares) / double_variance)
    log_mean = torch.log(terms.mean(-1)) - (nearest / double_variance).squeeze(-1)
    return log_mean - torch.log(math.pi * double_variance.squeeze(-1))


def make_inputs(
    batch: int, points: int, centres: int, *, dtype=torch.float32, device="cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """points [B,L,2] and centres [B,n,2], uniform in the unit square; positive weights of sum 1; sigma 0.02 to 0.05."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    weight = uniform(batch, points) + 0.01
    inputs = uniform(batch, points, 2), uniform(batch, centres, 2), weight / weight.sum(1, keepdim=True)
    x, mu, w, sigma = (t.to(device, dtype) for t in (*inputs, 0.02 + 0.03 * uniform(batch)))
    return x, mu, w, sigma
