"""HyperLSTM and HyperRNN, backward: for each step, from the last, a fused row kernel and a product; then the weights.

A step of n rows, counted by hand as in hyper_lstm.py, float32:

    kernel    64 n Z H + 24 n Z K FLOPs and about 300 n (H+K) more; reads 32 n (H+K) bytes of products again, and
              maps twice; writes 16 n (H+K) bytes for the product and 32 n H for the gradients of weights; reads and
              writes 40 n (H+K) of sums for layer norm
    product   2 n (4H+4K) (H+K) FLOPs; reads 4 (4H+4K) (H+K) bytes of weights and 16 n (H+K)

After the loop, over all rows at once: products with x, with embeddings and embeddings' weights, and the gradients of
all weights, twice the FLOPs of forward's products. An RNN has a quarter of all this, and no sums for layer norm. Speed
not measured. As in forward, nothing waits for the device, and the op replays the loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import _sigmoid, _tanh
from .hyper_lstm import dropout_numbers, product, sizes_of, stacked, warps
from .hyper_lstm_cell import LSTM, RELU_RNN, keep_factors, nonlinearity, normalised, pre_activation

# Values of a tile of maps [rows, H].
TILE = 2048
# Sixteen warps have 128 registers a thread, and spill.
MOST_WARPS = 8


@triton.jit
def _gate(pre, weight, shift, u, inside, ROW: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr):
    """(x_hat, 1 / deviation, y) of layer norm; y = pre without NORM."""
    r = 1.0
    y = pre
    if NORM:
        pre, r = normalised(pre, inside, N)
        y = pre * tl.load(weight + ROW * N + u, inside, 0.0) + tl.load(shift + ROW * N + u, inside, 0.0)
    return pre, r, y


@triton.jit
def _gate_backward(gy, x_hat, r, weight, partial, u, inside, ROW: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr):
    """Gradient before layer norm; adds to this row's gradients of its weights, partial [10,N]."""
    if NORM:
        own = partial + ROW * N + u
        tl.store(own, tl.load(own, inside, 0.0) + gy * x_hat, inside)
        tl.store(own + 5 * N, tl.load(own + 5 * N, inside, 0.0) + gy, inside)
        gy = gy * tl.load(weight + ROW * N + u, inside, 0.0)
        gy = tl.where(inside, r * (gy - tl.sum(gy, 0) / N - x_hat * (tl.sum(gy * x_hat, 0) / N)), 0.0)
    return gy


