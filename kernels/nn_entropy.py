"""Nearest neighbours of N long vectors: which search serves a call, and the gradient of the distances."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import unit_columns
from .nn_entropy_exact import nearest_of_all
from .nn_entropy_screen import nearest_by_screening

# Below these, every pair from differences: two launches in place of nine. Speed not measured.
FEWEST_ROWS = 256
FEWEST_FEATURES = 256
# Up to this many rows, a program of backward looks for its row in the whole index, in one launch; beyond, it is sorted.
SCANNED_ROWS = 1024


def nearest_neighbor(theta: Tensor, start: int, stop: int, p: int) -> tuple[Tensor, Tensor]:
    """theta [N,D] float32 -> distance [R], index [R] int64 of rows start..stop-1 (stop < 0: all); ties: the lowest index."""
    theta = unit_columns(theta)
    stop = theta.shape[0] if stop < 0 else stop
    if start == stop:
        return theta.new_empty(0), theta.new_empty(0, dtype=torch.int64)
    if p == 2 and theta.shape[0] > FEWEST_ROWS and theta.shape[1] >= FEWEST_FEATURES:
        return nearest_by_screening(theta, start, stop)
    return nearest_of_all(theta, start, stop, p)


@triton.jit
def _contribution(theta, grad, distance, i, x, other, k, inside, row_stride, P: tl.constexpr, OWN: tl.constexpr):
    """To x = theta[r]: grad_i * d distance_i / dx, where the pair of row i is x and theta[other].

    Zero at distance 0. A distance that is not finite (OWN false: i's neighbour is r) adds nothing to the neighbour.
    """
    g = tl.load(grad + i)
    d = tl.load(distance + i)
    difference = x - tl.load(theta + other * row_stride + k, inside, 0.0)
    if P == 1:  # noqa: SIM108
        part = tl.where(difference > 0, g, tl.where(difference < 0, -g, 0.0))
    else:
        part = tl.div_rn(g, d) * difference
    counts = d != 0
    if not OWN:
        counts &= tl.abs(d) < float("inf")
    return tl.where(counts, part, 0.0)


@triton.jit
def gradient_kernel(
    theta, grad, distance, index, order, starts, out, N, D, row_stride, START,
    P: tl.constexpr, SORTED: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out[r - START] = row r's own pair, then the pairs whose neighbour it is, in the order of their rows.

    BLOCK features of one row a program. SORTED: those rows are order[starts[r] .. starts[r + 1]]; else they are sought
    among the N <= ROWS of index. On average reads 3*BLOCK values (r, its neighbour, one row whose neighbour it is),
    writes BLOCK; 6*BLOCK FLOPs.
    """
    blocks = tl.cdiv(D, BLOCK)
    r = START + (tl.program_id(0) // blocks).to(tl.int64)
    k = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = k < D
    x = tl.load(theta + r * row_stride + k, inside, 0.0)
    total = _contribution(theta, grad, distance, r, x, tl.load(index + r), k, inside, row_stride, P, True)
    if SORTED:
        for at in tl.range(tl.load(starts + r), tl.load(starts + r + 1), loop_unroll_factor=4):
            i = tl.load(order + at)
            total += _contribution(theta, grad, distance, i, x, i, k, inside, row_stride, P, False)
    else:
        rows = tl.arange(0, ROWS)
        mine = tl.load(index + rows, rows < N, -1) == r
        i = tl.min(tl.where(mine, rows, ROWS), 0)
        while i < ROWS:
            at = i.to(tl.int64)
            total += _contribution(theta, grad, distance, at, x, at, k, inside, row_stride, P, False)
            i = tl.min(tl.where(mine & (rows > i), rows, ROWS), 0)
    tl.store(out + (r - START) * D + k, total, inside)


def nearest_neighbor_backward(
    grad: Tensor, theta: Tensor, distance: Tensor, index: Tensor, start: int, stop: int, p: int
) -> Tensor:
    """grad, distance, index [N], theta [N,D] -> [stop-start,D], gradient of sum_i grad_i distance_i; deterministic."""
    n, features = theta.shape
    stop = n if stop < 0 else stop
    theta, grad, distance, index = unit_columns(theta), grad.contiguous(), distance.contiguous(), index.contiguous()
    out = theta.new_empty(stop - start, features)
    if out.numel() == 0:
        return out
    order = starts = index
    if n > SCANNED_ROWS:
        neighbours, order = torch.sort(index, stable=True)
        starts = torch.searchsorted(neighbours, torch.arange(n + 1, device=theta.device))
    block = min(1024, triton.next_power_of_2(features))
    gradient_kernel[((stop - start) * triton.cdiv(features, block),)](
        theta, grad, distance, index, order, starts, out, n, features, theta.stride(0), start, P=p,
        SORTED=n > SCANNED_ROWS, BLOCK=block, ROWS=1 if n > SCANNED_ROWS else triton.next_power_of_2(n), num_warps=4,
    )  # fmt: skip
    return out
