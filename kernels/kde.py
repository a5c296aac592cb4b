"""Cross-entropy under a kernel density estimate: tiles of points and centres in registers, nothing of L x n in memory.

Forward and the gradients of the points: one program a block of points, over all centres. The gradient of the centres:
one program a block of centres, over all points, so that no program adds to another's results. Exponentials are taken
again in each of the three: their unit is idle while the others would wait for memory. Blocks of points whose weights are
all zero end at once, or are passed over. Speed not measured.

Bytes: forward reads mu twice for every block of points (from L1 or L2: 3 KB at n = 400), points and weights once, and
writes 8 bytes a point; backward reads as much, and writes the gradients. About 14 FLOPs and one exponential for a pair of
point and centre forward, 13 to 18 backward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import power_of_two

# A tile of points by centres: 16 pairs for each of 128 threads. Programs for points have few points, so that the 784
# points of 32 samples make 800 programs; programs for centres have few centres, for the same reason. Speed not measured.
POINTS, CENTRES = 32, 64
MANY_POINTS, FEW_CENTRES = 128, 16
_HALF_LOG2E = tl.constexpr(0.7213475204444817)
_LOG_2PI = tl.constexpr(1.8378770664093453)


@triton.jit
def _squares(x, y, mu, start, n, BN: tl.constexpr):
    """x - mu, y - mu and their squared sum, [points, BN], for centres start, start + 1, ...; infinite behind the last."""
    i = start + tl.arange(0, BN)
    dx = x[:, None] - tl.load(mu + 2 * i, i < n, 0.0)[None, :]
    dy = y[:, None] - tl.load(mu + 2 * i + 1, i < n, 0.0)[None, :]
    return dx, dy, tl.where((i < n)[None, :], dx * dx + dy * dy, float("inf"))


@triton.jit
def _nearest_and_sum(x, y, mu, n, k, wanted, BL: tl.constexpr, BN: tl.constexpr):
    """m = min d and S = sum of 2^(k (m - d)) over the centres, d = |x - mu|^2; 0 and 0 where not wanted."""
    nearest = tl.zeros((BL,), tl.float32)
    total = tl.zeros((BL,), tl.float32)
    if tl.max(wanted.to(tl.int32), 0) > 0:
        least = tl.full((BL, BN), float("inf"), tl.float32)
        for start in range(0, n, BN):
            _, _, square = _squares(x, y, mu, start, n, BN)
            least = tl.where(square < least, square, least)  # passes a NaN over; the sum will be one
        nearest = tl.min(least, 1)
        finite = tl.where(nearest < float("inf"), nearest, 0.0)
        sums = tl.zeros((BL, BN), tl.float32)
        for start in range(0, n, BN):
            _, _, square = _squares(x, y, mu, start, n, BN)
            sums += tl.exp2(k * (finite[:, None] - square))
        total = tl.sum(sums, 1)
        total = tl.where(total == 0.0, 1.0, total)  # infinitely far from every centre: log p is -infinity
        nearest = tl.where(wanted, nearest, 0.0)
        total = tl.where(wanted, total, 0.0)
    return nearest, total


@triton.jit
def _log_density(nearest, total, sigma, n):
    return tl.log(total) - nearest / (2.0 * sigma * sigma) - (tl.log(n * sigma) + tl.log(sigma) + _LOG_2PI)


@triton.jit
def kde_kernel(points, mu, weight, sigma, saved, part, samples, length, n, point_sample, mu_sample, weight_sample,
               sigma_sample, blocks, BL: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """BL points of a sample: saved[:, sample, these points], and part[sample, block], their share of ce."""
    b = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    l = block * BL + tl.arange(0, BL)
    w = tl.load(weight + b * weight_sample + l, l < length, 0.0)
    counted = w != 0.0
    x = tl.load(points + b * point_sample + 2 * l, counted, 0.0)
    y = tl.load(points + b * point_sample + 2 * l + 1, counted, 0.0)
    s = tl.load(sigma + b * sigma_sample)
    nearest, total = _nearest_and_sum(x, y, mu + b * mu_sample, n, 1.0 / (s * s) * _HALF_LOG2E, counted, BL, BN)
    tl.store(saved + b * length + l, nearest, l < length)
    tl.store(saved + (samples + b) * length + l, total, l < length)
    log_p = _log_density(nearest, tl.where(counted, total, 1.0), s, n)
    tl.store(part + b * blocks + block, -tl.sum(tl.where(counted, w * log_p, 0.0), 0))


@triton.jit
def kde_points_kernel(g, points, mu, weight, sigma, saved, gpoints, gweight, gsigma, samples, length, n, point_sample,
                      mu_sample, weight_sample, sigma_sample, g_sample, blocks, WANT_POINTS: tl.constexpr,
                      WANT_WEIGHT: tl.constexpr, WANT_SIGMA: tl.constexpr, BL: tl.constexpr,
                      BN: tl.constexpr):  # fmt: skip
    """BL points of a sample: their gradients, and gsigma[sample, block], their share of sigma's."""
    b = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    l = block * BL + tl.arange(0, BL)
    mu += b * mu_sample
    w = tl.load(weight + b * weight_sample + l, l < length, 0.0)
    counted = w != 0.0
    px = points + b * point_sample + 2 * l
    s = tl.load(sigma + b * sigma_sample)
    k = 1.0 / (s * s) * _HALF_LOG2E
    upstream = tl.load(g + b * g_sample)
    nearest = tl.load(saved + b * length + l, l < length, 0.0)
    total = tl.load(saved + (samples + b) * length + l, l < length, 0.0)
    if WANT_WEIGHT:
        x = tl.load(px, l < length, 0.0)
        y = tl.load(px + 1, l < length, 0.0)
        skipped = (l < length) & (w == 0.0) & (x - x == 0.0) & (y - y == 0.0)
        other_nearest, other_total = _nearest_and_sum(
            tl.where(skipped, x, 0.0), tl.where(skipped, y, 0.0), mu, n, k, skipped, BL, BN
        )
        every_total = tl.where(counted, total, tl.where(skipped, other_total, 1.0))
        log_p = _log_density(tl.where(counted, nearest, other_nearest), every_total, s, n)
        tl.store(gweight + b * length + l, tl.where(counted | skipped, -upstream * log_p, 0.0), l < length)
    if WANT_POINTS or WANT_SIGMA:
        x = tl.load(px, counted, 0.0)
        y = tl.load(px + 1, counted, 0.0)
        mx = tl.zeros((BL, BN), tl.float32)
        my = tl.zeros((BL, BN), tl.float32)
        squares = tl.zeros((BL, BN), tl.float32)
        if tl.max(counted.to(tl.int32), 0) > 0:
            for start in range(0, n, BN):
                dx, dy, square = _squares(x, y, mu, start, n, BN)
                e = tl.exp2(k * (nearest[:, None] - square))
                mx += e * dx
                my += e * dy
                if WANT_SIGMA:
                    squares += e * dx * dx + e * dy * dy  # square is infinite behind the last
        c = tl.where(counted, w / tl.where(counted, total, 1.0), 0.0)
        if WANT_POINTS:
            factor = upstream * c / (s * s)
            at = gpoints + (b * length + l) * 2
            tl.store(at, tl.where(counted, factor * tl.sum(mx, 1), 0.0), l < length)
            tl.store(at + 1, tl.where(counted, factor * tl.sum(my, 1), 0.0), l < length)
        if WANT_SIGMA:
            share = tl.where(counted, c * tl.sum(squares, 1) / (s * s) - 2.0 * w, 0.0)
            tl.store(gsigma + b * blocks + block, -upstream / s * tl.sum(share, 0))