@triton.jit
def _cell_backward(
    i, f, g, o, c, gh, gc, keep, ln_weight, ln_bias, partial, forget_bias, u, inside, N: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """Gradients of pre-activations i, f, g, o (given after bias and scales), and of c, from those of h' and c'."""
    i_hat, i_r, i = _gate(i, ln_weight, ln_bias, u, inside, 0, N, NORM)
    f_hat, f_r, f = _gate(f, ln_weight, ln_bias, u, inside, 1, N, NORM)
    g_hat, g_r, g = _gate(g, ln_weight, ln_bias, u, inside, 2, N, NORM)
    o_hat, o_r, o = _gate(o, ln_weight, ln_bias, u, inside, 3, N, NORM)
    i, f, g, o = _sigmoid(i), _sigmoid(f + forget_bias), _tanh(g), _sigmoid(o)
    c_hat, c_r, shown = _gate(f * c + i * (g * keep), ln_weight, ln_bias, u, inside, 4, N, NORM)
    shown = _tanh(shown)
    go = _gate_backward(gh * shown * o * (1.0 - o), o_hat, o_r, ln_weight, partial, u, inside, 3, N, NORM)
    gc += _gate_backward(gh * o * (1.0 - shown * shown), c_hat, c_r, ln_weight, partial, u, inside, 4, N, NORM)
    gi = _gate_backward(gc * (g * keep) * i * (1.0 - i), i_hat, i_r, ln_weight, partial, u, inside, 0, N, NORM)
    gf = _gate_backward(gc * c * f * (1.0 - f), f_hat, f_r, ln_weight, partial, u, inside, 1, N, NORM)
    gg = _gate_backward(gc * i * keep * (1.0 - g * g), g_hat, g_r, ln_weight, partial, u, inside, 2, N, NORM)
    return gi, gf, gg, go, gc * f


@triton.jit
def _nonlinearity_backward(gh, pre, CELL: tl.constexpr):
    """Gradient of an RNN's pre-activation from that of its h."""
    if CELL == RELU_RNN:
        g = tl.where(pre <= 0, 0.0, gh)
    else:
        h = nonlinearity(pre, CELL)
        g = gh * (1.0 - h * h)
    return g


@triton.jit
def _scales_backward(
    gpre, rec, inputs, z, maps, g, gz, u, inside, G: tl.constexpr, GATES: tl.constexpr, H: tl.constexpr,
    K: tl.constexpr, Z: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gate G of pre_activation: from gpre [H] those of the products, of what is added, and of z. ROWS of maps at once."""
    at = G * H + u
    if Z == 0:
        tl.store(g + at, gpre.to(g.dtype.element_ty), inside)
    else:
        gh = gpre * tl.load(rec + at, inside, 0.0)
        gx = gpre * tl.load(inputs + at, inside, 0.0)
        d_h = tl.zeros_like(gpre)
        d_x = tl.zeros_like(gpre)
        for first in range(0, Z, ROWS):
            j = first + tl.arange(0, ROWS)
            own = (j < Z)[:, None] & inside[None, :]
            place = maps + (G * Z + j)[:, None] * H + u[None, :]
            value = tl.load(place, own, 0.0).to(tl.float32)
            d_h += tl.sum(value * tl.load(z + G * Z + j, j < Z, 0.0)[:, None], 0)
            tl.store(gz + G * Z + j, tl.sum(value * gh[None, :], 1), j < Z)
            value = tl.load(place + GATES * Z * H, own, 0.0).to(tl.float32)
            d_x += tl.sum(value * tl.load(z + (GATES + G) * Z + j, j < Z, 0.0)[:, None], 0)
            tl.store(gz + (GATES + G) * Z + j, tl.sum(value * gx[None, :], 1), j < Z)
            value = tl.load(place + 2 * GATES * Z * H, own, 0.0).to(tl.float32)
            tl.store(gz + (2 * GATES + G) * Z + j, tl.sum(value * gpre[None, :], 1), j < Z)
        tl.store(g + at, (gpre * d_h).to(g.dtype.element_ty), inside)
        tl.store(g + GATES * (H + K) + at, (gpre * d_x).to(g.dtype.element_ty), inside)
        tl.store(g + GATES * (2 * H + K) + at, gpre.to(g.dtype.element_ty), inside)


@triton.jit
def _given(g, at, u, inside, HAS: tl.constexpr):
    """A gradient that may be absent."""
    return tl.load(g + at + u, inside, 0.0).to(tl.float32) if HAS else tl.zeros(u.shape, tl.float32)


@triton.jit(do_not_specialize=["begin", "before", "t", "layer", "embeddings", "last", "hyper_last"])
def hyper_lstm_backward_kernel(
    gh, gc, g_hyper_h, g_hyper_c, h_carry, carry, rec, inputs, z, c_before, hyper_c_before, vectors, z_weight, z_bias,
    maps, g, gz, partial, seed,
    begin, before, t, layer, embeddings, forget_bias, last, scale, hyper_last, hyper_scale,
    H: tl.constexpr, K: tl.constexpr, Z: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr, NORM: tl.constexpr, HYPER_NORM: tl.constexpr, PREVIOUS: tl.constexpr, DROP: tl.constexpr,
    HYPER_DROP: tl.constexpr, GATES: tl.constexpr, CELL: tl.constexpr, HAS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One row of a step, from the gradients of its states to those of its products.

    gh, gc [R,H], g_hyper_h, g_hyper_c [R,K]: of the outputs, those that HAS. Of the states between steps, float32 and
    zero for sequences that end here: h_carry [B,H+K] of [h, hyper_h] by the products; carry [B,H+2K] of an LSTM's c and
    hyper_c, and of hyper_h by the embeddings (PREVIOUS). rec, inputs [n,G(H+K)], z [n,3GZ] as in forward. c_before,
    hyper_c_before: cells of the step before, from row `before`. Written: g [R,G(H+K)], of products with states, and
    with Z > 0 in the same row of products with x, and of what is added to them, each [GH] (else they are equal); gz
    [R,3GZ]; partial [B,10H+10K]: added to, of layer norm's weights and shifts (a row owns its sum: no atomics, and a
    loop over rows would keep addresses in registers).
    """
    ln_weight, ln_bias, hyper_bias = vectors + GATES * H, vectors + (GATES + 5) * H, vectors + (GATES + 10) * H
    hyper_ln_weight, hyper_ln_bias = hyper_bias + GATES * K, hyper_bias + (GATES + 5) * K
    b = tl.program_id(0).to(tl.int64)
    r = begin.to(tl.int64) + b
    partial += b * 10 * (H + K)
    h_carry += b * (H + K)
    carry += b * (H + 2 * K)
    rec += b * GATES * (H + K)
    inputs += b * GATES * (H + K)
    z += b * 3 * GATES * Z
    gz += r * 3 * GATES * Z
    g += r * GATES * (H + K + (2 * H if Z > 0 else 0))
    u = tl.arange(0, BLOCK_H)
    inside = u < H
    if CELL == LSTM:
        i = pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 0, 4, H, Z)
        f = pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 1, 4, H, Z)
        new = pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 2, 4, H, Z)
        o = pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 3, 4, H, Z)
        keep = keep_factors(seed, b, t, layer, last, scale, BLOCK_H, DROP)
        c = tl.load(c_before + (before.to(tl.int64) + b) * H + u, inside, 0.0).to(tl.float32)
        g_h = _given(gh, r * H, u, inside, HAS[0]) + tl.load(h_carry + u, inside, 0.0)
        g_c = _given(gc, r * H, u, inside, HAS[1]) + tl.load(carry + u, inside, 0.0)
        gi, gf, gg, go, g_c = _cell_backward(
            i, f, new, o, c, g_h, g_c, keep, ln_weight, ln_bias, partial, forget_bias, u, inside, H, NORM
        )
        _scales_backward(gi, rec, inputs, z, maps, g, gz, u, inside, 0, 4, H, K, Z, ROWS)
        _scales_backward(gf, rec, inputs, z, maps, g, gz, u, inside, 1, 4, H, K, Z, ROWS)
        _scales_backward(gg, rec, inputs, z, maps, g, gz, u, inside, 2, 4, H, K, Z, ROWS)
        _scales_backward(go, rec, inputs, z, maps, g, gz, u, inside, 3, 4, H, K, Z, ROWS)
        tl.debug_barrier()  # gz is read, and carry is overwritten, by other threads
        tl.store(carry + u, g_c, inside)
    else:
        pre = pre_activation(rec, inputs, vectors, z, maps, embeddings, u, inside, 0, 1, H, Z)
        g_h = _given(gh, r * H, u, inside, HAS[0]) + tl.load(h_carry + u, inside, 0.0)
        g_pre = _nonlinearity_backward(g_h, pre, CELL)
        _scales_backward(g_pre, rec, inputs, z, maps, g, gz, u, inside, 0, 1, H, K, Z, ROWS)
        tl.debug_barrier()  # gz is read by other threads
    if K > 0:
        k = tl.arange(0, BLOCK_K)
        within = k < K
        found = tl.zeros((CHUNK, BLOCK_K), tl.float32)
        for first in range(0, 3 * GATES * Z, CHUNK):
            j = first + tl.arange(0, CHUNK)
            own = (j[:, None] < 3 * GATES * Z) & within[None, :]
            weight = tl.load(z_weight + j[:, None] * K + k[None, :], own, 0.0).to(tl.float32)
            found += weight * tl.load(gz + j, j < 3 * GATES * Z, 0.0)[:, None]
        by_z = tl.sum(found, 0)
        g_h = _given(g_hyper_h, r * K, k, within, HAS[2]) + tl.load(h_carry + H + k, within, 0.0)
        if PREVIOUS:
            g_h += tl.load(carry + H + K + k, within, 0.0)
        else:
            g_h += by_z
        rec += GATES * H
        inputs += GATES * H
        g += GATES * H
        if CELL == LSTM:
            g_c = _given(g_hyper_c, r * K, k, within, HAS[3]) + tl.load(carry + H + k, within, 0.0)
            i = pre_activation(rec, inputs, hyper_bias, z, maps, embeddings, k, within, 0, 4, K, 0)
            f = pre_activation(rec, inputs, hyper_bias, z, maps, embeddings, k, within, 1, 4, K, 0)
            new = pre_activation(rec, inputs, hyper_bias, z, maps, embeddings, k, within, 2, 4, K, 0)
            o = pre_activation(rec, inputs, hyper_bias, z, maps, embeddings, k, within, 3, 4, K, 0)
            keep = keep_factors(seed, b, t, layer + 1, hyper_last, hyper_scale, BLOCK_K, HYPER_DROP)
            c = tl.load(hyper_c_before + (before.to(tl.int64) + b) * K + k, within, 0.0).to(tl.float32)
            gi, gf, gg, go, g_c = _cell_backward(
                i, f, new, o, c, g_h, g_c, keep, hyper_ln_weight, hyper_ln_bias, partial + 10 * H, forget_bias, k,
                within, K, HYPER_NORM,
            )  # fmt: skip
            tl.store(g + k, gi.to(g.dtype.element_ty), within)
            tl.store(g + K + k, gf.to(g.dtype.element_ty), within)
            tl.store(g + 2 * K + k, gg.to(g.dtype.element_ty), within)
            tl.store(g + 3 * K + k, go.to(g.dtype.element_ty), within)
            tl.debug_barrier()  # carry has been read by every thread
            tl.store(carry + H + k, g_c, within)
        else:
            pre = pre_activation(rec, inputs, hyper_bias, z, maps, embeddings, k, within, 0, 1, K, 0)
            tl.store(g + k, _nonlinearity_backward(g_h, pre, CELL).to(g.dtype.element_ty), within)
        if PREVIOUS:
            tl.store(carry + H + K + k, by_z, within)


