"""Convolution kernels assembled from generated tiles: all kernels of a model in one launch, and their gradients.

Forward, one program for 64 tiles and one input slice i: a = z W_i^T + B_i stays on chip, and K = a W_out^T + B_out is
stored straight into [out, in, kh, kw], in runs of kh * kw values that programs of the neighbouring slices continue
while the lines are in L2. Unlike on a CPU the layers are not folded: a launch would have to come first. WRN 40-2 (966
tiles, Z = d = 64), float32: 0.41 GFLOP (0.30 folded), 8.9 MB written, 0.25 MB of embeddings read once for each of the 16
slices, from L2.

Backward, by the fold V[i] = W_out W_i (csrc/tiled_conv.h): a product for V; sums over (o, q) to the embeddings, for
every slice; sums over tiles to V, in a few parts; one product each to W_out and W_i. 0.63 GFLOP; the gradients of the
kernels (8.9 MB) are read twice, once contiguous copies of them have been made; 6.4 MB of partial sums are written and
read, so that nothing is added in an order that changes. Speed not measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .common import TRITON_TYPES, dot_precision, dot_type, power_of_two
from .product import Operand, operand, product

# Parts of the sums over tiles: with 3 blocks of rows and 16 slices of WRN, a program for each multiprocessor of a large GPU.
PARTS = 4


@dataclass(frozen=True)
class TiledConvConfig:
    """Tiles of the products: t tiles, m of (o, q), h hidden and z embedding elements at a time. Speed not measured.

    Strict float32 has no tensor cores: with 64 tiles and 64 elements ptxas spills 240 bytes of the forward on sm_80 and
    4552 of the fold's gradient; TF32 spills 8 bytes with 32 of each. Past 64 hidden or embedding elements blocks are of
    32: of 64 ptxas spills 8 to 24 bytes on sm_90 and sm_100.
    """

    t: int
    m: int
    h: int
    z: int
    num_warps: int
    num_stages: int

    @classmethod
    def for_shape(cls, tiles: int, rows: int, hidden: int, embedding: int, dot: torch.dtype) -> TiledConvConfig:
        strict = dot_precision(dot) == "ieee" and dot == torch.float32
        t, z = 32 if strict else 64, 32 if strict or embedding > 64 else 64
        h = 32 if dot == torch.float32 and hidden > 64 else 64
        warps, stages = (8, 1) if dot == torch.float32 else (4, 2)
        return cls(
            min(t, power_of_two(tiles)), min(64, power_of_two(rows)), min(h, power_of_two(hidden)),
            min(z, power_of_two(embedding)), warps, stages,
        )  # fmt: skip


@triton.jit
def _hidden(z, weight_in, bias_in, t, i, h, TILES, D: tl.constexpr, Z: tl.constexpr, BT: tl.constexpr,
            BH: tl.constexpr, BZ: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """a[t, i, h] [BT,BH], of the products' type."""
    a = tl.zeros((BT, BH), tl.float32)
    for start in range(0, Z, BZ):
        e = start + tl.arange(0, BZ)
        zt = tl.load(z + t[:, None] * Z + e[None, :], (t[:, None] < TILES) & (e[None, :] < Z), 0.0)
        w = tl.load(weight_in + (i * D + h[None, :]) * Z + e[:, None], (h[None, :] < D) & (e[:, None] < Z), 0.0)
        a = tl.dot(zt.to(DOT), w.to(DOT), a, input_precision=PRECISION)
    a += tl.load(bias_in + i * D + h, h < D, 0.0).to(tl.float32)[None, :]
    return a.to(DOT)


