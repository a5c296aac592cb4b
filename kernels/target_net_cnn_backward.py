"""Gradients of batched CNNs: to the images and to the weights, which are rows of theta.

The layers are recomputed once, keeping per window the winner and its slope. Then three launches a layer: the gradient
before pooling, and its implicit products with the layer's input and with its weights. No atomics.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperfast.backends import INTERPRETING
from hyperfast.plan import CNN, IDENTITY

from .common import dot_type, is_amd, power_of_two, unit_columns
from .target_net_cnn import (
    ConvConfig,
    Layer,
    Saved,
    forward_layer,
    inside_image,
    layers_of,
    places,
    products,
    strides_of,
)

# A gradient to the weights is a sum over all pixels of all images. It is split in parts of about this many pixels,
# at most MOST_PARTS, so that few networks fill a GPU, too; where the parts are cut does not depend on the batch.
PART_PIXELS = 2048
MOST_PARTS = 16
# Sums of parts, in float32 values: 64 MiB. More networks take turns.
MOST_PART_VALUES = 1 << 24
# The int32 that counts pixels within a part must not overflow.
MOST_PIXELS = 1 << 30


def config_of(rows: int, columns: int, k: int, dot: torch.dtype) -> ConvConfig:
    """As forward, but float32 on NVIDIA: forward's tile spills 8 to 12 bytes on sm_100, this one nowhere."""
    config = ConvConfig.for_shape(rows, columns, k, dot)
    if INTERPRETING or is_amd() or dot != torch.float32:
        return config
    return replace(config, rows=min(64, power_of_two(rows)), k=min(16, config.k), num_warps=8)


# ---- kernels -----------------------------------------------------------------------------------------


