"""Distances from differences: one order of summation for a pair, whichever kernel computes it, and searches over all pairs.

The order: groups of GROUP features, in each LANES chains of every LANES-th feature, the chains added as a tree, the
groups one after the other. A distance has therefore the same bits in every kernel, and ties are ties everywhere. The
nearest of several rows is the smallest of numbers that hold the distance above and the row below ("packed"), so that
among equals the lowest row wins; a NaN counts as infinitely far.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperfast.backends import INTERPRETING

# 64 steps a chain: their rounding errors stay below those of the 20 groups of 20,018 features.
LANES = tl.constexpr(16)
GROUP = tl.constexpr(1024)

# Larger than every packed distance.
NOTHING = tl.constexpr(0x7FFFFFFFFFFFFFFF)
INFINITE = tl.constexpr(0x7F800000)
SMALL = tl.constexpr(1e-24)  # below it, squares lost below float32's range may count

# Rows x columns of differences held at once, 16 chains each: 64 registers a thread with 4 warps. 32 x 32 with 8 warps
# spills 4 bytes on sm_100. Speed not measured.
ROWS, COLUMNS = (64, 128) if INTERPRETING else (32, 16)  # the interpreter's cost is per operation, not per value
# Up to this many rows, single groups go to programs of their own: their sums take N/1024 of theta's bytes.
SPLIT_ROWS = 512
SPLIT_TILE = 128 if INTERPRETING else 16
# Programs that a large GPU wants; a program takes all columns of its rows where there are as many row tiles.
PROGRAMS = 1056
# Groups that one warp sums side by side for one pair.
PAIR_GROUPS = 32


# ---- one order of summation -------------------------------------------------------------------------


@triton.jit
def _add(chains, difference, P: tl.constexpr):
    return chains + tl.abs(difference) if P == 1 else tl.fma(difference, difference, chains)


@triton.jit
def _tree(chains):
    """[R,C,16] -> [R,C]: neighbours are added, four times."""
    for _ in tl.static_range(4):
        even, odd = tl.split(tl.reshape(chains, (chains.shape[0], chains.shape[1], chains.shape[2] // 2, 2)))
        chains = even + odd
    return tl.reshape(chains, (chains.shape[0], chains.shape[1]))


@triton.jit
def group_sums(x_at, y_at, left, P: tl.constexpr):
    """[R,C] sums of |x - y|^P over the first GROUP of `left` features, for R x C pairs; x_at [R], y_at [C] pointers."""
    lane = tl.arange(0, LANES)
    chains = tl.zeros((x_at.shape[0], y_at.shape[0], LANES), tl.float32)
    for k in range(0, tl.minimum(left, GROUP).to(tl.int32), LANES):
        inside = (k + lane < left)[None, :]
        x = tl.load(x_at[:, None] + (k + lane)[None, :], inside, 0.0)
        y = tl.load(y_at[:, None] + (k + lane)[None, :], inside, 0.0)
        chains = _add(chains, x[:, None, :] - y[None, :, :], P)
    return _tree(chains)


@triton.jit
def pair_sum(x_at, y_at, D, P: tl.constexpr, GROUPS: tl.constexpr):
    """Sum of |x - y|^P over D features of one pair, GROUPS groups side by side; 3*D FLOPs, reads 2*D values."""
    lane = tl.arange(0, LANES)
    group = tl.arange(0, GROUPS)
    total = tl.full((), 0.0, tl.float32)
    for first in range(0, tl.cdiv(D, GROUP), GROUPS):
        start = (first + group).to(tl.int64) * GROUP
        chains = tl.zeros((1, GROUPS, LANES), tl.float32)
        for k in range(0, tl.minimum(D, GROUP).to(tl.int32), LANES):
            at = start[:, None] + (k + lane)[None, :]
            x = tl.load(x_at + at, at < D, 0.0)
            y = tl.load(y_at + at, at < D, 0.0)
            chains = _add(chains, (x - y)[None, :, :], P)
        sums = tl.reshape(_tree(chains), (GROUPS,))
        for g in range(0, GROUPS):
            total += tl.sum(tl.where(group == g, sums, 0.0))  # picks one of them, exactly
    return total


# ---- the nearest ------------------------------------------------------------------------------------


@triton.jit
def pack(total, column):
    """int64 in the order of distance, then column; a NaN counts as infinite."""
    bits = tl.where(total != total, INFINITE, total.to(tl.int32, bitcast=True))
    return (bits.to(tl.int64) << 32) | column.to(tl.int64)


@triton.jit
def nearest_of_columns(theta, row, first, last, D, row_stride, P: tl.constexpr, BC: tl.constexpr):
    """[R] packed nearest of columns first..last-1, for theta's rows `row` [R]; a row is not its own neighbour.

    3*R*D FLOPs a column; a tile of BC columns reads R + BC rows of theta.
    """
    best = tl.full(row.shape, NOTHING, tl.int64)
    x_at = theta + row * row_stride
    for start in range(first, last, BC):
        column = start + tl.arange(0, BC)
        y_at = theta + tl.minimum(column, last - 1).to(tl.int64) * row_stride
        total = tl.zeros((row.shape[0], BC), tl.float32)
        for group in range(0, tl.cdiv(D, GROUP)):
            k = tl.cast(group, tl.int64) * GROUP
            total += group_sums(x_at + k, y_at + k, D - k, P)
        packed = pack(total, column[None, :])
        counts = (column[None, :] < last) & (column[None, :] != row[:, None])
        best = tl.minimum(best, tl.min(tl.where(counts, packed, NOTHING), 1))
    return best


@triton.jit
def _wide_sum(x_at, y_at, D, P: tl.constexpr, GROUPS: tl.constexpr):
    """Sum of |x - y|^P of one pair in float64."""
    lane = tl.arange(0, GROUPS * LANES)
    sums = tl.zeros((GROUPS * LANES,), tl.float64)
    for first in range(0, D, GROUPS * LANES):
        at = tl.cast(first, tl.int64) + lane
        x = tl.load(x_at + at, at < D, 0.0).to(tl.float64)
        y = tl.load(y_at + at, at < D, 0.0).to(tl.float64)
        sums += tl.abs(x - y) if P == 1 else (x - y) * (x - y)
    return tl.sum(sums, 0)


@triton.jit
def _wide_search(theta, column, row, N, D, row_stride, GROUPS: tl.constexpr):
    """Squared distance in float64 and column of the nearest of one row whose squares leave float32's range.

    Equal rows are decided by one pair, a row that is not finite by two; all columns are sought only where squares
    overflow or vanish.
    """
    x_at = theta + row * row_stride
    itself = _wide_sum(x_at, x_at, D, 2, GROUPS)  # 0, or NaN where the row is not finite
    best = _wide_sum(x_at, theta + column * row_stride, D, 2, GROUPS)
    if (itself == 0) & (best != 0):
        best = tl.full((), float("inf"), tl.float64)
        for j in range(0, N):
            square = _wide_sum(x_at, theta + tl.cast(j, tl.int64) * row_stride, D, 2, GROUPS)
            nearer = (j != row) & (square < best)
            best = tl.where(nearer, square, best)
            column = tl.where(nearer, j, column)
        if best == float("inf"):  # all others are broken
            best = _wide_sum(x_at, theta + column * row_stride, D, 2, GROUPS)
    return best, column


@triton.jit
def store_nearest(theta, best, row, at, distance, index, N, D, row_stride, P: tl.constexpr, GROUPS: tl.constexpr):
    """Unpacks the nearest of one row. An infinite one is taken again from differences: it may have been a NaN."""
    column = best & 0xFFFFFFFF
    total = (best >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    if P == 1:
        if total == float("inf"):
            total = pair_sum(theta + row * row_stride, theta + column * row_stride, D, P, GROUPS)
    else:
        if (total == float("inf")) | (total < SMALL):
            square, column = _wide_search(theta, column, row, N, D, row_stride, GROUPS)
            total = tl.sqrt(square).to(tl.float32)
        else:
            total = tl.sqrt_rn(total)
    tl.store(distance + at, total)
    tl.store(index + at, column)


@triton.jit
def part_kernel(theta, parts, N, D, row_stride, START, COUNT, P: tl.constexpr, TILE: tl.constexpr):
    """parts[g, i, j] = sum over group g of |theta[START + i] - theta[j]|^P: TILE x TILE pairs of one group a program.

    parts [groups,COUNT,N]. Reads 2*TILE*GROUP values, writes TILE^2; 3*TILE^2*GROUP FLOPs.
    """
    tiles_n = tl.cdiv(N, TILE)
    tiles = tl.cdiv(COUNT, TILE) * tiles_n
    group = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    i = (tile // tiles_n) * TILE + tl.arange(0, TILE)
    j = (tile % tiles_n) * TILE + tl.arange(0, TILE)
    first = theta + group * GROUP
    x_at = first + (START + tl.minimum(i, COUNT - 1)).to(tl.int64) * row_stride
    y_at = first + tl.minimum(j, N - 1).to(tl.int64) * row_stride
    sums = group_sums(x_at, y_at, D - group * GROUP, P)
    at = (group * COUNT + i[:, None]) * N + j[None, :]
    tl.store(parts + at, sums, (i[:, None] < COUNT) & (j[None, :] < N))


@triton.jit
def sum_parts_kernel(
    theta, parts, distance, index, N, D, row_stride, START, COUNT, GROUPS, slack,
    P: tl.constexpr, BLOCK: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """The nearest of one row a program: its GROUPS x N sums of groups are read once and added in order."""
    i = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    at = parts + tl.cast(i, tl.int64) * N + column
    for _ in tl.range(0, GROUPS, loop_unroll_factor=8):
        total += tl.load(at, column < N, 0.0)
        at += tl.cast(COUNT, tl.int64) * N
    row = (START + i).to(tl.int64)
    other = (column < N) & (column != row)
    best = tl.min(tl.where(other, pack(total, column), NOTHING), 0)
    # Several within rounding of the best: float64 decides which, and the distance is that pair's.
    limit = (best >> 32).to(tl.int32).to(tl.float32, bitcast=True) * slack
    limit = tl.where(limit < float("inf"), limit, -1.0)
    close = other & (total <= limit)
    if tl.sum(close.to(tl.int32), 0) > 1:
        x_at = theta + row * row_stride
        least = tl.full((), float("inf"), tl.float64)
        nearest = tl.full((), 0, tl.int32)
        j = tl.min(tl.where(close, column, BLOCK), 0)
        while j < BLOCK:
            wide = _wide_sum(x_at, theta + j.to(tl.int64) * row_stride, D, P, PAIR)
            nearest = tl.where(wide < least, j, nearest)
            least = tl.minimum(wide, least)
            j = tl.min(tl.where(close & (column > j), column, BLOCK), 0)
        best = pack(tl.sum(tl.where(column == nearest, total, 0.0), 0), nearest)
    store_nearest(theta, best, row, i, distance, index, N, D, row_stride, P, PAIR)


@triton.jit
def nearest_kernel(
    theta, best, N, D, row_stride, START, COUNT, PARTS, WIDTH, P: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr
):
    """best[i, part] = packed nearest of row START + i among WIDTH columns: BR rows and one part a program.

    3*BR*WIDTH*D FLOPs; reads WIDTH/BC*BR + WIDTH rows of theta, writes BR numbers.
    """
    part = tl.program_id(0) % PARTS
    i = (tl.program_id(0) // PARTS) * BR + tl.arange(0, BR)
    row = (START + tl.minimum(i, COUNT - 1)).to(tl.int64)
    first = part * WIDTH
    found = nearest_of_columns(theta, row, first, tl.minimum(first + WIDTH, N), D, row_stride, P, BC)
    tl.store(best + i.to(tl.int64) * PARTS + part, found, i < COUNT)


@triton.jit
def merge_kernel(
    theta, best, parts, flags, distance, index, N, D, row_stride, START, PARTS,
    P: tl.constexpr, FLAGGED: tl.constexpr, BLOCK: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """The nearest of one row a program, from PARTS packed ones; FLAGGED: from best[i] and from flagged parts alone."""
    i = tl.program_id(0)
    found = tl.full((), NOTHING, tl.int64)
    if FLAGGED:
        found = tl.load(best + i)
    for first in range(0, PARTS, BLOCK):
        part = first + tl.arange(0, BLOCK)
        at = tl.cast(i, tl.int64) * PARTS + part
        inside = part < PARTS
        if FLAGGED:
            inside &= tl.load(flags + at, inside, 0) != 0
        found = tl.minimum(found, tl.min(tl.load(parts + at, inside, NOTHING), 0))
    store_nearest(theta, found, (START + i).to(tl.int64), i, distance, index, N, D, row_stride, P, PAIR)


# ---- launchers --------------------------------------------------------------------------------------


def pair_groups(features: int) -> int:
    """Groups that pair_sum takes side by side."""
    return min(PAIR_GROUPS, triton.next_power_of_2(max(1, triton.cdiv(features, GROUP.value))))


def slack(features: int) -> float:
    """What a distance may be above another's and still be nearer: the roundings of both sums, and of differences."""
    return 1 + 3 * (80 + triton.cdiv(features, GROUP.value)) * 2.0**-24


