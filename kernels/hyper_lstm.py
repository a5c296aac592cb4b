"""HyperLSTM and HyperRNN, forward: one product of all inputs, then for each step a product and one fused row kernel.

A step of n rows, counted by hand for H units, K of the hyper cell, Z elements of an embedding, float32:

    product   2 n (4H+4K) (H+K) FLOPs; reads 4 (4H+4K) (H+K) bytes of weights, 4 n (H+K) of states, writes 16 n (H+K)
    kernel    24 n Z (H+K) FLOPs and about 100 n (H+K) more; reads 32 n (H+K) bytes of products, 48 Z (H+K) of maps
              once from memory and for every further row from L2, writes 16 n (H+K) of states

H = 1000, K = 128, Z = 4, n = 128: 1.3 GFLOP, 20 MB of weights, 9 MB of everything else. Large Z (64 with H = 1800: 6.3
MB of maps for each row) is bound by L2, where products over all rows would serve better. An RNN has a quarter of all
this, and 8 n (H+K) bytes of states. Speed not measured.

The loop never waits for the device: batch_sizes live on the CPU, the seed is read by the kernel. The op replays it as
one CUDA graph (cuda_graphs.py); a caller can capture it in a graph of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import is_amd, power_of_two
from .hyper_lstm_cell import LSTM, keep_factors, layer_norm, next_state, nonlinearity, pre_activation

# Values of a tile of the embeddings' weights [rows, K]; on AMD 2048 spill 16 bytes with 16-bit weights (Triton 3.6).
# Speed not measured.
TILE, AMD_TILE = 2048, 1024
_WORDS = 2**32


# Numbers that change from step to step or call to call must not make variants of the kernel.
@triton.jit(do_not_specialize=["begin", "t", "layer", "embeddings", "last", "hyper_last"])
def hyper_lstm_kernel(
    rec, inputs, state, c_carry, hyper_c_carry, z, vectors, z_weight, z_bias, maps, h_out, c_out, hyper_h_out,
    hyper_c_out, seed,
    begin, t, layer, embeddings, forget_bias, last, scale, hyper_last, hyper_scale,
    H: tl.constexpr, K: tl.constexpr, Z: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr, NORM: tl.constexpr, HYPER_NORM: tl.constexpr, PREVIOUS: tl.constexpr, DROP: tl.constexpr,
    HYPER_DROP: tl.constexpr, GATES: tl.constexpr, CELL: tl.constexpr,
):  # fmt: skip
    """One row of a step, after its products.

    rec, inputs [n,G(H+K)] float32, G = GATES: products with [h, hyper_h] and with x. state [B,H+K]: [h, hyper_h], and
    in an LSTM c_carry [B,H], hyper_c_carry [B,K], float32: from the step before to this one. z [B,3GZ]: scratch.
    vectors to maps: Layer. The outputs' rows start at `begin`.
    """
    ln_weight, ln_bias, hyper_bias = vectors + GATES * H, vectors + (GATES + 5) * H, vectors + (GATES + 10) * H
    hyper_ln_weight, hyper_ln_bias = hyper_bias + GATES * K, hyper_bias + (GATES + 5) * K
    b = tl.program_id(0).to(tl.int64)
    out = begin.to(tl.int64) + b
    rec += b * GATES * (H + K)
    inputs += b * GATES * (H + K)
    state += b * (H + K)
    z += b * 3 * GATES * Z
    if K > 0:
        k = tl.arange(0, BLOCK_K)
        within = k < K
        before = tl.load(state + H + k, within, 0.0).to(tl.float32)
        own_rec, own_inputs = rec + GATES * H, inputs + GATES * H
        if CELL == LSTM:
            c = tl.load(hyper_c_carry + b * K + k, within, 0.0)
            i = pre_activation(own_rec, own_inputs, hyper_bias, z, maps, embeddings, k, within, 0, 4, K, 0)
            f = pre_activation(own_rec, own_inputs, hyper_bias, z, maps, embeddings, k, within, 1, 4, K, 0)
            g = pre_activation(own_rec, own_inputs, hyper_bias, z, maps, embeddings, k, within, 2, 4, K, 0)
            o = pre_activation(own_rec, own_inputs, hyper_bias, z, maps, embeddings, k, within, 3, 4, K, 0)
            i = layer_norm(i, hyper_ln_weight, hyper_ln_bias, k, within, 0, K, HYPER_NORM)
            f = layer_norm(f, hyper_ln_weight, hyper_ln_bias, k, within, 1, K, HYPER_NORM)
            g = layer_norm(g, hyper_ln_weight, hyper_ln_bias, k, within, 2, K, HYPER_NORM)
            o = layer_norm(o, hyper_ln_weight, hyper_ln_bias, k, within, 3, K, HYPER_NORM)
            keep = keep_factors(seed, b, t, layer + 1, hyper_last, hyper_scale, BLOCK_K, HYPER_DROP)
            h, c = next_state(
                i, f, g, o, c, keep, hyper_ln_weight, hyper_ln_bias, forget_bias, k, within, K, HYPER_NORM
            )
        else:
            pre = pre_activation(own_rec, own_inputs, hyper_bias, z, maps, embeddings, k, within, 0, 1, K, 0)
            h = nonlinearity(pre, CELL)
        source = before if PREVIOUS else h
        for first in range(0, 3 * GATES * Z, CHUNK):
            j = first + tl.arange(0, CHUNK)
            own = (j[:, None] < 3 * GATES * Z) & within[None, :]
            weight = tl.load(z_weight + j[:, None] * K + k[None, :], own, 0.0).to(tl.float32)
            value = tl.sum(weight * source[None, :], 1) + tl.load(z_bias + j, j < 3 * GATES * Z, 0.0)
            tl.store(z + j, value, j < 3 * GATES * Z)
        tl.debug_barrier()  # z is read, and states are overwritten, by other threads
        tl.store(state + H + k, h.to(state.dtype.element_ty), within)
        tl.store(hyper_h_out + out * K + k, h.to(hyper_h_out.dtype.element_ty), within)
        if CELL == LSTM:
            tl.store(hyper_c_carry + b * K + k, c, within)
            tl.store(hyper_c_out + out * K + k, c.to(hyper_c_out.dtype.element_ty), within)
    u = tl.arange(0, BLOCK_H)
    inside = u < H
    if CELL == LSTM:
        c = tl.load(c_carry + b * H + u, inside, 0.0)
        i = pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 0, 4, H, Z)
        i = layer_norm(i, ln_weight, ln_bias, u, inside, 0, H, NORM)
        f = pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 1, 4, H, Z)
        f = layer_norm(f, ln_weight, ln_bias, u, inside, 1, H, NORM)
        g = pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 2, 4, H, Z)
        g = layer_norm(g, ln_weight, ln_bias, u, inside, 2, H, NORM)
        o = pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 3, 4, H, Z)
        o = layer_norm(o, ln_weight, ln_bias, u, inside, 3, H, NORM)
        keep = keep_factors(seed, b, t, layer, last, scale, BLOCK_H, DROP)
        h, c = next_state(i, f, g, o, c, keep, ln_weight, ln_bias, forget_bias, u, inside, H, NORM)
        tl.debug_barrier()  # c_carry has been read by every thread
        tl.store(c_carry + b * H + u, c, inside)
        tl.store(c_out + out * H + u, c.to(c_out.dtype.element_ty), inside)
    else:
        h = nonlinearity(pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 0, 1, H, Z), CELL)
    tl.store(state + u, h.to(state.dtype.element_ty), inside)
    tl.store(h_out + out * H + u, h.to(h_out.dtype.element_ty), inside)


# ---- a layer as the kernels take it -----------------------------------------------------------------


class Layer(NamedTuple):
    """Weights stacked for the kernels; products' operands in `operand`, what is added or multiplied once in float32."""

    operand: torch.dtype
    recurrent: Tensor
    """[GH+GK,H+K] of G gates: [[W_h, 0], [the hyper cell's for h, and for hyper_h]]."""
    inputs: Tensor
    """[GH+GK,I]"""
    vectors: Tensor
    """[(G+10)(H+K)] float32: bias [GH], layer norm's weights and shifts [5H]; those of the hyper cell. One tensor,
    because a kernel of many addresses runs out of scalar registers on AMD."""
    z_weight: Tensor
    """[3GZ,K], of h, x, b; z_bias [3GZ], zero for b."""
    z_bias: Tensor
    maps: Tensor
    """[3G,Z,H], of h, x, b."""


