"""Batched CNNs: B networks, each with its own convolutions, read from rows of theta where they lie.

Every layer is one launch: convolution, activation and max-pool. Its product is implicit: patches are gathered as they
are needed and never stored. Backward is in target_net_cnn_backward.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperfast.backends import INTERPRETING
from hyperfast.plan import CNN, Conv

from .common import TRITON_TYPES, activate, dot_precision, dot_type, is_amd, power_of_two, slope, unit_columns

# ---- configurations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvConfig:
    """Tile of a product: rows (channels) x columns (pixels or taps), k at a time. Speed not measured.

    Addresses of gathered patches take registers: in 16 bits 4 warps need 254 of them on NVIDIA, 8 warps at most 128
    with 64 columns, 254 with 128. Larger tiles than these spill with Triton 3.6 or 3.8 on one target or another.
    """

    rows: int
    columns: int
    k: int
    num_warps: int
    num_stages: int

    @classmethod
    def for_shape(cls, rows: int, columns: int, k: int, dot: torch.dtype) -> ConvConfig:
        rows, columns, k = min(64, power_of_two(rows)), power_of_two(columns), power_of_two(k)
        if INTERPRETING:  # its cost is per operation, not per value
            return cls(rows, min(128, columns), min(64, k), 1, 1)
        stages = 1 if dot == torch.float32 else 2
        if is_amd():  # its warps have 64 lanes
            return cls(rows, min(64, columns), min(16, k), 4, stages)
        if dot == torch.float32:
            return cls(min(32, rows), min(64, columns), min(32, k), 4, stages)
        return cls(rows, min(64, columns), min(32, k), 8, stages)


# ---- where pixels lie -------------------------------------------------------------------------------


@triton.jit
def places(first, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK positions from `first` on, counted through images of SIZE positions: (image, position inside it)."""
    image = first // SIZE
    r = (first - image * SIZE).to(tl.int32) + tl.arange(0, BLOCK)
    return image + r // SIZE, r % SIZE


@triton.jit
def inside_image(y, x, H: tl.constexpr, W: tl.constexpr):
    """Whether pixels (y, x) lie inside an image, not in its padding."""
    return (y >= 0) & (y < H) & (x >= 0) & (x < W)


# ---- the largest of a window ------------------------------------------------------------------------

NAN_KEY = tl.constexpr(0x7FFFFFFF)
NO_KEY = tl.constexpr(-0x80000000)


@triton.jit
def _key(v):
    """int32 in the order of float32: equal values (-0 and 0, too) have equal keys, and NaN the largest."""
    bits = (v + 0.0).to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(v != v, NAN_KEY, key)


