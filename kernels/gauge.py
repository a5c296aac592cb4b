"""Gauge fixing: one program a network, all layers in turn. A row of theta (80 KB of the largest target so far) stays in L2.

Bytes: forward reads theta once from memory, again from L1 or L2 where a filter does not stay in registers, and writes
the result once; backward reads gy and theta and writes the gradient. Scales, and the sums that travel from a layer
back to the one before, pass through a few KB of global memory between two barriers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperfast.plan_gauge import SCALE, SHIFT, GaugeRow

from .common import is_amd, power_of_two, unit_columns

# Values of a tile [filters, columns], and its widest row: 4 values for each of 256 threads (8 spill 4 bytes on sm_90
# in 16 bits with Triton 3.6). Eight warps, because a batch of 32 networks occupies no more than 32
# multiprocessors. Speed not measured.
TILE = 1024
MOST_COLUMNS = 1024
MOST_FILTERS = 128
_SCALE, _SHIFT = tl.constexpr(SCALE), tl.constexpr(SHIFT)
_DEAD = tl.constexpr(1e-30)  # as in hyperfast/reference/gauge.py


@triton.jit
def _divisor(s):
    """Scales as they divide: the 0 that stands for a dead filter leaves its values alone."""
    return tl.where(s == 0.0, 1.0, s)


@triton.jit
def _scaled(theta, columns, f, i, inside, FAN_IN: tl.constexpr, BLOCK: tl.constexpr):
    """(w, r, w') of a tile: weights, scales of their columns (1 where BLOCK is 0), and their product."""
    w = tl.load(theta + f[:, None] * FAN_IN + i[None, :], inside, 0.0).to(tl.float32)
    r = tl.full(i.shape, 1.0, tl.float32)
    if BLOCK > 0:
        r = _divisor(tl.load(columns + i // BLOCK, i < FAN_IN, 1.0))
    return w, r, w * r[None, :]


@triton.jit
def _forward(theta, fixed, scales, columns, WEIGHT: tl.constexpr, BIAS: tl.constexpr, FILTERS: tl.constexpr,
             FAN_IN: tl.constexpr, TREATMENT: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
             COLS: tl.constexpr, PADDED: tl.constexpr):  # fmt: skip
    """One layer of one network. columns: the previous layer's scales, each of which holds for BLOCK columns."""
    n: tl.constexpr = FAN_IN + (1 if BIAS >= 0 else 0)
    for start in range(0, FILTERS, ROWS):
        f = start + tl.arange(0, ROWS)
        s = tl.full((ROWS,), 1.0, tl.float32)
        if TREATMENT == _SCALE:
            squares = tl.zeros((ROWS,), tl.float32)
            if BIAS >= 0:
                b = tl.load(theta + BIAS + f, f < FILTERS, 0.0).to(tl.float32)
                squares += b * b
            for first in range(0, FAN_IN, COLS):
                i = first + tl.arange(0, COLS)
                inside = (f[:, None] < FILTERS) & (i[None, :] < FAN_IN)
                _, _, u = _scaled(theta + WEIGHT, columns, f, i, inside, FAN_IN, BLOCK)
                squares += tl.sum(u * u, 1)
            mean = squares / n
            s = tl.where(mean <= _DEAD, 0.0, tl.sqrt_rn(mean))
        tl.store(scales + f, s, f < FILTERS)
        s = _divisor(s)
        for first in range(0, FAN_IN, COLS):
            i = first + tl.arange(0, COLS)
            inside = (f[:, None] < FILTERS) & (i[None, :] < FAN_IN)
            _, _, u = _scaled(theta + WEIGHT, columns, f, i, inside, FAN_IN, BLOCK)
            at = fixed + WEIGHT + f[:, None] * FAN_IN + i[None, :]
            tl.store(at, (u / s[:, None]).to(fixed.dtype.element_ty), inside)
        if BIAS >= 0 and TREATMENT != _SHIFT:
            b = tl.load(theta + BIAS + f, f < FILTERS, 0.0).to(tl.float32)
            tl.store(fixed + BIAS + f, (b / s).to(fixed.dtype.element_ty), f < FILTERS)
    if TREATMENT == _SHIFT:
        _shift(theta + BIAS, fixed + BIAS, FILTERS, PADDED)


@triton.jit
def _shift(x, y, FILTERS: tl.constexpr, PADDED: tl.constexpr):
    """y = x - mean x, [FILTERS]. Linear: backward is the same."""
    f = tl.arange(0, PADDED)
    value = tl.load(x + f, f < FILTERS, 0.0).to(tl.float32)
    tl.store(y + f, (value - tl.sum(value, 0) / FILTERS).to(y.dtype.element_ty), f < FILTERS)


@triton.jit
def gauge_kernel(theta, fixed, scales, network, WEIGHTS: tl.constexpr, TOTAL: tl.constexpr, LAYERS: tl.constexpr,
                 TABLE: tl.constexpr):  # fmt: skip
    """One network: theta [WEIGHTS] -> fixed [WEIGHTS], scales [TOTAL]."""
    b = tl.program_id(0).to(tl.int64)
    theta += b * network
    fixed += b * WEIGHTS
    scales += b * TOTAL
    for l in tl.static_range(LAYERS):
        _forward(theta, fixed, scales + TABLE[l][5], scales + TABLE[l][6], TABLE[l][0], TABLE[l][1], TABLE[l][2],
                 TABLE[l][3], TABLE[l][4], TABLE[l][7], TABLE[l][8], TABLE[l][9], TABLE[l][10])  # fmt: skip
        tl.debug_barrier()  # the next layer reads these scales in other threads


@triton.jit
def _backward(gy, theta, scales, columns, gtheta, gcolumns, factors, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
              FILTERS: tl.constexpr, FAN_IN: tl.constexpr, TREATMENT: tl.constexpr, BLOCK: tl.constexpr,
              NEXT: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PADDED: tl.constexpr,
              NEXT_COLS: tl.constexpr):  # fmt: skip
    """One layer of one network. gcolumns [largest FAN_IN]: what the layer behind found for its columns, NEXT for each
    of this layer's filters, and then what this layer finds. factors [most FILTERS]: k of csrc/gauge.h.
    """
    n: tl.constexpr = FAN_IN + (1 if BIAS >= 0 else 0)
    if TREATMENT == _SCALE:
        for start in range(0, FILTERS, ROWS):
            f = start + tl.arange(0, ROWS)
            s = tl.load(scales + f, f < FILTERS, 1.0)
            gs = tl.zeros((ROWS,), tl.float32)
            for first in range(0, NEXT, NEXT_COLS):
                j = first + tl.arange(0, NEXT_COLS)
                inside = (f[:, None] < FILTERS) & (j[None, :] < NEXT)
                gs += tl.sum(tl.load(gcolumns + f[:, None] * NEXT + j[None, :], inside, 0.0), 1)
            along = tl.zeros((ROWS,), tl.float32)
            for first in range(0, FAN_IN, COLS):
                i = first + tl.arange(0, COLS)
                inside = (f[:, None] < FILTERS) & (i[None, :] < FAN_IN)
                _, _, u = _scaled(theta + WEIGHT, columns, f, i, inside, FAN_IN, BLOCK)
                g = tl.load(gy + WEIGHT + f[:, None] * FAN_IN + i[None, :], inside, 0.0).to(tl.float32)
                along += tl.sum(g * u, 1)
            if BIAS >= 0:
                b = tl.load(theta + BIAS + f, f < FILTERS, 0.0).to(tl.float32)
                gb = tl.load(gy + BIAS + f, f < FILTERS, 0.0).to(tl.float32)
                along += gb * b
            dead = s == 0.0
            s = _divisor(s)
            k = tl.where(dead, 0.0, (gs - along / s / s) / s / n)
            tl.store(factors + f, k, f < FILTERS)
            if BIAS >= 0:
                tl.store(gtheta + BIAS + f, (gb / s + k * b).to(gtheta.dtype.element_ty), f < FILTERS)
        tl.debug_barrier()  # gcolumns have been read, factors are there
    elif BIAS >= 0:
        if TREATMENT == _SHIFT:
            _shift(gy + BIAS, gtheta + BIAS, FILTERS, PADDED)
        else:
            for start in range(0, FILTERS, ROWS):
                f = start + tl.arange(0, ROWS)
                tl.store(gtheta + BIAS + f, tl.load(gy + BIAS + f, f < FILTERS, 0.0), f < FILTERS)
    for first in range(0, FAN_IN, COLS):
        i = first + tl.arange(0, COLS)
        found = tl.zeros((COLS,), tl.float32)
        for start in range(0, FILTERS, ROWS):
            f = start + tl.arange(0, ROWS)
            inside = (f[:, None] < FILTERS) & (i[None, :] < FAN_IN)
            w, r, u = _scaled(theta + WEIGHT, columns, f, i, inside, FAN_IN, BLOCK)
            at = WEIGHT + f[:, None] * FAN_IN + i[None, :]
            g = tl.load(gy + at, inside, 0.0).to(tl.float32)
            if TREATMENT == _SCALE:
                s = _divisor(tl.load(scales + f, f < FILTERS, 1.0))
                k = tl.load(factors + f, f < FILTERS, 0.0)
                g = g / s[:, None] + k[:, None] * u
            if BLOCK > 0:
                found += tl.sum(tl.where(inside, g * w, 0.0), 0)
                g = g * r[None, :]
            tl.store(gtheta + at, g.to(gtheta.dtype.element_ty), inside)
        if BLOCK > 0:
            tl.store(gcolumns + i, found, i < FAN_IN)


@triton.jit
def gauge_backward_kernel(gy, theta, scales, gtheta, scratch, gy_network, network, WEIGHTS: tl.constexpr,
                          TOTAL: tl.constexpr, LAYERS: tl.constexpr, WIDEST: tl.constexpr, SCRATCH: tl.constexpr,
                          TABLE: tl.constexpr):  # fmt: skip
    """One network: gy, theta [WEIGHTS], scales [TOTAL] -> gtheta [WEIGHTS]. TABLE has the last layer first."""
    b = tl.program_id(0).to(tl.int64)
    gy += b * gy_network
    theta += b * network
    scales += b * TOTAL
    gtheta += b * WEIGHTS
    scratch += b * SCRATCH
    for l in tl.static_range(LAYERS):
        _backward(gy, theta, scales + TABLE[l][5], scales + TABLE[l][6], gtheta, scratch, scratch + WIDEST,
                  TABLE[l][0], TABLE[l][1], TABLE[l][2], TABLE[l][3], TABLE[l][4], TABLE[l][7], TABLE[l][11],
                  TABLE[l][8], TABLE[l][9], TABLE[l][10], TABLE[l][12])  # fmt: skip
        tl.debug_barrier()  # the layer before reads gcolumns in other threads


def _table(rows: Sequence[GaugeRow]) -> tuple[tuple[int, ...], ...]:
    """A layer as the kernels take it: a GaugeRow, where its and the previous layer's scales start, columns for each of
    the latter, tile, filters as a power of two, columns of the next layer for each filter, and their tile.
    """
    table, own = [], 0
    for at, row in enumerate(rows):
        before = rows[at - 1] if at else None
        scaled = before is not None and before.treatment == SCALE
        columns = min(power_of_two(row.fan_in), MOST_COLUMNS)
        height = min(power_of_two(row.filters, 1), max(1, TILE // columns), MOST_FILTERS)
        following = rows[at + 1].fan_in // row.filters if row.treatment == SCALE else 1
        table.append(
            (
                *row, own, own - before.filters if before else 0, row.fan_in // before.filters if scaled else 0,
                height, columns, power_of_two(row.filters), following,
                min(power_of_two(following, 1), max(1, TILE // height)),
            )
        )  # fmt: skip
        own += row.filters
    return tuple(table)


def _warps() -> int:
    return 4 if is_amd() else 8  # a warp has 64 lanes there


def gauge(theta: Tensor, rows: Sequence[GaugeRow]) -> tuple[Tensor, Tensor]:
    """theta [B,P] -> fixed [B,P] in its dtype, scales [B,F] float32."""
    networks, weights = theta.shape
    total = sum(row.filters for row in rows)
    fixed = torch.empty(theta.shape, dtype=theta.dtype, device=theta.device)
    scales = torch.empty((networks, total), dtype=torch.float32, device=theta.device)
    if networks and weights:
        theta = unit_columns(theta)
        gauge_kernel[(networks,)](
            theta, fixed, scales, theta.stride(0), WEIGHTS=weights, TOTAL=total, LAYERS=len(rows), TABLE=_table(rows),
            num_warps=_warps(),
        )  # fmt: skip
    return fixed, scales


def gauge_backward(gy: Tensor, theta: Tensor, scales: Tensor, rows: Sequence[GaugeRow]) -> Tensor:
    """gy [B,P], theta, scales -> gtheta [B,P] in theta's dtype."""
    networks, weights = theta.shape
    gtheta = torch.empty(theta.shape, dtype=theta.dtype, device=theta.device)
    if networks and weights:
        gy, theta, scales = unit_columns(gy), unit_columns(theta), scales.contiguous()
        widest, most = max(row.fan_in for row in rows), max(row.filters for row in rows)
        scratch = torch.empty((networks, widest + most), dtype=torch.float32, device=theta.device)
        gauge_backward_kernel[(networks,)](
            gy, theta, scales, gtheta, scratch, gy.stride(0), theta.stride(0), WEIGHTS=weights, TOTAL=scales.shape[1],
            LAYERS=len(rows), WIDEST=widest, SCRATCH=widest + most, TABLE=_table(rows)[::-1], num_warps=_warps(),
        )  # fmt: skip
    return gtheta