class Sizes(NamedTuple):
    """Compile-time arguments of both kernels."""

    H: int
    K: int
    Z: int
    BLOCK_H: int
    BLOCK_K: int
    CHUNK: int
    NORM: bool
    HYPER_NORM: bool
    PREVIOUS: bool
    DROP: bool
    HYPER_DROP: bool
    GATES: int
    CELL: int


def stacked(tensors: Sequence[Tensor]) -> Layer:
    """The layer of the 23 tensors, of which absent ones are empty."""
    x, h, weight_ih, weight_hh = tensors[0], tensors[1], tensors[5], tensors[6]
    operand = weight_ih.dtype if weight_ih.dtype == x.dtype and _has_mixed_product(x) else torch.float32
    units, k, gate_rows = h.shape[1], tensors[3].shape[1], weight_hh.shape[0]
    ih, hh = weight_ih.to(operand), weight_hh.to(operand)
    z_weight = z_bias = maps = ih.new_empty(0)
    if k:
        hyper_ih, hyper_hh = tensors[10].to(operand), tensors[11].to(operand)
        recurrent = ih.new_zeros((gate_rows + hyper_hh.shape[0], units + k))
        recurrent[:gate_rows, :units] = hh
        recurrent[gate_rows:, :units] = hyper_ih[:, :units]
        recurrent[gate_rows:, units:] = hyper_hh
        ih = torch.cat([ih, hyper_ih[:, units:]])
        z_weight = torch.cat(list(tensors[15:18])).flatten(0, 1)
        z_bias = torch.cat([tensors[18], tensors[19], torch.zeros_like(tensors[19])]).flatten().float()
        maps = torch.cat(list(tensors[20:23])).mT.contiguous()
    else:
        recurrent = hh.contiguous()
    parts = []
    for size, (bias, *norm) in ((units, tensors[7:10]), (k, tensors[12:15])):
        parts += [bias, *(t.flatten() if t.numel() else ih.new_zeros(5 * size) for t in norm)]
    vectors = torch.cat([t.float() for t in parts])
    return Layer(operand, recurrent, ih.contiguous(), vectors, z_weight, z_bias, maps)


