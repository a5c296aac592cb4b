"""Batched MLPs: B networks, each with its own weights, read from rows of theta where they lie.

`mlp_kernel` runs a stretch of layers whose activations stay on chip: narrow widths whole, wide ones in chunks
that are produced and consumed at once. Layers between two wide widths, and the products of backward, are one
launch each of kernels/product.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperfast.plan import IDENTITY, MLP, Activation

from .common import TRITON_TYPES, activate, dot_precision, dot_type, is_amd, power_of_two, slope, unit_columns
from .product import Operand, operand, product

# ---- configurations ---------------------------------------------------------------------------------

# Widths up to this stay whole in registers; wider ones are streamed in chunks of this size. Ahead-of-time
# compilation shows no spills at 64 and spills at 256 (tests/test_triton_resources.py); speed not measured.
NARROW = 64


@dataclass(frozen=True)
class MLPConfig:
    """Rows per program and warps of mlp_kernel. Chosen so that no target spills; speed not measured."""

    block_rows: int
    num_warps: int
    num_stages: int

    @classmethod
    def for_shape(cls, rows: int, dot: torch.dtype) -> MLPConfig:
        if dot == torch.float32:
            # On NVIDIA 4 warps spill 28 bytes in TF32; on AMD, whose warps have 64 lanes, 8 spill 36.
            return cls(min(32, power_of_two(rows)), 4 if is_amd() else 8, 2)
        return cls(min(64, power_of_two(rows)), 4, 2)


# ---- forward, on chip -------------------------------------------------------------------------------


@triton.jit
def _weights(theta, O_START, K_START, OUT: tl.constexpr, IN: tl.constexpr, BO: tl.constexpr, BK: tl.constexpr,
             DOT: tl.constexpr):  # fmt: skip
    """W[O_START:+BO, K_START:+BK] of one layer, transposed to [BK, BO], zero past its edges."""
    o = O_START + tl.arange(0, BO)
    k = K_START + tl.arange(0, BK)
    inside = (o[None, :] < OUT) & (k[:, None] < IN)
    return tl.load(theta + o[None, :] * IN + k[:, None], inside, 0.0).to(DOT)


@triton.jit
def _biases(pointer, START, OUT: tl.constexpr, BO: tl.constexpr, HAS: tl.constexpr):
    """[1, BO]; zero where the layer has no bias."""
    c = tl.zeros((1, BO), tl.float32)
    if HAS:
        o = START + tl.arange(0, BO)
        c += tl.load(pointer + o, o < OUT, 0.0).to(tl.float32)[None, :]
    return c


@triton.jit
def _whole(h, weight, bias, IN: tl.constexpr, OUT: tl.constexpr, IN_PAD: tl.constexpr, OUT_PAD: tl.constexpr,
           HAS_BIAS: tl.constexpr, ACT: tl.constexpr, PARAM: tl.constexpr, DOT: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """One layer between two narrow widths: [ROWS, IN_PAD] -> [ROWS, OUT_PAD]."""
    w = _weights(weight, 0, 0, OUT, IN, OUT_PAD, IN_PAD, DOT)
    acc = tl.zeros((h.shape[0], OUT_PAD), tl.float32) + _biases(bias, 0, OUT, OUT_PAD, HAS_BIAS)
    return activate(tl.dot(h.to(DOT), w, acc, input_precision=PRECISION), ACT, PARAM)


@triton.jit
def _from_wide_input(x_at, inside, weight, bias, IN: tl.constexpr, OUT: tl.constexpr, OUT_PAD: tl.constexpr,
                     HAS_BIAS: tl.constexpr, ACT: tl.constexpr, PARAM: tl.constexpr, CHUNK: tl.constexpr,
                     DOT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The first layer on a wide input, read chunk by chunk."""
    acc = tl.zeros((inside.shape[0], OUT_PAD), tl.float32) + _biases(bias, 0, OUT, OUT_PAD, HAS_BIAS)
    for start in range(0, IN, CHUNK):
        k = start + tl.arange(0, CHUNK)
        part = tl.load(x_at + k[None, :], inside[:, None] & (k[None, :] < IN), 0.0).to(DOT)
        w = _weights(weight, 0, start, OUT, IN, OUT_PAD, CHUNK, DOT)
        acc = tl.dot(part, w, acc, input_precision=PRECISION)
    return activate(acc, ACT, PARAM)


