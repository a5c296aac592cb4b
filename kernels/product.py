"""One batched product with an epilogue: every product of backward, and layers between two wide widths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperfast.plan import IDENTITY, Activation

from .common import TRITON_TYPES, activate, dot_precision, power_of_two, slope


@dataclass(frozen=True)
class ProductConfig:
    """Tile of product_kernel: m x n outputs, k at a time. Speed not measured.

    Strict float32 has no tensor cores: with 4 warps ptxas spills 676 bytes on sm_90, and with 8 warps in two
    stages still 4 to 8 bytes on some targets.
    """

    m: int
    n: int
    k: int
    num_warps: int
    num_stages: int

    @classmethod
    def for_shape(cls, m: int, n: int, k: int, dot: torch.dtype) -> ProductConfig:
        warps, stages = (8, 1) if dot == torch.float32 else (4, 2)
        return cls(min(64, power_of_two(m)), min(64, power_of_two(n)), min(32, power_of_two(k)), warps, stages)


@triton.jit
def product_kernel(
    a, b, bias, gate, c, sums, M, N, K, BATCH,
    a_batch, a_m, a_k, b_batch, b_k, b_n, bias_batch, gate_batch, gate_m, c_batch, c_m, c_n, sums_batch,
    A_ACT: tl.constexpr, A_PARAM: tl.constexpr, B_ACT: tl.constexpr, B_PARAM: tl.constexpr,
    HAS_BIAS: tl.constexpr, OUT_ACT: tl.constexpr, OUT_PARAM: tl.constexpr, GATE: tl.constexpr,
    GATE_ACT: tl.constexpr, GATE_PARAM: tl.constexpr, SUMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """c[batch] = out_act(a_act(a[batch]) @ b_act(b[batch]) + bias) * gate_act'(gate): a BM x BN tile a program.

    a [M,K], b [K,N], c [M,N], any strides. BATCH entries are summed into one c, in order (1: none).
    SUMS: also sums[batch, m] = sum_k a[m, k], by the programs of the first column of tiles. Products of 2*M*N*K FLOPs
    per batch entry; a is read N/BN times and b M/BM times, mostly from L2.
    """
    tiles_n = tl.cdiv(N, BN)
    tiles = tl.cdiv(M, BM) * tiles_n
    entry = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    m = ((tile // tiles_n) * BM + tl.arange(0, BM)).to(tl.int64)
    n = ((tile % tiles_n) * BN + tl.arange(0, BN)).to(tl.int64)
    acc = tl.zeros((BM, BN), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    for index in range(0, BATCH):
        a_at = a + (entry + index) * a_batch + m[:, None] * a_m
        b_at = b + (entry + index) * b_batch + n[None, :] * b_n
        for start in range(0, K, BK):
            k = (start + tl.arange(0, BK)).to(tl.int64)
            a_tile = tl.load(a_at + k[None, :] * a_k, (m[:, None] < M) & (k[None, :] < K), 0.0)
            b_inside = (k[:, None] < K) & (n[None, :] < N)
            b_tile = tl.load(b_at + k[:, None] * b_k, b_inside, 0.0)
            if A_ACT != 0:
                a_tile = activate(a_tile.to(tl.float32), A_ACT, A_PARAM)
            if B_ACT != 0:
                b_tile = activate(b_tile.to(tl.float32), B_ACT, B_PARAM)
            if SUMS:
                total += tl.sum(a_tile.to(tl.float32), 1)
            acc = tl.dot(a_tile.to(DOT), b_tile.to(DOT), acc, input_precision=PRECISION)
    if HAS_BIAS:
        acc += tl.load(bias + entry * bias_batch + n, n < N, 0.0).to(tl.float32)[None, :]
    acc = activate(acc, OUT_ACT, OUT_PARAM)
    inside = (m[:, None] < M) & (n[None, :] < N)
    if GATE:
        z = tl.load(gate + entry * gate_batch + m[:, None] * gate_m + n[None, :], inside, 0.0).to(tl.float32)
        acc *= slope(z, GATE_ACT, GATE_PARAM)
    tl.store(c + entry * c_batch + m[:, None] * c_m + n[None, :] * c_n, acc.to(c.dtype.element_ty), inside)
    if SUMS:
        first = (tile % tiles_n) == 0
        tl.store(sums + entry * sums_batch + m, total.to(sums.dtype.element_ty), (m < M) & first)


@dataclass(frozen=True)
class Operand:
    """A batch of matrices in memory: pointer and strides of batch, row and column."""

    tensor: Tensor
    strides: tuple[int, int, int]

    @property
    def T(self) -> Operand:
        batch, row, column = self.strides
        return Operand(self.tensor, (batch, column, row))


def operand(t: Tensor) -> Operand:
    """[B,M,N], or [M,N] for every entry of the batch."""
    return Operand(t, (0, *t.stride()) if t.dim() == 2 else tuple(t.stride()))


def product(
    a: Operand,
    b: Operand,
    c: Operand,
    shape: tuple[int, int, int, int],
    dot: torch.dtype,
    *,
    a_act: Activation = IDENTITY,
    b_act: Activation = IDENTITY,
    bias: tuple[Tensor, int] | None = None,
    out_act: Activation = IDENTITY,
    gate: tuple[Tensor, Activation] | None = None,
    sums: tuple[Tensor, int] | None = None,
    reduce: bool = False,
) -> None:
    """Launches product_kernel; shape (batch, M, N, K). bias and sums: a tensor and its batch stride."""
    batch, m, n, k = shape
    config = ProductConfig.for_shape(m, n, k, dot)
    programs = (1 if reduce else batch) * triton.cdiv(m, config.m) * triton.cdiv(n, config.n)
    if programs == 0:
        return
    z, gate_act = gate if gate is not None else (c.tensor, IDENTITY)
    bias_tensor, bias_stride = bias if bias is not None else (c.tensor, 0)
    sums_tensor, sums_stride = sums if sums is not None else (c.tensor, 0)
    product_kernel[(programs,)](
        a.tensor, b.tensor, bias_tensor, z, c.tensor, sums_tensor, m, n, k, batch if reduce else 1,
        *a.strides, *b.strides, bias_stride, *(z.stride()[:2] if gate is not None else (0, 0)), *c.strides, sums_stride,
        A_ACT=a_act.code, A_PARAM=a_act.parameter, B_ACT=b_act.code, B_PARAM=b_act.parameter,
        HAS_BIAS=bias is not None, OUT_ACT=out_act.code, OUT_PARAM=out_act.parameter, GATE=gate is not None,
        GATE_ACT=gate_act.code, GATE_PARAM=gate_act.parameter, SUMS=sums is not None, BM=config.m, BN=config.n, BK=config.k, DOT=TRITON_TYPES[dot],
        PRECISION=dot_precision(dot), num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