def sizes_of(tensors: Sequence[Tensor], seed: Tensor, ints: Sequence[int], floats: Sequence[float]) -> Sizes:
    """Sizes and switches of a call."""
    h, k = tensors[1].shape[1], tensors[3].shape[1]
    block_k, z, gates = power_of_two(k), tensors[15].shape[1] if k else 0, 4 if ints[2] == LSTM.value else 1
    drops = [seed.numel() > 0 and round(p * _WORDS) > 0 for p in floats[1:3]]
    chunk = max(1, min(power_of_two(3 * gates * z), (AMD_TILE if is_amd() else TILE) // block_k))
    norms = tensors[8].numel() > 0, tensors[13].numel() > 0
    drops[1] = drops[1] and k > 0
    return Sizes(h, k, z, power_of_two(h), block_k, chunk, *norms, bool(ints[0]), *drops, gates, ints[2])


def dropout_numbers(floats: Sequence[float]) -> tuple[float, ...]:
    """Largest word that is dropped and factor of what is kept, of the main and of the hyper cell."""
    return tuple(n for p in floats[1:3] for n in (max(round(p * _WORDS) - 1, 0), 1 / (1 - p) if p < 1 else 1.0))


def warps(sizes: Sizes, most: int = 16) -> int:
    """Four values of a vector for each thread, as far as `most` warps of 32 lanes go."""
    wanted = max(4, min(most, max(sizes.BLOCK_H, sizes.BLOCK_K) // 128))
    return wanted // 2 if is_amd() else wanted  # a warp has 64 lanes there


def _has_mixed_product(x: Tensor) -> bool:
    """Whether 16-bit operands can give a float32 product: on CUDA; on a CPU under the interpreter we emulate it."""
    return x.device.type == "cpu" or (x.device.type == "cuda" and torch.version.hip is None)


def product(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a @ b in float32, whatever the operands are."""
    if out is None:
        out = torch.empty((a.shape[0], b.shape[1]), dtype=torch.float32, device=a.device)
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.device.type == "cuda":
        return torch.ops.aten.mm.dtype_out(a, b, torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)


def hyper_lstm(
    tensors: Sequence[Tensor],
    steps: Sequence[int],
    seed: Tensor,
    ints: Sequence[int],
    floats: Sequence[float],
    save: bool,
) -> tuple[Tensor, ...]:
    """h, c [R,H], hyper_h, hyper_c [R,K] in x's dtype, and with `save` the products with states, [R,GH+GK] float32.

    steps: rows of each. The other arguments are the raw op's (hyperfast/ops/hyper_lstm.py).
    """
    tensors = [t.contiguous() for t in tensors]
    x, *states = tensors[:5]
    layer, sizes = stacked(tensors), sizes_of(tensors, seed, ints, floats)
    rows, batch, width = x.shape[0], states[0].shape[0], sizes.GATES * (sizes.H + sizes.K)
    outputs = [torch.empty((rows, t.shape[1]), dtype=x.dtype, device=x.device) for t in states]
    saved = torch.empty((rows, width) if save else (0, 0), dtype=torch.float32, device=x.device)
    if not rows:
        return *outputs, saved
    inputs = product(x.to(layer.operand), layer.inputs.mT)
    state = torch.cat([states[0], states[2]], 1).to(layer.operand)
    carries = [t.to(torch.float32, copy=True) for t in (states[1], states[3])]
    scratch = torch.empty((batch, 3 * sizes.GATES * sizes.Z), dtype=torch.float32, device=x.device)
    products = torch.empty((0 if save else batch, width), dtype=torch.float32, device=x.device)
    dropped, chosen = dropout_numbers(floats), sizes._asdict() | {"num_warps": warps(sizes)}
    begin = 0
    for t, n in enumerate(steps):
        rec = product(state[:n], layer.recurrent.mT, saved[begin : begin + n] if save else products[:n])
        hyper_lstm_kernel[(n,)](
            rec, inputs[begin : begin + n], state, *carries, scratch, *layer[3:], *outputs, seed,
            begin, t, 2 * ints[1], sizes.Z, floats[0], *dropped, **chosen,
        )  # fmt: skip
        begin += n
    return *outputs, saved