@triton.jit
def kde_centres_kernel(g, points, mu, weight, sigma, saved, gmu, samples, length, n, point_sample, mu_sample,
                       weight_sample, sigma_sample, g_sample, blocks, BL: tl.constexpr,
                       BN: tl.constexpr):  # fmt: skip
    """BN centres of a sample: their gradient, over the points in order."""
    b = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks) * BN
    mu += b * mu_sample
    points += b * point_sample
    weight += b * weight_sample
    s = tl.load(sigma + b * sigma_sample)
    k = 1.0 / (s * s) * _HALF_LOG2E
    gx = tl.zeros((BL, BN), tl.float32)
    gy = tl.zeros((BL, BN), tl.float32)
    for first in range(0, length, BL):
        l = first + tl.arange(0, BL)
        w = tl.load(weight + l, l < length, 0.0)
        counted = w != 0.0
        if tl.max(counted.to(tl.int32), 0) > 0:
            x = tl.load(points + 2 * l, counted, 0.0)
            y = tl.load(points + 2 * l + 1, counted, 0.0)
            nearest = tl.load(saved + b * length + l, counted, 0.0)
            c = w / tl.load(saved + (samples + b) * length + l, counted, 1.0)
            dx, dy, square = _squares(x, y, mu, start, n, BN)
            r = tl.exp2(k * (nearest[:, None] - square)) * c[:, None]
            gx += r * dx
            gy += r * dy
    i = start + tl.arange(0, BN)
    factor = -tl.load(g + b * g_sample) / (s * s)
    tl.store(gmu + (b * n + i) * 2, factor * tl.sum(gx, 0), i < n)
    tl.store(gmu + (b * n + i) * 2 + 1, factor * tl.sum(gy, 0), i < n)