@triton.jit
def _value(key):
    """The float32 of a key."""
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _winners(key, z, GROUP: tl.constexpr):
    """Of every GROUP neighbours in a row: largest key, its position and its z. The first of equals, the last NaN."""
    if GROUP == 1:
        return key, tl.zeros(key.shape, tl.int32), z
    else:
        grouped = tl.reshape(key, (key.shape[0], key.shape[1] // GROUP, GROUP))
        top = tl.max(grouped, 2)
        g = tl.arange(0, GROUP)[None, None, :]
        order = tl.where(grouped == NAN_KEY, -g, g)
        place = tl.abs(tl.min(tl.where(grouped == top[:, :, None], order, GROUP), 2))
        values = tl.reshape(z, (key.shape[0], key.shape[1] // GROUP, GROUP))
        return top, place, tl.sum(tl.where(g == place[:, :, None], values, 0.0), 2)


# ---- forward ----------------------------------------------------------------------------------------


@triton.jit
def conv_kernel(
    x, weight, bias, y, slopes, winners, N, x_network, x_image, x_channel, x_row, x_column, w_network, bias_network,
    C: tl.constexpr, O: tl.constexpr, H: tl.constexpr, W: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SY: tl.constexpr, SX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, HC: tl.constexpr, WC: tl.constexpr,
    POOL: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr, PARAM: tl.constexpr, SAVE: tl.constexpr,
    GROUP: tl.constexpr, BO: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """y[b, n] = maxpool(act(weight[b] * x[b, n] + bias[b])): BO channels of BP/GROUP windows of one network a program.

    A window's POOL^2 pixels are taken GROUP at a time as neighbouring columns of one tile, the largest so far stays
    in registers, and windows run on from image to image, so that small images fill a tile. SAVE: also the slope
    at each winner and, where POOL > 1, its position. x: any strides; y, slopes, winners: contiguous
    [B,N,O,HC//POOL,WC//POOL]. FLOPs: 2*C*KH*KW per channel and pixel. A program reads C*KH*KW*BO of theta and its
    windows' patches, each value up to KH*KW times, mostly from L1, POOL^2/GROUP times over; writes BO*BP/GROUP.
    """
    TAPS: tl.constexpr = C * KH * KW
    WP: tl.constexpr = WC // POOL
    WINDOWS: tl.constexpr = (HC // POOL) * WP
    BW: tl.constexpr = BP // GROUP
    blocks_o = tl.cdiv(O, BO)
    blocks = tl.cdiv(tl.cast(N, tl.int64) * WINDOWS, BW) * blocks_o
    network = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    o = (block % blocks_o).to(tl.int32) * BO + tl.arange(0, BO)
    first = (block // blocks_o) * BW
    image, window = places(first, WINDOWS, BP // GROUP)
    image_p, r = places(first * GROUP, WINDOWS * GROUP, BP)
    high, wide, g = r // GROUP // WP, r // GROUP % WP, r % GROUP
    x_at = x + network * x_network + image_p * x_image
    w_at = weight + network * w_network + o.to(tl.int64)[:, None] * TAPS
    c = tl.zeros((BO,), tl.float32)
    if HAS_BIAS:
        c += tl.load(bias + network * bias_network + o, o < O, 0.0).to(tl.float32)

    best = tl.full((BO, BW), NO_KEY, tl.int32)
    best_z = tl.zeros((BO, BW), tl.float32)
    winner = tl.zeros((BO, BW), tl.int32)
    for q in range(0, POOL * POOL, GROUP):
        top = (high * POOL + (q + g) // POOL) * SY - PY
        left = (wide * POOL + (q + g) % POOL) * SX - PX
        corner = x_at + top.to(tl.int64) * x_row + left.to(tl.int64) * x_column
        acc = tl.zeros((BO, BP), tl.float32)
        for start in range(0, TAPS, BK):
            k = start + tl.arange(0, BK)
            w = tl.load(w_at + k[None, :], (o[:, None] < O) & (k[None, :] < TAPS), 0.0)
            ky, kx = k // KW % KH, k % KW
            inside = (k[:, None] < TAPS) & (image_p[None, :] < N)
            if PY > 0 or PX > 0:
                inside &= inside_image(top[None, :] + ky[:, None], left[None, :] + kx[:, None], H, W)
            tap = (k // (KH * KW)).to(tl.int64) * x_channel + ky.to(tl.int64) * x_row + kx.to(tl.int64) * x_column
            patch = tl.load(corner[None, :] + tap[:, None], inside, 0.0)
            acc = tl.dot(w.to(DOT), patch.to(DOT), acc, input_precision=PRECISION)
        z = acc + c[:, None]
        if POOL == 1:
            best_z = z
        else:
            key, place, z = _winners(_key(activate(z, ACT, PARAM)), z, GROUP)
            better = (key > best) | (key == NAN_KEY)
            best = tl.where(better, key, best)
            if SAVE:
                winner = tl.where(better, q + place, winner)
                best_z = tl.where(better, z, best_z)
    at = ((network * N + image) * O)[None, :] * WINDOWS + o.to(tl.int64)[:, None] * WINDOWS + window[None, :]
    inside = (o[:, None] < O) & (image[None, :] < N)
    h = activate(best_z, ACT, PARAM) if POOL == 1 else _value(best)
    tl.store(y + at, h.to(y.dtype.element_ty), inside)
    if SAVE:
        tl.store(slopes + at, slope(best_z, ACT, PARAM).to(slopes.dtype.element_ty), inside)
        if POOL > 1:
            tl.store(winners + at, winner.to(tl.int8), inside)


# ---- launchers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One convolution, the size of its input, and where its weight and bias lie in a row of theta."""

    conv: Conv
    size: tuple[int, int]
    weight: int
    bias: int

    @property
    def taps(self) -> int:
        return math.prod(self.conv.weight_shape[1:])

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return self.conv.out_channels, *self.conv.out_size(*self.size)

    @property
    def conv_shape(self) -> tuple[int, int, int]:
        """Before pooling."""
        return self.conv.out_channels, *self.conv.conv_size(*self.size)

    def geometry(self) -> dict[str, int]:
        """What every kernel of the layer is compiled for."""
        conv = self.conv
        names = ("C", "O", "H", "W", "KH", "KW", "SY", "SX", "PY", "PX", "HC", "WC")
        values = (conv.in_channels, conv.out_channels, *self.size, *conv.kernel_size, *conv.stride, *conv.padding)
        return dict(zip(names, values + self.conv_shape[1:], strict=True))


def layers_of(cnn: CNN, size: tuple[int, int], apart: bool) -> list[Layer]:
    """The layers of a CNN on images of `size`; apart: the bias is a tensor of its own."""
    layers, offset = [], 0
    for conv in cnn.layers:
        end = offset + math.prod(conv.weight_shape)
        layers.append(Layer(conv, size, offset, 0 if apart else end))
        offset = end + (conv.out_channels if conv.bias and not apart else 0)
        size = conv.out_size(*size)
    return layers


def strides_of(x: Tensor) -> tuple[int, ...]:
    """Of network, image, channel, row and column; a shared x is the same for every network."""
    return x.stride() if x.dim() == 5 else (0, *x.stride())


def products(dot: torch.dtype, config: ConvConfig) -> dict:
    """Launch parameters of every product."""
    return {
        "BK": config.k, "DOT": TRITON_TYPES[dot], "PRECISION": dot_precision(dot),
        "num_warps": config.num_warps, "num_stages": config.num_stages,
    }  # fmt: skip


@dataclass(frozen=True)
class Saved:
    """What backward keeps of a layer's forward: the slope at every winner, and its position in its window."""

    slopes: Tensor
    winners: Tensor


def forward_layer(h: Tensor, theta: Tensor, bias: Tensor | None, layer: Layer, y: Tensor, dot: torch.dtype,
             saved: Saved | None = None) -> None:  # fmt: skip
    """Launches conv_kernel: h [B,N,C,H,W] or [N,C,H,W] -> y [B,N,O,H',W'], and what backward keeps."""
    networks, images, channels, high, wide = y.shape
    conv = layer.conv
    # The largest power of two that divides a window, as far as a tile of 64 pixels still has a few windows.
    group = math.gcd(conv.pool**2, 16)
    config = ConvConfig.for_shape(channels, images * high * wide * group, layer.taps, dot)
    programs = networks * triton.cdiv(images * high * wide * group, config.columns) * triton.cdiv(channels, config.rows)
    if programs == 0:
        return
    place, stride = (theta[:, layer.bias :], theta.stride(0)) if bias is None else (bias, bias.stride(0))
    conv_kernel[(programs,)](
        h, theta[:, layer.weight :], place if conv.bias else theta, y, saved.slopes if saved else y,
        saved.winners if saved else y, images, *strides_of(h), theta.stride(0), stride, **layer.geometry(),
        POOL=conv.pool, HAS_BIAS=conv.bias, ACT=conv.activation.code, PARAM=conv.activation.parameter,
        SAVE=saved is not None, GROUP=group, BO=config.rows, BP=config.columns, **products(dot, config),
    )  # fmt: skip


def batched_cnn(x: Tensor, theta: Tensor, bias: Tensor | None, cnn: CNN) -> Tensor:
    """x [B,N,C,H,W] or [N,C,H,W], theta [B,P], bias [B,O] or None -> y [B,N,O,H',W']."""
    networks, images = theta.shape[0], x.shape[-4]
    dot = dot_type(x.dtype, theta.dtype)
    theta, bias = unit_columns(theta), None if bias is None else unit_columns(bias)
    h = x
    layers = layers_of(cnn, (x.shape[-2], x.shape[-1]), bias is not None)
    for layer in layers:
        y = x.new_empty(networks, images, *layer.out_shape, dtype=x.dtype if layer is layers[-1] else dot)
        forward_layer(h, theta, bias, layer, y, dot)
        h = y
    return h
