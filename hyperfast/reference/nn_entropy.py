"""Nearest-neighbour distances and the Kozachenko-Leonenko entropy, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_neighbor(theta: Tensor, p: int = 2, start: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor]:
    """Distance from rows start..stop-1 of N >= 2 rows to their nearest other row, and that row; ties: lowest index.

    theta [N,D]; p: 1 (sum of absolute differences) or 2 (Euclidean); all rows by default -> [stop-start],
    [stop-start] int64. Distances are taken from differences, not from a Gram matrix, so that near rows keep their
    digits. A NaN counts as infinitely far: a row with NaN is nobody's neighbour while there are others, and its own
    neighbour is the lowest other row.
    """
    if theta.dim() != 2 or theta.shape[0] < 2:
        raise ValueError(f"theta must be [N,D] with at least two rows; got {tuple(theta.shape)}")
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2; got {p!r}")
    own, rows = theta[start:stop], torch.arange(theta.shape[0], device=theta.device)
    with torch.no_grad():
        distances = torch.cdist(own, theta, p, compute_mode="donot_use_mm_for_euclid_dist")
        itself = rows == rows[start:stop].unsqueeze(1)
        distances = torch.where(distances.isnan() | itself, torch.inf, distances)
        index = distances.argmin(1)
        # Where every distance is infinite, argmin may have found the row itself.
        index = torch.where(index == rows[start:stop], (index == 0).long(), index)
    return pair_distance(own, theta[index], p), index


def pair_distance(own: Tensor, other: Tensor, p: int) -> Tensor:
    """|own_i - other_i|_p, rows [n,D] -> [n]. The gradient is zero at distance 0.

    Where the distance is NaN or infinite the gradient stays in `own`: a broken row's neighbour is not one.
    """
    finite = _norm((own - other).detach(), p).isfinite()
    return _norm(own - torch.where(finite.unsqueeze(1), other, other.detach()), p)


def _norm(difference: Tensor, p: int) -> Tensor:
    if p == 1:
        return difference.abs().sum(1)
    square = difference.square().sum(1)
    return torch.where(square == 0, 1, square).sqrt().masked_fill(square == 0, 0)


def nearest_neighbor_backward(
    grad: Tensor, theta: Tensor, distance: Tensor, index: Tensor, start: int, stop: int, p: int
) -> Tensor:
    """Gradient of sum_i grad_i |theta_i - theta_index(i)|_p with respect to rows start..stop-1: [stop-start,D].

    grad, distance, index [N]: of all rows, not of start..stop-1 alone, as a row may be the neighbour of any other.
    """
    _, pullback = torch.func.vjp(lambda t: pair_distance(t, t[index], p), theta)[:2]
    return pullback(grad)[0][start:stop]


def entropy_of(distance: Tensor, features: int, dim: float | None, eps: float) -> Tensor:
    """psi(N) + dim/N * sum_i log(d_i + eps), nats up to a constant. distance [N] -> scalar; dim=None: features."""
    psi = torch.digamma(distance.new_ones(()) * distance.shape[0])  # new_full would fix N in a traced graph
    return psi + (features if dim is None else dim) * torch.log(distance + eps).mean()


def nn_entropy(theta: Tensor, dim: float | None = None, p: int = 2, eps: float = 1e-8) -> Tensor:
    """psi(N) + dim/N * sum_i log(d_i + eps), nats up to a constant: Deutsch, appendix A.5. dim=None: D.

    theta [N,D] -> scalar; d_i as nearest_neighbor's. Differentiable through both rows of each pair.
    """
    distance, _ = nearest_neighbor(theta, p)
    return entropy_of(distance, theta.shape[1], dim, eps)


def make_inputs(rows: int, features: int, *, dtype=torch.float32, device="cpu", seed: int = 0) -> Tensor:
    """theta [rows, features], standard normal."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, features, generator=generator, dtype=torch.float64).to(device, dtype)
