"""Nearest-neighbour distances and the Kozachenko-Leonenko entropy, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_neighbor(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance from each of N >= 2 rows to its nearest other row, and that row: [N], [N] int64.

    theta [N,D]. Distances are taken from differences, not from a Gram matrix, so that near rows keep their digits.
    """
    if theta.dim() != 2 or theta.shape[0] < 2:
        raise ValueError(f"theta must be [N,D] with at least two rows; got {tuple(theta.shape)}")
    with torch.no_grad():
        squares = torch.stack([(theta - row).square().sum(1) for row in theta])
        squares.fill_diagonal_(torch.inf)
        index = squares.argmin(1)
    return (theta - theta[index]).norm(dim=1), index


def nn_entropy(theta: Tensor, dim: float | None = None, eps: float = 1e-8) -> Tensor:
    """psi(N) + dim/N * sum_i log(d_i + eps), nats up to a constant: Deutsch, appendix A.5. dim=None: D.

    theta [N,D] -> scalar. Differentiable through both rows of each pair.
    """
    distance, _ = nearest_neighbor(theta)
    count, features = theta.shape
    psi = torch.digamma(torch.tensor(float(count), dtype=theta.dtype, device=theta.device))
    return psi + (features if dim is None else dim) * torch.log(distance + eps).mean()