@triton.jit
def unpool_kernel(
    g, slopes, winners, gz, COUNT, HC: tl.constexpr, WC: tl.constexpr, POOL: tl.constexpr, BLOCK: tl.constexpr
):
    """gz = g * slope where a pixel won its window, else 0: BLOCK pixels a program.

    g, slopes, winners [planes,HC//POOL,WC//POOL], gz [planes,HC,WC]; COUNT values of gz. Reads three values a window
    (from memory once), writes POOL^2.
    """
    WP: tl.constexpr = WC // POOL
    first = tl.program_id(0).to(tl.int64) * BLOCK
    plane, r = places(first, HC * WC, BLOCK)
    high, wide = r // WC, r % WC
    exists = first + tl.arange(0, BLOCK) < COUNT
    inside = exists & (high // POOL < HC // POOL) & (wide // POOL < WP)
    at = plane * ((HC // POOL) * WP) + high // POOL * WP + wide // POOL
    z = tl.load(g + at, inside, 0.0).to(tl.float32) * tl.load(slopes + at, inside, 0.0).to(tl.float32)
    if POOL > 1:
        position = high % POOL * POOL + wide % POOL
        z = tl.where(inside & (tl.load(winners + at, inside, 0).to(tl.int32) == position), z, 0.0)
    tl.store(gz + first + tl.arange(0, BLOCK), z.to(gz.dtype.element_ty), exists)


@triton.jit
def weight_gradient_kernel(
    gz, x, gw, gb, N, IMAGES, PARTS, x_network, x_image, x_channel, x_row, x_column,
    gw_network, gw_part, gb_network, gb_part,
    C: tl.constexpr, O: tl.constexpr, H: tl.constexpr, W: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SY: tl.constexpr, SX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, HC: tl.constexpr, WC: tl.constexpr,
    HAS_BIAS: tl.constexpr, BO: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """gw[b, o, t] = sum over pixels of gz[o, pixel] * patch[t, pixel]: BO channels x BT taps, one part a program.

    A part is IMAGES images; gz [B,N,O,HC,WC] contiguous, x any strides. HAS_BIAS: also gb[b, o] = sum of gz, by the
    programs of the first taps. FLOPs: 2*C*KH*KW per channel and pixel. gz is read C*KH*KW/BT times, x KH*KW*O/BO times,
    mostly from L1 and L2.
    """
    TAPS: tl.constexpr = C * KH * KW
    PIXELS: tl.constexpr = HC * WC
    tiles_t: tl.constexpr = (TAPS + BT - 1) // BT
    tiles: tl.constexpr = tiles_t * ((O + BO - 1) // BO)
    tile = tl.program_id(0) % tiles
    part = (tl.program_id(0) // tiles % PARTS).to(tl.int64)
    network = (tl.program_id(0) // tiles // PARTS).to(tl.int64)
    o = (tile // tiles_t) * BO + tl.arange(0, BO)
    t = (tile % tiles_t) * BT + tl.arange(0, BT)
    ky, kx = t // KW % KH, t % KW
    tap = (t // (KH * KW)).to(tl.int64) * x_channel + ky.to(tl.int64) * x_row + kx.to(tl.int64) * x_column
    first = part * IMAGES
    x_at = x + network * x_network + first * x_image + tap[:, None]
    gz_at = gz + (network * N + first) * (O * PIXELS) + o.to(tl.int64)[:, None] * PIXELS
    count = tl.minimum(N - first, IMAGES).to(tl.int32) * PIXELS
    acc = tl.zeros((BO, BT), tl.float32)
    total = tl.zeros((BO,), tl.float32)
    for start in range(0, count, BK):
        r = start + tl.arange(0, BK)
        image, pixel = (r // PIXELS).to(tl.int64), r % PIXELS
        top, left = pixel // WC * SY - PY, pixel % WC * SX - PX
        inside = (o[:, None] < O) & (r[None, :] < count)
        a = tl.load(gz_at + (image * (O * PIXELS) + pixel)[None, :], inside, 0.0)
        inside = (t[:, None] < TAPS) & (r[None, :] < count)
        if PY > 0 or PX > 0:
            inside &= inside_image(top[None, :] + ky[:, None], left[None, :] + kx[:, None], H, W)
        corner = image * x_image + top.to(tl.int64) * x_row + left.to(tl.int64) * x_column
        patch = tl.load(x_at + corner[None, :], inside, 0.0)
        if HAS_BIAS:
            total += tl.sum(a.to(tl.float32), 1)
        acc = tl.dot(a.to(DOT), tl.trans(patch.to(DOT)), acc, input_precision=PRECISION)
    at = gw + network * gw_network + part * gw_part + o.to(tl.int64)[:, None] * TAPS + t[None, :]
    tl.store(at, acc.to(gw.dtype.element_ty), (o[:, None] < O) & (t[None, :] < TAPS))
    if HAS_BIAS:
        at = gb + network * gb_network + part * gb_part + o
        tl.store(at, total.to(gb.dtype.element_ty), (o < O) & (tile % tiles_t == 0))


@triton.jit
def sum_parts_kernel(parts, out, SIZE, PARTS, parts_network, parts_part, out_network, BLOCK: tl.constexpr):
    """out[b] = sum over parts, in order: BLOCK values of one network a program; reads PARTS values for each."""
    blocks = tl.cdiv(SIZE, BLOCK)
    network = (tl.program_id(0) // blocks).to(tl.int64)
    i = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    at = parts + network * parts_network + i
    for _ in range(0, PARTS):
        total += tl.load(at, i < SIZE, 0.0)
        at += parts_part
    tl.store(out + network * out_network + i, total.to(out.dtype.element_ty), i < SIZE)


@triton.jit
def image_gradient_kernel(
    gz, weight, gx, N, BATCH, w_network,
    C: tl.constexpr, O: tl.constexpr, H: tl.constexpr, W: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SY: tl.constexpr, SX: tl.constexpr, PY: tl.constexpr, PX: tl.constexpr, HC: tl.constexpr, WC: tl.constexpr,
    BC: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """gx[b, n, c, y, x] = sum of weight[o, c, ky, kx] * gz[o, (y + PY - ky)/SY, (x + PX - kx)/SX] where integral.

    A program: BC channels of BP pixels with the same (y + PY) % SY and (x + PX) % SX, so that all take the same taps
    and none is a product with zero. BATCH networks are summed into one gx, in order (1: none). gz [B,N,O,HC,WC] and
    gx contiguous. FLOPs: 2*O*KH*KW/(SY*SX) per channel and pixel. A program reads O*BC*KH*KW/(SY*SX) of theta, and gz up to
    KH*KW/(SY*SX) times, mostly from L1; writes BC*BP.
    """
    TAPS_Y: tl.constexpr = (KH + SY - 1) // SY
    TAPS_X: tl.constexpr = (KW + SX - 1) // SX
    TAPS: tl.constexpr = O * TAPS_Y * TAPS_X
    WIDE: tl.constexpr = (W + SX - 1) // SX
    PIXELS: tl.constexpr = ((H + SY - 1) // SY) * WIDE  # of one phase
    phases: tl.constexpr = SY * SX
    blocks_c: tl.constexpr = (C + BC - 1) // BC
    blocks = tl.cdiv(tl.cast(N, tl.int64) * PIXELS, BP) * (blocks_c * phases)
    entry = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    c = (block % blocks_c).to(tl.int32) * BC + tl.arange(0, BC)
    phase = (block // blocks_c % phases).to(tl.int32)
    image, r = places(block // (blocks_c * phases) * BP, PIXELS, BP)
    y, x = r // WIDE * SY + phase // SX, r % WIDE * SX + phase % SX
    # The first tap that reaches these pixels, and the pixel of gz that it comes from; the next taps come from before.
    ky_first, kx_first = (phase // SX + PY) % SY, (phase % SX + PX) % SX
    bottom, right = (y + PY) // SY, (x + PX) // SX
    exists = (image < N) & (y < H) & (x < W)
    acc = tl.zeros((BC, BP), tl.float32)
    for index in range(0, BATCH):
        network = entry + index
        w_at = weight + network * w_network + c.to(tl.int64)[:, None] * (KH * KW)
        gz_at = gz + (network * N + image) * (O * HC * WC) + bottom.to(tl.int64) * WC + right
        for start in range(0, TAPS, BK):
            k = start + tl.arange(0, BK)
            o, ty, tx = (k // (TAPS_Y * TAPS_X)).to(tl.int64), k // TAPS_X % TAPS_Y, k % TAPS_X
            ky, kx = ky_first + ty * SY, kx_first + tx * SX
            real = (k < TAPS) & (ky < KH) & (kx < KW)
            w = tl.load(w_at + (o * (C * KH * KW) + ky * KW + kx)[None, :], (c[:, None] < C) & real[None, :], 0.0)
            high, wide = bottom[None, :] - ty[:, None], right[None, :] - tx[:, None]
            inside = exists[None, :] & real[:, None] & inside_image(high, wide, HC, WC)
            g = tl.load(gz_at[None, :] + (o * (HC * WC) - ty * WC - tx)[:, None], inside, 0.0)
            acc = tl.dot(w.to(DOT), g.to(DOT), acc, input_precision=PRECISION)
    at = ((entry * N + image) * C)[None, :] * (H * W) + c.to(tl.int64)[:, None] * (H * W) + (y * W + x)[None, :]
    tl.store(gx + at, acc.to(gx.dtype.element_ty), (c[:, None] < C) & exists[None, :])


# ---- launchers --------------------------------------------------------------------------------------


def batched_cnn_backward(
    gy: Tensor, x: Tensor, theta: Tensor, bias: Tensor | None, cnn: CNN, want_x: bool, want_theta: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, theta and bias (empty where not wanted), with recomputed layers.

    gz = g * act'(z) at the winners of pooling, else 0;  g of the layer before = gz correlated with W, transposed;
    gW = gz correlated with h;  gc = sum of gz. Deterministic: every sum has one program and one order, or its parts do.
    """
    networks, images = theta.shape[0], x.shape[-4]
    weights = want_theta or want_bias
    gx = torch.empty_like(x, memory_format=torch.contiguous_format) if want_x else x.new_empty(0)
    gtheta = theta.new_empty(networks if weights else 0, theta.shape[1])
    gbias = theta.new_empty(0, 0) if bias is None else bias.new_empty(networks if weights else 0, bias.shape[1])
    dot = dot_type(x.dtype, theta.dtype)
    theta, bias = unit_columns(theta), None if bias is None else unit_columns(bias)
    layers = layers_of(cnn, (x.shape[-2], x.shape[-1]), bias is not None)

    inputs, saved = [x], []
    for layer in layers:
        plain = layer.conv.pool == 1 and layer.conv.activation == IDENTITY
        if layer is layers[-1] and plain:
            saved.append(None)
            break
        h = x.new_empty(networks, images, *layer.out_shape, dtype=dot)
        keep = Saved(torch.empty_like(h), torch.empty_like(h, dtype=torch.int8) if layer.conv.pool > 1 else h)
        forward_layer(inputs[-1], theta, bias, layer, h, dot, keep)
        inputs.append(h)
        saved.append(None if plain else keep)

    g = gy.contiguous()
    for index in reversed(range(len(layers))):
        layer = layers[index]
        gz = _unpooled(g, layer, saved[index], dot)
        if weights:
            _weight_gradient(gz, inputs[index], layer, gtheta, gbias if bias is not None else None, dot)
        if index > 0 or want_x:
            g = x.new_empty(networks, images, layer.conv.in_channels, *layer.size, dtype=dot) if index > 0 else gx
            _image_gradient(gz, theta, layer, g, dot)
    return gx, gtheta, gbias


def _unpooled(g: Tensor, layer: Layer, saved: Saved | None, dot: torch.dtype) -> Tensor:
    """The gradient before activation and pooling, [B,N,O,HC,WC]."""
    if saved is None:
        return g
    gz = g.new_empty(*g.shape[:2], *layer.conv_shape, dtype=dot)
    if gz.numel():
        unpool_kernel[(triton.cdiv(gz.numel(), 1024),)](
            g, saved.slopes, saved.winners, gz, gz.numel(), HC=layer.conv_shape[1], WC=layer.conv_shape[2],
            POOL=layer.conv.pool, BLOCK=1024, num_warps=4,
        )  # fmt: skip
    return gz


def _image_gradient(gz: Tensor, theta: Tensor, layer: Layer, gx: Tensor, dot: torch.dtype) -> None:
    """gx [B,N,C,H,W], or [N,C,H,W]: summed over the networks."""
    networks, images = gz.shape[:2]
    (sy, sx), (height, width) = layer.conv.stride, layer.size
    pixels = images * triton.cdiv(height, sy) * triton.cdiv(width, sx)
    taps = layer.taps // layer.conv.in_channels * layer.conv.out_channels
    config = config_of(layer.conv.in_channels, pixels, taps, dot)
    entries = networks if gx.dim() == 5 else 1
    blocks = triton.cdiv(pixels, config.columns) * triton.cdiv(layer.conv.in_channels, config.rows)
    if entries * blocks:
        image_gradient_kernel[(entries * blocks * sy * sx,)](
            gz, theta[:, layer.weight :], gx, images, 1 if gx.dim() == 5 else networks, theta.stride(0),
            **layer.geometry(), BC=config.rows, BP=config.columns, **products(dot, config),
        )  # fmt: skip


def _weight_gradient(
    gz: Tensor, h: Tensor, layer: Layer, gtheta: Tensor, gbias: Tensor | None, dot: torch.dtype
) -> None:
    """Into the layer's place in gtheta, and its bias's place there or gbias."""
    networks, images, channels, high, wide = gz.shape
    size = channels * layer.taps
    pixels = images * high * wide
    parts = max(1, min(images, max(min(MOST_PARTS, pixels // PART_PIXELS), triton.cdiv(pixels, MOST_PIXELS))))
    part_images = triton.cdiv(images, parts)
    parts = max(1, triton.cdiv(images, part_images)) if images else 1
    config = config_of(channels, layer.taps, PART_PIXELS, dot)
    tiles = triton.cdiv(channels, config.rows) * triton.cdiv(layer.taps, config.columns)
    to_bias = gtheta[:, layer.bias :] if gbias is None else gbias
    turn = max(1, MOST_PART_VALUES // (parts * (size + channels))) if parts > 1 else max(1, networks)
    for first in range(0, networks, turn):
        some = slice(first, first + turn)
        gw, gb = gtheta[some, layer.weight :], to_bias[some]
        count = gw.shape[0]
        if parts > 1:
            sums = gz.new_empty(count, parts, size + channels, dtype=torch.float32)
            gw, gb = sums, sums[:, :, size:]
        part_stride = sums.stride(1) if parts > 1 else 0
        weight_gradient_kernel[(count * parts * tiles,)](
            gz[some], h if h.dim() == 4 else h[some], gw, gb, images, part_images, parts, *strides_of(h),
            gw.stride(0), part_stride, gb.stride(0), part_stride, **layer.geometry(), HAS_BIAS=layer.conv.bias,
            BO=config.rows, BT=config.columns, **products(dot, config),
        )  # fmt: skip
        if parts > 1:
            _sum_parts(sums[:, :, :size], gtheta[some, layer.weight : layer.weight + size])
            if layer.conv.bias:
                _sum_parts(sums[:, :, size:], to_bias[some, :channels])


def _sum_parts(parts: Tensor, out: Tensor) -> None:
    """out [B,size] = sum over dimension 1 of parts [B,parts,size]."""
    networks, count, size = parts.shape
    sum_parts_kernel[(networks * triton.cdiv(size, 1024),)](
        parts, out, size, count, *parts.stride()[:2], out.stride(0), BLOCK=1024, num_warps=4
    )
