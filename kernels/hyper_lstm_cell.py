"""What the forward and backward row kernels of HyperLSTM and HyperRNN share: gates, layer norm, dropout's mask.

Vectors of a row lie in registers, BLOCK values of which the first N count; the others are zero.
"""

import triton
import triton.language as tl

from .common import _sigmoid, _tanh, philox_words

_EPSILON = tl.constexpr(1e-3)  # LAYER_NORM_EPSILON of hyperfast/reference/hyper_lstm.py
# Indices of CELLS of hyperfast/ops/hyper_lstm.py.
LSTM = tl.constexpr(0)
RELU_RNN = tl.constexpr(2)


@triton.jit
def pre_activation(
    rec, inputs, bias, z, maps, embeddings, u, inside, G: tl.constexpr, GATES: tl.constexpr, H: tl.constexpr,
    Z: tl.constexpr,
):  # fmt: skip
    """Gate G of d_h * (W_h h) + d_x * (W_x x) + beta + b0: rec, inputs, bias [GATES*H], z [3*GATES*Z], maps
    [3*GATES,Z,H].

    Z = 0: d = 1, beta = 0. embeddings: Z at run time, because a loop that is unrolled runs out of scalar registers on
    AMD. A map's rows are read whole, so that no sum goes from thread to thread.
    """
    product_h = tl.load(rec + G * H + u, inside, 0.0)
    product_x = tl.load(inputs + G * H + u, inside, 0.0)
    pre = tl.load(bias + G * H + u, inside, 0.0)
    if Z == 0:
        pre += product_h + product_x
    else:
        d_h = tl.zeros_like(pre)
        d_x = tl.zeros_like(pre)
        for j in range(embeddings):
            row = maps + (G * Z + j) * H + u
            d_h += tl.load(z + G * Z + j) * tl.load(row, inside, 0.0).to(tl.float32)
            d_x += tl.load(z + (GATES + G) * Z + j) * tl.load(row + GATES * Z * H, inside, 0.0).to(tl.float32)
            pre += tl.load(z + (2 * GATES + G) * Z + j) * tl.load(row + 2 * GATES * Z * H, inside, 0.0).to(tl.float32)
        pre += d_h * product_h + d_x * product_x
    return pre


@triton.jit
def normalised(x, inside, N: tl.constexpr):
    """(x - mean) / sqrt(variance + epsilon), and what it was multiplied with."""
    d = tl.where(inside, x - tl.sum(x, 0) / N, 0.0)
    r = 1.0 / tl.sqrt_rn(tl.sum(d * d, 0) / N + _EPSILON)
    return d * r, r


@triton.jit
def layer_norm(x, weight, shift, u, inside, ROW: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr):
    """Row ROW of weight and shift [5,N] applied to x [N], where NORM."""
    if NORM:
        x, _ = normalised(x, inside, N)
        x = x * tl.load(weight + ROW * N + u, inside, 0.0) + tl.load(shift + ROW * N + u, inside, 0.0)
    return x


@triton.jit
def next_state(i, f, g, o, c, keep, ln_weight, ln_bias, forget_bias, u, inside, N: tl.constexpr, NORM: tl.constexpr):
    """(h', c') from gates after their layer norm."""
    c = _sigmoid(f + forget_bias) * c + _sigmoid(i) * (_tanh(g) * keep)
    return _sigmoid(o) * _tanh(layer_norm(c, ln_weight, ln_bias, u, inside, 4, N, NORM)), c


@triton.jit
def nonlinearity(pre, CELL: tl.constexpr):
    """An RNN's next h from its pre-activation."""
    return tl.where(pre <= 0, 0.0, pre) if CELL == RELU_RNN else _tanh(pre)


@triton.jit
def keep_factors(seed, b, t, layer, last, scale, BLOCK: tl.constexpr, DROP: tl.constexpr):
    """[BLOCK]: scale where unit u of sequence b is kept at step t (its word is above `last`), else 0; without DROP 1."""
    if DROP:
        like = tl.zeros((1,), tl.int32)
        words = philox_words(tl.load(seed + like), 0, like + b, like + t, layer, BLOCK // 4).reshape(BLOCK)
        keep = tl.where(words > last.to(tl.uint32), scale, 0.0)
    else:
        keep = tl.full((BLOCK,), 1.0, tl.float32)
    return keep