def _dense(t: Tensor, dims: int) -> Tensor:
    """t, or a copy where its last dimensions are not contiguous."""
    expected = 1
    for size, stride in zip(reversed(t.shape[-dims:]), reversed(t.stride()[-dims:]), strict=True):
        if size > 1 and stride != expected:
            return t.contiguous()
        expected *= size
    return t


def _arguments(points: Tensor, mu: Tensor, weight: Tensor, sigma: Tensor) -> tuple[list[Tensor], list[int]]:
    """The tensors as kernels read them, and their strides from sample to sample."""
    tensors = [_dense(points, 2), _dense(mu, 2), _dense(weight, 1), sigma]
    return tensors, [t.stride(0) for t in tensors]


def _tile(points: int, centres: int, most_points: int, most_centres: int) -> dict[str, int]:
    # Four warps on AMD, too, whose warps have 64 lanes: with two, gfx942 spills scalar registers.
    return {
        "BL": min(power_of_two(points), most_points),
        "BN": min(power_of_two(centres), most_centres),
        "num_warps": 4,
    }


def kde(points: Tensor, mu: Tensor, weight: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """points [B,L,2], mu [B,n,2], weight [B,L], sigma [B], float32 -> ce [B], saved [2,B,L] of csrc/kde.h."""
    (samples, n), length = mu.shape[:2], weight.shape[1]
    tile = _tile(length, n, POINTS, CENTRES)
    blocks = triton.cdiv(length, tile["BL"])
    saved = torch.empty((2, samples, length), dtype=torch.float32, device=mu.device)
    part = torch.empty((samples, blocks), dtype=torch.float32, device=mu.device)
    if part.numel():
        tensors, strides = _arguments(points, mu, weight, sigma)
        kde_kernel[(samples * blocks,)](*tensors, saved, part, samples, length, n, *strides, blocks, **tile)
    return part.sum(1), saved


def kde_backward(
    g: Tensor, points: Tensor, mu: Tensor, weight: Tensor, sigma: Tensor, saved: Tensor, want_points: bool,
    want_mu: bool, want_weight: bool, want_sigma: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of points [B,L,2], mu [B,n,2], weight [B,L], sigma [B]; [0] where not wanted."""
    (samples, n), length = mu.shape[:2], weight.shape[1]
    tile = _tile(length, n, POINTS, CENTRES)
    blocks = triton.cdiv(length, tile["BL"])

    def result(wanted: bool, *shape: int) -> Tensor:
        return torch.empty(shape if wanted else (0,), dtype=torch.float32, device=mu.device)

    gpoints, gmu = result(want_points, samples, length, 2), result(want_mu, samples, n, 2)
    gweight, part = result(want_weight, samples, length), result(want_sigma, samples, blocks)
    tensors, strides = _arguments(points, mu, weight, sigma)
    saved = saved.contiguous()
    sizes = (samples, length, n, *strides, g.stride(0))
    if samples * blocks and (want_points or want_weight or want_sigma):
        kde_points_kernel[(samples * blocks,)](
            g, *tensors, saved, gpoints, gweight, part, *sizes, blocks, WANT_POINTS=want_points,
            WANT_WEIGHT=want_weight, WANT_SIGMA=want_sigma, **tile,
        )  # fmt: skip
    if samples and want_mu:
        tile = _tile(length, n, MANY_POINTS, FEW_CENTRES)
        blocks = triton.cdiv(n, tile["BN"])
        kde_centres_kernel[(samples * blocks,)](g, *tensors, saved, gmu, *sizes, blocks, **tile)
    return gpoints, gmu, gweight, part.sum(1) if want_sigma else part