def merge(
    theta: Tensor, parts: Tensor, start: int, p: int, distance: Tensor, index: Tensor,
    best: Tensor | None = None, flags: Tensor | None = None,
) -> None:  # fmt: skip
    """parts [n,PARTS] packed, with best [n] and flags [n,PARTS] only flagged ones -> distance and index [n], in place."""
    merge_kernel[(parts.shape[0],)](
        theta, parts if best is None else best, parts, parts if flags is None else flags, distance, index,
        *theta.shape, theta.stride(0), start, parts.shape[1], P=p, FLAGGED=flags is not None,
        BLOCK=min(256, triton.next_power_of_2(parts.shape[1])), PAIR=pair_groups(theta.shape[1]), num_warps=1,
    )  # fmt: skip


def nearest_of_all(theta: Tensor, start: int, stop: int, p: int) -> tuple[Tensor, Tensor]:
    """Every pair from differences: theta [N,D] -> distance and index of rows start..stop-1."""
    n, features = theta.shape
    count = stop - start
    distance = theta.new_empty(count)
    index = theta.new_empty(count, dtype=torch.int64)
    if n <= SPLIT_ROWS:
        groups = triton.cdiv(features, GROUP.value)
        sums = theta.new_empty(groups, count, n)
        tiles = triton.cdiv(count, SPLIT_TILE) * triton.cdiv(n, SPLIT_TILE)
        if groups:
            part_kernel[(groups * tiles,)](
                theta, sums, n, features, theta.stride(0), start, count, P=p, TILE=SPLIT_TILE, num_warps=4
            )
        sum_parts_kernel[(count,)](
            theta, sums, distance, index, n, features, theta.stride(0), start, count, groups,
            slack(features), P=p,
            BLOCK=triton.next_power_of_2(n), PAIR=pair_groups(features), num_warps=1,
        )  # fmt: skip
        return distance, index
    tiles = triton.cdiv(count, ROWS)
    width = triton.cdiv(triton.cdiv(n, COLUMNS), triton.cdiv(PROGRAMS, tiles)) * COLUMNS
    parts = theta.new_empty(count, triton.cdiv(n, width), dtype=torch.int64)
    nearest_kernel[(tiles * parts.shape[1],)](
        theta, parts, n, features, theta.stride(0), start, count, parts.shape[1], width, P=p, BR=ROWS, BC=COLUMNS,
        num_warps=4,
    )  # fmt: skip
    merge(theta, parts, start, p, distance, index)
    return distance, index
