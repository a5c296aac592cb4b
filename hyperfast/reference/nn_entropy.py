"""Nearest-neighbour distances and the Kozachenko-Leonenko entropy, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_neighbor(theta: Tensor, p: int = 2) -> tuple[Tensor, Tensor]:
    """Distance from each of N >= 2 rows to its nearest other row, and that row: [N], [N] int64; ties: lowest index.

    theta [N,D]; p: 1 (sum of absolute differences) or 2 (Euclidean). Distances are taken from differences, not
    from a Gram matrix, so that near rows keep their digits.
    """
    if theta.dim() != 2 or theta.shape[0] < 2:
        raise ValueError(f"theta must be [N,D] with at least two rows; got {tuple(theta.shape)}")
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2; got {p!r}")
    with torch.no_grad():
        distances = torch.cdist(theta, theta, p, compute_mode="donot_use_mm_for_euclid_dist")
        distances.fill_diagonal_(torch.inf)
        index = distances.argmin(1)
    return (theta - theta[index]).norm(p, dim=1), index


def nn_entropy(theta: Tensor, dim: float | None = None, p: int = 2, eps: float = 1e-8) -> Tensor:
    """psi(N) + dim/N * sum_i log(d_i + eps), nats up to a constant: Deutsch, appendix A.5. dim=None: D.

    theta [N,D] -> scalar; d_i as nearest_neighbor's. Differentiable through both rows of each pair.
    """
    distance, _ = nearest_neighbor(theta, p)
    count, features = theta.shape
    psi = torch.digamma(torch.tensor(float(count), dtype=theta.dtype, device=theta.device))
    return psi + (features if dim is None else dim) * torch.log(distance + eps).mean()