@triton.jit
def assemble_kernel(
    z, table, weight_in, bias_in, weight_out, bias_out, kernels, squares, TILES,
    SLICES: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr, Z: tl.constexpr,
    SQUARES: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr, BH: tl.constexpr, BZ: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Slice i of BT tiles: z [TILES,Z] -> kernels at table [TILES,2] (where a tile starts; how far its next o lies).

    squares [TILES,SLICES]: sums of squares. With D > BH, a is computed again for every BM rows.
    """
    i = tl.program_id(0) % SLICES
    t = (tl.program_id(0) // SLICES).to(tl.int64) * BT + tl.arange(0, BT)
    start = tl.load(table + 2 * t, t < TILES, 0) + i * TAPS
    step = tl.load(table + 2 * t + 1, t < TILES, 0)
    total = tl.zeros((BT,), tl.float32)
    if D <= BH:
        once = _hidden(z, weight_in, bias_in, t, i, tl.arange(0, BH), TILES, D, Z, BT, BH, BZ, DOT, PRECISION)
    for first in range(0, ROWS, BM):
        m = first + tl.arange(0, BM)
        acc = tl.zeros((BT, BM), tl.float32)
        for begin in range(0, D, BH):
            h = begin + tl.arange(0, BH)
            w = tl.load(weight_out + m[None, :] * D + h[:, None], (m[None, :] < ROWS) & (h[:, None] < D), 0.0)
            if D <= BH:
                acc = tl.dot(once, w.to(DOT), acc, input_precision=PRECISION)
            else:
                a = _hidden(z, weight_in, bias_in, t, i, h, TILES, D, Z, BT, BH, BZ, DOT, PRECISION)
                acc = tl.dot(a, w.to(DOT), acc, input_precision=PRECISION)
        acc += tl.load(bias_out + m, m < ROWS, 0.0).to(tl.float32)[None, :]
        inside = (t[:, None] < TILES) & (m[None, :] < ROWS)
        at = start[:, None] + (m // TAPS)[None, :] * step[:, None] + (m % TAPS)[None, :]
        tl.store(kernels + at, acc.to(kernels.dtype.element_ty), inside)
        if SQUARES:
            total += tl.sum(tl.where(inside, acc * acc, 0.0), 1)
    if SQUARES:
        tl.store(squares + t * SLICES + i, total, t < TILES)


@triton.jit
def embedding_gradient_kernel(
    grad, fold, table, gz, TILES, SLICES: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, Z: tl.constexpr,
    BT: tl.constexpr, BM: tl.constexpr, BZ: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gz[i, t, z] = sum over (o, q) of grad[t, o, i, q] V[i, (o, q), z]: BT tiles, one slice, BZ elements.

    grad as kernels of assemble_kernel; fold [SLICES,ROWS,Z]; gz [SLICES,TILES,Z] float32.
    """
    Z_BLOCKS: tl.constexpr = (Z + BZ - 1) // BZ
    e = tl.program_id(0) % Z_BLOCKS * BZ + tl.arange(0, BZ)
    i = tl.program_id(0) // Z_BLOCKS % SLICES
    t = (tl.program_id(0) // Z_BLOCKS // SLICES).to(tl.int64) * BT + tl.arange(0, BT)
    start = tl.load(table + 2 * t, t < TILES, 0) + i * TAPS
    step = tl.load(table + 2 * t + 1, t < TILES, 0)
    acc = tl.zeros((BT, BZ), tl.float32)
    for first in range(0, ROWS, BM):
        m = first + tl.arange(0, BM)
        at = start[:, None] + (m // TAPS)[None, :] * step[:, None] + (m % TAPS)[None, :]
        g = tl.load(grad + at, (t[:, None] < TILES) & (m[None, :] < ROWS), 0.0)
        v = tl.load(fold + (i * ROWS + m[:, None]) * Z + e[None, :], (m[:, None] < ROWS) & (e[None, :] < Z), 0.0)
        acc = tl.dot(g.to(DOT), v.to(DOT), acc, input_precision=PRECISION)
    to = gz + (i * TILES + t[:, None]) * Z + e[None, :]
    tl.store(to, acc, (t[:, None] < TILES) & (e[None, :] < Z))


@triton.jit
def fold_gradient_kernel(
    grad, z, table, gfold, TILES, SPAN, SLICES: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
    Z: tl.constexpr, WIDTH: tl.constexpr, BT: tl.constexpr, BM: tl.constexpr, BZ: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gfold[part, (o, q), i, z] = sum over SPAN tiles of grad[t, o, i, q] z[t, z]: BM rows, one slice, BZ elements.

    gfold [PARTS,ROWS,SLICES,WIDTH] float32: in column Z the sum of grad, for the biases; what is behind stays 0.
    """
    Z_BLOCKS: tl.constexpr = (Z + BZ - 1) // BZ
    M_BLOCKS: tl.constexpr = (ROWS + BM - 1) // BM
    block = tl.program_id(0) % Z_BLOCKS
    e = block * BZ + tl.arange(0, BZ)
    m = tl.program_id(0) // Z_BLOCKS % M_BLOCKS * BM + tl.arange(0, BM)
    i = tl.program_id(0) // Z_BLOCKS // M_BLOCKS % SLICES
    part = (tl.program_id(0) // Z_BLOCKS // M_BLOCKS // SLICES).to(tl.int64)
    acc = tl.zeros((BM, BZ), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for begin in range(0, SPAN, BT):
        t = part * SPAN + begin + tl.arange(0, BT)
        own = (begin + tl.arange(0, BT) < SPAN) & (t < TILES)
        start = tl.load(table + 2 * t, own, 0) + i * TAPS
        step = tl.load(table + 2 * t + 1, own, 0)
        at = start[None, :] + (m // TAPS)[:, None] * step[None, :] + (m % TAPS)[:, None]
        g = tl.load(grad + at, own[None, :] & (m[:, None] < ROWS), 0.0)
        zt = tl.load(z + t[:, None] * Z + e[None, :], own[:, None] & (e[None, :] < Z), 0.0)
        acc = tl.dot(g.to(DOT), zt.to(DOT), acc, input_precision=PRECISION)
        total += tl.sum(g.to(tl.float32), 1)
    row = gfold + ((part * ROWS + m) * SLICES + i) * WIDTH
    tl.store(row[:, None] + e[None, :], acc, (m[:, None] < ROWS) & (e[None, :] < Z))
    tl.store(row + Z, total, (m < ROWS) & (block == 0))


@lru_cache(maxsize=64)
def _table(grids: tuple[tuple[int, int], ...], n_out: int, slice_size: int, device: torch.device) -> Tensor:
    """[tiles,2] int64: where a tile starts among all kernels, and how far its next o lies. Made once for a model."""
    rows, first = [], 0
    for tile_rows, tile_cols in grids:
        step = tile_rows * slice_size
        rows += [
            (first + c * n_out * step + r * slice_size, step) for r in range(tile_rows) for c in range(tile_cols)
        ]  # fmt: skip
        first += tile_cols * n_out * step
    return torch.tensor(rows, dtype=torch.int64, device=device).view(-1, 2)


class _Call:
    """What both directions need: contiguous tensors, sizes, the table.

    Weights of another type than the embeddings are copied to float32: they are few, and no kernel is of mixed types
    (which ptxas would spill 8 bytes of).
    """

    def __init__(self, zs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        self.data = zs[0].dtype if zs else weights[0].dtype
        self.weights = [(w if w.dtype == self.data else w.float()).contiguous() for w in weights]
        self.n_in, self.hidden, self.embedding = weights[0].shape
        self.n_out, kh, kw, _ = weights[2].shape
        self.taps, self.rows = kh * kw, self.n_out * kh * kw
        self.grids = tuple((z.shape[0], z.shape[1]) for z in zs)
        self.tiles = sum(math.prod(grid) for grid in self.grids)
        self.elements = self.tiles * self.n_in * self.rows
        self.device = weights[0].device
        if self.elements:
            self.z = torch.cat([z.reshape(-1, self.embedding) for z in zs])
            self.table = _table(self.grids, self.n_out, self.n_in * self.taps, self.device)

    def config(self, dot: torch.dtype) -> tuple[TiledConvConfig, dict]:
        """The tiles, and the arguments that all kernels take."""
        c = TiledConvConfig.for_shape(self.tiles, self.rows, self.hidden, self.embedding, dot)
        shared = {
            "SLICES": self.n_in, "TAPS": self.taps, "ROWS": self.rows, "Z": self.embedding, "BT": c.t, "BM": c.m,
            "BZ": c.z, "DOT": TRITON_TYPES[dot], "PRECISION": dot_precision(dot), "num_warps": c.num_warps,
            "num_stages": c.num_stages,
        }  # fmt: skip
        return c, shared


def assemble(zs: Sequence[Tensor], weights: Sequence[Tensor], penalty: bool) -> tuple[Tensor, Tensor]:
    """zs, each [rows,cols,Z], weights -> all kernels [elements] in zs' dtype, penalty [] float32 ([0]: not wanted)."""
    call = _Call(zs, weights)
    kernels = torch.empty(call.elements, dtype=call.data, device=call.device)
    squares = torch.zeros(
        (call.tiles, call.n_in) if penalty and call.elements else 0, dtype=torch.float32, device=call.device
    )
    if call.elements:
        c, shared = call.config(dot_type(call.data, call.weights[0].dtype))
        assemble_kernel[(call.n_in * triton.cdiv(call.tiles, c.t),)](
            call.z, call.table, *call.weights, kernels, squares, call.tiles, D=call.hidden, SQUARES=penalty, BH=c.h,
            **shared,
        )  # fmt: skip
    return kernels, squares.sum() if penalty else squares


def assemble_backward(
    grads: Sequence[Tensor], gpenalty: Tensor, kernels: Sequence[Tensor], zs: Sequence[Tensor],
    weights: Sequence[Tensor], want_zs: bool, want_weights: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of zs and of the four weights, in their dtypes; [0] where not wanted. See hyperfast/ops/tiled_conv.py."""
    call = _Call(zs, weights)
    found = [torch.zeros(t.shape if want else 0, dtype=t.dtype, device=t.device)
             for t, want in zip([*zs, *weights], [want_zs] * len(zs) + [want_weights] * 4, strict=True)]  # fmt: skip
    if not call.elements:
        return found
    grad = _flat(grads, gpenalty, kernels, call)
    if want_zs:
        own = _embedding_gradient(call, grad).to(call.data).split([math.prod(grid) for grid in call.grids])
        found[: len(zs)] = [g.reshape(z.shape).clone() for g, z in zip(own, zs, strict=True)]
    if want_weights:
        found[len(zs) :] = _weight_gradients(call, grad, found[len(zs) :])
    return found


def _flat(grads: Sequence[Tensor], gpenalty: Tensor, kernels: Sequence[Tensor], call: _Call) -> Tensor:
    """The gradients of all kernels, one after the other, with what the penalty adds to them."""
    sizes = [math.prod(grid) * call.n_in * call.rows for grid in call.grids]
    flat = torch.cat([g.reshape(-1) if g.numel() == n else g.new_zeros(n, dtype=call.data)
                      for g, n in zip(grads, sizes, strict=True)])  # fmt: skip
    if gpenalty.numel():
        flat = flat.float() + 2 * gpenalty * torch.cat([k.reshape(-1) for k in kernels])
    return flat


def _embedding_gradient(call: _Call, grad: Tensor) -> Tensor:
    """[tiles,Z] float32."""
    dot = dot_type(grad.dtype, call.weights[0].dtype)
    fold = torch.empty((call.n_in, call.rows, call.embedding), dtype=dot, device=call.device)
    shape = call.n_in, call.rows, call.embedding, call.hidden
    layers = operand(call.weights[2].view(call.rows, call.hidden)), operand(call.weights[0])
    product(*layers, operand(fold), shape, call.weights[0].dtype)
    parts = torch.empty((call.n_in, call.tiles, call.embedding), dtype=torch.float32, device=call.device)
    c, shared = call.config(dot)
    programs = triton.cdiv(call.tiles, c.t) * call.n_in * triton.cdiv(call.embedding, c.z)
    embedding_gradient_kernel[(programs,)](grad, fold, call.table, parts, call.tiles, **shared)
    return parts.sum(0)


def _weight_gradients(call: _Call, grad: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Of weight_in, bias_in, weight_out, bias_out: shapes and dtypes of `like`."""
    c, shared = call.config(dot_type(grad.dtype, call.data))
    span = c.t * triton.cdiv(triton.cdiv(call.tiles, c.t), PARTS)
    count, used = triton.cdiv(call.tiles, span), call.embedding + 1
    width = 16 * triton.cdiv(used, 16)  # rows that begin at 64 bytes
    parts = torch.zeros((count, call.rows, call.n_in, width), dtype=torch.float32, device=call.device)
    programs = count * call.n_in * triton.cdiv(call.rows, c.m) * triton.cdiv(call.embedding, c.z)
    fold_gradient_kernel[(programs,)](grad, call.z, call.table, parts, call.tiles, span, WIDTH=width, **shared)
    gfold = parts.sum(0)
    # In float32, whatever the weights are stored in. The bias is one more column.
    weight_in, bias_in, weight_out, _ = (w.float() for w in call.weights)
    outer = operand(weight_out.view(call.rows, call.hidden))
    both = torch.empty((call.n_in, call.hidden, width), dtype=like[0].dtype, device=call.device)
    slices = Operand(gfold, (width, call.n_in * width, 1))
    product(outer.T, slices, operand(both), (call.n_in, call.hidden, width, call.rows), torch.float32)
    columns = torch.cat([weight_in.transpose(1, 2), bias_in.unsqueeze(1)], 1)
    columns = F.pad(columns, (0, 0, 0, width - used)).view(-1, call.hidden)
    gweight_out = torch.empty((call.rows, call.hidden), dtype=like[2].dtype, device=call.device)
    every = operand(gfold.view(call.rows, -1))
    shape = 1, call.hidden, call.rows, len(columns)  # the other way round gfx942 spills a scalar register
    product(operand(columns).T, every.T, operand(gweight_out).T, shape, torch.float32)
    gbias_out = gfold[..., used - 1].sum(1).to(like[3].dtype).view(like[3].shape)
    gweight_in, gbias_in = both[..., : used - 1].contiguous(), both[..., used - 1].contiguous()
    return [gweight_in, gbias_in, gweight_out.view(like[2].shape), gbias_out]