@triton.jit
def _to_wide_output(h, y_at, inside, weight, bias, IN: tl.constexpr, OUT: tl.constexpr, IN_PAD: tl.constexpr,
                    HAS_BIAS: tl.constexpr, ACT: tl.constexpr, PARAM: tl.constexpr, CHUNK: tl.constexpr,
                    DOT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """The last layer to a wide output, written chunk by chunk."""
    for start in range(0, OUT, CHUNK):
        w = _weights(weight, start, 0, OUT, IN, CHUNK, IN_PAD, DOT)
        acc = tl.zeros((h.shape[0], CHUNK), tl.float32) + _biases(bias, start, OUT, CHUNK, HAS_BIAS)
        part = activate(tl.dot(h.to(DOT), w, acc, input_precision=PRECISION), ACT, PARAM)
        o = start + tl.arange(0, CHUNK)
        tl.store(y_at + o[None, :], part.to(y_at.dtype.element_ty), inside[:, None] & (o[None, :] < OUT))


@triton.jit
def _through_wide(h, weight, bias, next_weight, next_bias, IN: tl.constexpr, OUT: tl.constexpr, NEXT: tl.constexpr,
                  IN_PAD: tl.constexpr, NEXT_PAD: tl.constexpr, HAS_BIAS: tl.constexpr, NEXT_HAS_BIAS: tl.constexpr,
                  ACT: tl.constexpr, PARAM: tl.constexpr, NEXT_ACT: tl.constexpr, NEXT_PARAM: tl.constexpr,
                  CHUNK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Two layers through a wide width, each chunk of which is consumed as soon as it is there."""
    acc = tl.zeros((h.shape[0], NEXT_PAD), tl.float32) + _biases(next_bias, 0, NEXT, NEXT_PAD, NEXT_HAS_BIAS)
    for start in range(0, OUT, CHUNK):
        w = _weights(weight, start, 0, OUT, IN, CHUNK, IN_PAD, DOT)
        part = tl.zeros((h.shape[0], CHUNK), tl.float32) + _biases(bias, start, OUT, CHUNK, HAS_BIAS)
        part = activate(tl.dot(h.to(DOT), w, part, input_precision=PRECISION), ACT, PARAM)
        w_next = _weights(next_weight, 0, start, NEXT, OUT, NEXT_PAD, CHUNK, DOT)
        acc = tl.dot(part.to(DOT), w_next, acc, input_precision=PRECISION)
    return activate(acc, NEXT_ACT, NEXT_PARAM)


@triton.jit
def mlp_kernel(
    x, theta, bias, y, N, x_network, x_row, theta_row, bias_row, y_network, y_row,
    L: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    HAS_BIAS: tl.constexpr, APART: tl.constexpr, ACT: tl.constexpr, PARAM: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: ROWS rows of one network through L layers; activations never leave registers.

    Layer l maps W[l] to W[l+1] features, padded to PAD where narrow; WIDE[l] marks widths that are streamed.
    Wide widths are never neighbours (see _stretches). Reads ROWS*W[0] of x and P of theta (once from memory,
    for further row blocks from L2), writes ROWS*W[L] of y. FLOPs: 2*ROWS*sum(W[l]*W[l+1]).
    """
    blocks = tl.cdiv(N, ROWS)
    network = (tl.program_id(0) // blocks).to(tl.int64)
    row = ((tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    inside = row < N
    x_at = x + network * x_network + row[:, None] * x_row
    y_at = y + network * y_network + row[:, None] * y_row
    theta_at = theta + network * theta_row
    bias_at = theta_at
    if APART:
        bias_at = bias + network * bias_row

    if WIDE[0]:
        h = _from_wide_input(x_at, inside, theta_at + WEIGHT[0], bias_at + BIAS[0], W[0], W[1], PAD[1],
                             HAS_BIAS[0], ACT[0], PARAM[0], CHUNK, DOT, PRECISION)  # fmt: skip
    else:
        k = tl.arange(0, PAD[0])
        h = tl.load(x_at + k[None, :], inside[:, None] & (k[None, :] < W[0]), 0.0).to(tl.float32)
    for l in tl.static_range(L):
        if WIDE[l]:
            pass  # done above, or together with the layer before
        elif not WIDE[l + 1]:
            h = _whole(h, theta_at + WEIGHT[l], bias_at + BIAS[l], W[l], W[l + 1], PAD[l], PAD[l + 1], HAS_BIAS[l],
                       ACT[l], PARAM[l], DOT, PRECISION)  # fmt: skip
        elif l + 1 == L:
            _to_wide_output(h, y_at, inside, theta_at + WEIGHT[l], bias_at + BIAS[l], W[l], W[l + 1], PAD[l],
                            HAS_BIAS[l], ACT[l], PARAM[l], CHUNK, DOT, PRECISION)  # fmt: skip
        else:
            h = _through_wide(h, theta_at + WEIGHT[l], bias_at + BIAS[l], theta_at + WEIGHT[l + 1],
                              bias_at + BIAS[l + 1], W[l], W[l + 1], W[l + 2], PAD[l], PAD[l + 2], HAS_BIAS[l],
                              HAS_BIAS[l + 1], ACT[l], PARAM[l], ACT[l + 1], PARAM[l + 1], CHUNK, DOT,
                              PRECISION)  # fmt: skip
    if not WIDE[L]:
        o = tl.arange(0, PAD[L])
        tl.store(y_at + o[None, :], h.to(y.dtype.element_ty), inside[:, None] & (o[None, :] < W[L]))


# ---- launchers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """One layer and where its weight and bias lie in a row of theta."""

    inputs: int
    outputs: int
    activation: Activation
    has_bias: bool
    weight: int
    bias: int


def _layers(mlp: MLP, apart: bool) -> list[_Layer]:
    layers, offset = [], 0
    for inputs, outputs, activation, has_bias in mlp.layers():
        bias = 0 if apart else offset + inputs * outputs
        layers.append(_Layer(inputs, outputs, activation, has_bias, offset, bias))
        offset += inputs * outputs + (outputs if has_bias and not apart else 0)
    return layers


def _stretches(layers: list[_Layer]) -> Iterator[list[_Layer]]:
    """Layers that one launch computes: one between two wide widths alone, others as long as possible."""
    stretch: list[_Layer] = []
    for layer in layers:
        if layer.inputs > NARROW and layer.outputs > NARROW:
            if stretch:
                yield stretch
            yield [layer]
            stretch = []
        else:
            stretch.append(layer)
    if stretch:
        yield stretch


def _weight(theta: Tensor, layer: _Layer) -> Operand:
    """[B, out, in], where it lies."""
    at = theta[:, layer.weight : layer.weight + layer.inputs * layer.outputs]
    return Operand(at, (theta.stride(0), layer.inputs, 1))


def _bias(theta: Tensor, bias: Tensor | None, layer: _Layer) -> tuple[Tensor, int] | None:
    if not layer.has_bias:
        return None
    return (theta[:, layer.bias :], theta.stride(0)) if bias is None else (bias, bias.stride(0))


def batched_mlp(x: Tensor, theta: Tensor, bias: Tensor | None, mlp: MLP) -> Tensor:
    """x [B,N,I] or [N,I], theta [B,P], bias [B,O] or None -> y [B,N,O]."""
    networks, rows = theta.shape[0], x.shape[-2]
    dot = dot_type(x.dtype, theta.dtype)
    y = x.new_empty(networks, rows, mlp.widths[-1])
    if y.numel() == 0:
        return y
    x, theta = unit_columns(x), unit_columns(theta)
    bias = None if bias is None else unit_columns(bias)
    h = x
    layers = _layers(mlp, bias is not None)
    # Strict float32 on 16-bit weights spills 500 bytes in mlp_kernel and none in product_kernel.
    on_chip = dot != torch.float32 or x.dtype == theta.dtype
    stretches = list(_stretches(layers)) if on_chip else [[layer] for layer in layers]
    for stretch in stretches:
        last = stretch is stretches[-1]
        out = y if last else x.new_empty(networks, rows, stretch[-1].outputs)
        if not on_chip or (stretch[0].inputs > NARROW and stretch[0].outputs > NARROW):
            _layer_forward(h, theta, bias, stretch[0], out, dot, IDENTITY, stretch[0].activation)
        else:
            _stretch_forward(h, theta, bias, stretch, out, dot)
        h = out
    return y


def _layer_forward(h: Tensor, theta: Tensor, bias: Tensor | None, layer: _Layer, out: Tensor, dot: torch.dtype,
                   in_act: Activation, out_act: Activation) -> None:  # fmt: skip
    """out[b] = out_act(in_act(h[b]) W^T + c)."""
    networks, rows, _ = out.shape
    product(
        operand(h), _weight(theta, layer).T, operand(out), (networks, rows, layer.outputs, layer.inputs), dot,
        a_act=in_act, bias=_bias(theta, bias, layer), out_act=out_act,
    )  # fmt: skip


def _stretch_forward(h: Tensor, theta: Tensor, bias: Tensor | None, stretch: list[_Layer], out: Tensor,
                     dot: torch.dtype) -> None:  # fmt: skip
    networks, rows, _ = out.shape
    config = MLPConfig.for_shape(rows, dot)
    widths = (stretch[0].inputs, *(layer.outputs for layer in stretch))
    x = operand(h)
    mlp_kernel[(networks * triton.cdiv(rows, config.block_rows),)](
        h, theta, theta if bias is None else bias, out, rows, *x.strides[:2], theta.stride(0),
        0 if bias is None else bias.stride(0), *out.stride()[:2],
        L=len(stretch), W=widths, PAD=tuple(min(power_of_two(w), NARROW) for w in widths),
        WEIGHT=tuple(layer.weight for layer in stretch), BIAS=tuple(layer.bias for layer in stretch),
        HAS_BIAS=tuple(layer.has_bias for layer in stretch), APART=bias is not None,
        ACT=tuple(layer.activation.code for layer in stretch),
        PARAM=tuple(layer.activation.parameter for layer in stretch),
        WIDE=tuple(w > NARROW for w in widths), ROWS=config.block_rows, CHUNK=NARROW, DOT=TRITON_TYPES[dot],
        PRECISION=dot_precision(dot), num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


@triton.jit
def gate_kernel(
    gy, z, gz, COUNT, ROWS, COLUMNS, gy_network, gy_row, ACT: tl.constexpr, PARAM: tl.constexpr, BLOCK: tl.constexpr
):
    """gz = gy * act'(z), BLOCK elements a program: reads two, writes one. z and gz contiguous [B,N,O]."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = index // COLUMNS
    at = (row // ROWS) * gy_network + (row % ROWS) * gy_row + index % COLUMNS
    inside = index < COUNT
    g = tl.load(gy + at, inside, 0.0).to(tl.float32)
    d = slope(tl.load(z + index, inside, 0.0).to(tl.float32), ACT, PARAM)
    tl.store(gz + index, (g * d).to(gz.dtype.element_ty), inside)


def batched_mlp_backward(
    gy: Tensor, x: Tensor, theta: Tensor, bias: Tensor | None, mlp: MLP, want_x: bool, want_theta: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, theta and bias (empty where not wanted), with recomputed pre-activations z.

    gz_L = gy * act_L'(z_L);  gz_{l-1} = (gz_l W_l) * act_{l-1}'(z_{l-1});  gW_l = gz_l^T h_{l-1};  gc_l = sum_n gz_l.
    Deterministic: every sum has one program and one order.
    """
    networks, rows = theta.shape[0], x.shape[-2]
    weights = want_theta or want_bias
    gx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_x else x.new_empty(0)
    gtheta = theta.new_empty(networks if weights else 0, theta.shape[1])
    gbias = theta.new_empty(0, 0) if bias is None else bias.new_empty(networks if weights else 0, bias.shape[1])
    dot = dot_type(x.dtype, theta.dtype)
    x, theta, gy = unit_columns(x), unit_columns(theta), unit_columns(gy)
    bias = None if bias is None else unit_columns(bias)
    layers = _layers(mlp, bias is not None)

    # inputs[l] and acts[l]: layer l reads acts[l](inputs[l]); inputs[l + 1] = z of layer l.
    inputs, acts = [x], [IDENTITY]
    for layer in layers:
        if layer is layers[-1] and layer.activation == IDENTITY:
            break
        z = x.new_empty(networks, rows, layer.outputs, dtype=dot)
        _layer_forward(inputs[-1], theta, bias, layer, z, dot, acts[-1], IDENTITY)
        inputs.append(z)
        acts.append(layer.activation)

    gz = gy if layers[-1].activation == IDENTITY else _gated(gy, inputs.pop(), acts.pop())
    for index in reversed(range(len(layers))):
        layer, h, act = layers[index], inputs[index], acts[index]
        if weights:
            place = gtheta[:, layer.weight : layer.weight + layer.inputs * layer.outputs]
            sums = None
            if layer.has_bias:
                sums = (gtheta[:, layer.bias :], gtheta.stride(0)) if bias is None else (gbias, gbias.stride(0))
            product(
                operand(gz).T, operand(h), Operand(place, (gtheta.stride(0), layer.inputs, 1)),
                (networks, layer.outputs, layer.inputs, rows), dot, b_act=act, sums=sums,
            )  # fmt: skip
        if index == 0 and not want_x:
            break
        out = gx if index == 0 else x.new_empty(networks, rows, layer.inputs, dtype=dot)
        product(
            operand(gz), _weight(theta, layer), operand(out), (networks, rows, layer.inputs, layer.outputs), dot,
            gate=None if index == 0 else (h, act), reduce=index == 0 and x.dim() == 2,
        )  # fmt: skip
        gz = out
    return gx, gtheta, gbias


def _gated(gy: Tensor, z: Tensor, activation: Activation) -> Tensor:
    """gy * act'(z) for gy [B,N,O] with unit stride in O."""
    gz = torch.empty_like(z)
    if gz.numel():
        gate_kernel[(triton.cdiv(gz.numel(), 1024),)](
            gy, z, gz, gz.numel(), z.shape[1], z.shape[2], gy.stride(0), gy.stride(1),
            ACT=activation.code, PARAM=activation.parameter, BLOCK=1024, num_warps=4,
        )  # fmt: skip
    return gz