def _shifted(initial: Tensor, out: Tensor, steps: Sequence[int]) -> Tensor:
    """[R,...]: each row's state before its step."""
    if len(set(steps)) <= 1:
        return torch.cat([initial, out])[: out.shape[0]]
    parts, begin = [initial], 0
    for n, following in zip(steps, [*steps[1:], 0], strict=True):
        parts.append(out[begin : begin + following])
        begin += n
    return torch.cat(parts)


def hyper_lstm_backward(
    grads: Sequence[Tensor], tensors: Sequence[Tensor], outputs: Sequence[Tensor], steps: Sequence[int], seed: Tensor,
    ints: Sequence[int], floats: Sequence[float], want_x: bool, want_weights: bool,
) -> list[Tensor]:  # fmt: skip
    """Gradients of the 23 tensors, empty where absent or not wanted. Arguments: hyper_lstm's, the raw op's, steps."""
    grads, tensors = [g.contiguous() for g in grads], [t.contiguous() for t in tensors]
    h, c, hyper_h, hyper_c, saved = (t.contiguous() for t in outputs)
    x, *states = tensors[:5]
    layer, sizes = stacked(tensors), sizes_of(tensors, seed, ints, floats)
    rows, batch, (units, k, z_size), gates = x.shape[0], states[0].shape[0], sizes[:3], sizes.GATES
    width, main, low = gates * (units + k), gates * units, x.to(layer.operand)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    before = torch.cat([_shifted(states[0], h, steps), _shifted(states[2], hyper_h, steps)], 1).to(layer.operand)
    source = before[:, units:] if sizes.PREVIOUS else hyper_h.to(layer.operand)
    inputs = product(low, layer.inputs.mT)
    z = product(source, layer.z_weight.to(layer.operand).mT).add_(layer.z_bias) if k else new(rows, 0)
    g, gz = new(rows, width + (2 * main if k else 0), dtype=layer.operand), new(rows, 3 * gates * z_size)
    g_rec, g_inputs, g_pre = g[:, :width], g[:, width : width + main], g[:, width + main :]
    if not k:
        g_inputs = g_pre = g_rec
    h_carry, carry = new(batch, units + k).zero_(), new(batch, units + 2 * k).zero_()
    partial = new(batch, 10 * (units + k)).zero_()
    dropped = dropout_numbers(floats)
    chosen = sizes._asdict() | {
        "HAS": tuple(g.numel() > 0 for g in grads),
        "ROWS": max(1, min(4, TILE // sizes.BLOCK_H, triton.next_power_of_2(max(z_size, 1)))),
        "num_warps": warps(sizes, MOST_WARPS),
    }
    end = rows
    for t in reversed(range(len(steps))):
        n = steps[t]
        begin = end - n
        cells = (states[1], states[3], 0) if t == 0 else (c, hyper_c, begin - steps[t - 1])
        hyper_lstm_backward_kernel[(n,)](
            *grads, h_carry, carry, saved[begin:end], inputs[begin:end], z[begin:end], *cells[:2], *layer[3:], g, gz,
            partial, seed, begin, cells[2], t, 2 * ints[1], sizes.Z, floats[0],
            *dropped, **chosen,
        )  # fmt: skip
        product(g_rec[begin:end], layer.recurrent, h_carry[:n])
        end = begin
    found: list[Tensor | None] = [None] * 23
    found[1], found[3] = h_carry[:, :units], h_carry[:, units:]
    found[2], found[4] = carry[:, : states[1].shape[1]], carry[:, units : units + states[3].shape[1]]
    if sizes.PREVIOUS:
        found[3] = h_carry[:, units:] + carry[:, units + k :]
    if want_x:
        found[0] = product(g_inputs, layer.inputs[:main])
        if k:
            found[0] = found[0] + product(g_rec[:, main:], layer.inputs[main:])
    if want_weights:
        found[5] = product(g_inputs.mT, low)
        found[6] = product(g_rec[:, :main].mT, before[:, :units])
        found[7] = g_pre.sum(0, dtype=torch.float32)
        norms = partial.sum(0)
        found[8:10] = norms[: 10 * units].view(10, units).split(5)
        if k:
            own = g_rec[:, main:]
            states_grad = product(own.mT, before)
            found[10] = torch.cat([states_grad[:, :units], product(own.mT, low)], 1)
            found[11], found[12] = states_grad[:, units:], own.sum(0, dtype=torch.float32)
            found[13:15] = norms[10 * units :].view(10, k).split(5)
            found[15:18] = torch.mm(gz.mT, source.float()).view(-1, z_size, k).split(gates)
            found[18:20] = gz.sum(0).view(-1, z_size)[: 2 * gates].split(gates)
            every = z.view(rows, 3, gates, z_size).permute(1, 2, 0, 3)
            for part, factor in enumerate((saved[:, :main], inputs[:, :main], None)):
                scaled = g_pre.float() if factor is None else g_pre * factor
                found[20 + part] = torch.bmm(scaled.view(rows, gates, units).permute(1, 2, 0), every[part])
    return [
        t.new_empty(0) if g is None or t.shape == (0,) else _owned(g.to(t.dtype))
        for t, g in zip(tensors, found, strict=True)
    ]


def _owned(g: Tensor) -> Tensor:
    """g, or a copy where it is a part of another tensor: gradients share no memory."""
    whole = g.is_contiguous() and g.untyped_storage().nbytes() == g.numel() * g.itemsize
    return g if whole else g.clone(memory_format=torch.contiguous_format)
