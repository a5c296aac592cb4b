"""Nearest neighbours among the rows of a matrix, and the sparse gradient of their distances."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import power_of_two, unit_columns
from .nn_entropy_exact import nearest_of_all, nearest_of_few
from .nn_entropy_screen import nearest_by_screening

# Rows up to which every pair is computed from differences: by instructions alone 0.1 ms at 256 rows x 20,018 on an
# H200, where screening's eleven launches and three passes begin to pay. Speed not measured.
FEW = 256
# Rows of a neighbourhood that are read at once in backward.
AHEAD = 8


def nearest_neighbor(theta: Tensor, start: int, stop: int, p: int) -> tuple[Tensor, Tensor]:
    """theta [N,D] float32, N >= 2 -> distance [R], index [R] int64 of the rows start ... stop-1, R = stop - start.

    The nearest other row among all N by |difference|_p; ties: the lowest index. NaN is never nearest; a row with
    no other at finite distance gets the lowest other index, and that distance.
    """
    theta = unit_columns(theta)
    if start == stop:
        return torch.empty(0, device=theta.device), torch.empty(0, dtype=torch.int64, device=theta.device)
    if theta.shape[0] <= FEW:
        return nearest_of_few(theta, start, stop, p)
    if p == 1:
        return nearest_of_all(theta, start, stop, p)
    return nearest_by_screening(theta, start, stop)


@triton.jit
def _share(theta, grad, distance, neighbour, i, r, x, at, inside, is_entry, stride, P: tl.constexpr):
    """d(grad_i * distance_i) / d(theta_r) for an edge i -> neighbour, seen from its end r; the other end is `neighbour`."""
    y = tl.load(theta + neighbour * stride + at, inside & is_entry, 0.0)
    g = tl.load(grad + i, is_entry, 0.0)
    d = tl.load(distance + i, is_entry, 1.0)
    delta = x - y
    if P == 2:
        share = delta * tl.where(d == 0.0, 0.0, g / d)
    else:
        share = tl.where(delta > 0, g, tl.where(delta < 0, -g, delta * g))
    return tl.where(is_entry & (d != 0.0), share, 0.0)


@triton.jit
def backward_kernel(
    grad, theta, distance, index, sources, bounds, out, D, start, stride, P: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """BLOCK features of one row: its own edge, then those of the rows whose neighbour it is, in their order.

    sources: rows by their neighbour; bounds[r] ... bounds[r+1]-1: those of row start + r. Reads 4*D bytes of the row
    and of each of its edges' other ends, writes 4*D: for N rows 16*N*D bytes in all. AHEAD edges are read at once,
    and added one after the other.
    """
    blocks = (D - 1) // BLOCK + 1
    r = (tl.program_id(0) // blocks).to(tl.int64)
    row = start + r
    at = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < D
    x = tl.load(theta + row * stride + at, inside, 0.0)
    total = _share(theta, grad, distance, tl.load(index + row), row, row, x, at, inside, True, stride, P)
    first, last = tl.load(bounds + r), tl.load(bounds + r + 1)
    for begin in range(first, last, AHEAD):
        for entry in tl.static_range(AHEAD):
            edge = begin + entry
            i = tl.load(sources + edge, edge < last, 0)
            total += _share(theta, grad, distance, i, i, row, x, at, inside, edge < last, stride, P)
    tl.store(out + r * D + at, total, inside)


def nearest_neighbor_backward(
    grad: Tensor, theta: Tensor, distance: Tensor, index: Tensor, start: int, stop: int, p: int
) -> Tensor:
    """Gradient of sum_i grad_i * distance_i, i < N, with respect to the rows start ... stop-1: [R,D].

    grad, distance, index [N], theta [N,D] float32. A row's own pair first, then those of the rows whose neighbour it
    is, by index: the same bits every time. Zero for pairs at distance 0.
    """
    features, rows = theta.shape[1], stop - start
    out = torch.empty(rows, features, device=theta.device)
    if out.numel() == 0:
        return out
    theta = unit_columns(theta)
    neighbours, sources = torch.sort(index, stable=True)
    bounds = torch.searchsorted(neighbours, torch.arange(start, stop + 1, device=theta.device))
    block = min(1024, power_of_two(features))
    backward_kernel[(rows * triton.cdiv(features, block),)](
        grad.contiguous(), theta, distance.contiguous(), index.contiguous(), sources, bounds, out, features, start,
        theta.stride(0), P=p, BLOCK=block, AHEAD=AHEAD, num_warps=4,
    )  # fmt: skip
    return out
