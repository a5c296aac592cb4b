"""Coordinate networks on grids, in plain PyTorch. Readability, not speed, is the goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plan_steps import ACTIVATE, LINEAR, OPEN, Steps
from .target_net import activate, batched_linear

WINDOWS = ("flat", "hann")
"""Kinds of window. The order is shared with csrc/coord_grid.h."""
HANN_FLOOR = 1e-3


class Geometry(NamedTuple):
    """What all patches share: steps of u and of v from pixel to pixel, and the index of the window."""

    step_u: float
    step_v: float
    window: int


class Patches(NamedTuple):
    """Where patches lie on the image.

    rects [n,4] int32: top, bottom, left, right, the pixels that each covers being [top, bottom) x [left, right);
    starts [n,2] float64: u at row `top` and v at column `left`.
    """

    rects: Tensor
    starts: Tensor


# ---- points -----------------------------------------------------------------------------------------


def grid_points(sizes: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[prod(sizes), axes]: pixel centres (2 i + 1) / size - 1 of every axis, the last axis fastest."""
    axes = [(2 * torch.arange(n, device=device, dtype=torch.float64) + 1) / n - 1 for n in sizes]
    grids = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([g.reshape(-1) for g in grids], -1).to(dtype)


def place_patches(
    origins: Tensor, patch_size: float, out_size: Sequence[int], scale: tuple[float, float]
) -> tuple[Patches, Geometry]:
    """The pixels of each patch: those with origin <= ((i + 1/2) / s) < origin + patch_size, in each direction.

    origins [n,2]: row and column, in pixels before scaling. The window in the geometry is "flat".
    """
    edges, starts = [], []
    for axis in (0, 1):
        s, size, origin = scale[axis], out_size[axis], origins[:, axis].double()
        first = _first_pixel(origin, s).clamp(0, size)
        edges += [first, torch.maximum(_first_pixel(origin + patch_size, s).clamp(0, size), first)]
        starts.append(2 * ((first + 0.5) / s - origin) / patch_size - 1)
    geometry = Geometry(2 / (scale[0] * patch_size), 2 / (scale[1] * patch_size), WINDOWS.index("flat"))
    return Patches(torch.stack(edges, 1).int(), torch.stack(starts, 1)), geometry


def _first_pixel(origin: Tensor, scale: float) -> Tensor:
    """The first i with (i + 1/2) / scale >= origin, exactly as that comparison comes out in float64."""
    guess = (origin * scale - 0.5).floor() - 1
    failing = [((guess + k + 0.5) / scale < origin).double() for k in range(4)]
    return guess + sum(failing)


def count_of_patches(patches: Patches, out_size: Sequence[int]) -> Tensor:
    """[H,W] int32: the number of patches that cover each pixel."""
    corners = torch.zeros(out_size[0] + 1, out_size[1] + 1, dtype=torch.int32, device=patches.rects.device)
    top, bottom, left, right = patches.rects.long().unbind(1)
    one = torch.ones_like(top, dtype=torch.int32)
    for rows, columns, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        corners.index_put_((rows, columns), sign * one, accumulate=True)
    return corners.cumsum(0).cumsum(1)[:-1, :-1].int()


def window_weight(u: Tensor, window: int) -> Tensor:
    """1, or (1 + cos(pi u)) / 2 + 1e-3, the former as a square: it keeps its digits where it is small."""
    return torch.ones_like(u) if WINDOWS[window] == "flat" else torch.cos(0.5 * math.pi * u).square() + HANN_FLOOR


# ---- networks ---------------------------------------------------------------------------------------


def evaluate(x: Tensor, theta: Tensor, extra: Tensor | None, steps: Steps) -> Tensor:
    """[B,N,O], float32 at least: each of B networks on points x [N,axes], beside them extra [B,E] or nothing."""
    x = x.expand(theta.shape[0], *x.shape)
    if extra is not None:
        x = torch.cat([x, extra.unsqueeze(1).expand(-1, x.shape[1], -1).to(x.dtype)], -1)
    h, kept, at = x, [], 0
    for step in steps.steps:
        if step.kind == LINEAR:
            end = at + step.inputs * step.outputs
            weight = theta[:, at:end].unflatten(1, (step.outputs, step.inputs))
            at = end + step.outputs * step.bias
            h = batched_linear(h, weight, theta[:, end:at] if step.bias else None, step.activation)
        elif step.kind == ACTIVATE:
            h = activate(step.activation, h)
        elif step.kind == OPEN:
            kept.append(h)
        else:
            h = activate(step.activation, kept.pop() + h)
    return h


def computed(dtype: torch.dtype) -> torch.dtype:
    """The type of coordinates and sums: float32, or float64 for theta in float64."""
    return torch.promote_types(dtype, torch.float32)


def eval_grid(theta: Tensor, extra: Tensor | None, sizes: Sequence[int], steps: Steps) -> Tensor:
    """[B, prod(sizes), O] in theta's dtype."""
    x = grid_points(sizes, computed(theta.dtype), theta.device)
    return evaluate(x, theta, extra, steps).to(theta.dtype)


def moments(theta: Tensor, extra: Tensor | None, sizes: Sequence[int], steps: Steps) -> Tensor:
    """[B,2,O]: mean and biased variance of each output over the grid."""
    x = grid_points(sizes, computed(theta.dtype), theta.device)
    var, mean = torch.var_mean(evaluate(x, theta, extra, steps), dim=1, correction=0)
    return torch.stack([mean, var], 1)


def render(
    theta: Tensor, extra: Tensor | None, patches: Patches, out_size: Sequence[int], geometry: Geometry, steps: Steps
) -> tuple[Tensor, Tensor]:
    """(image [C,H,W], weight [H,W]): the weighted mean over the patches that cover a pixel, and the sum of weights.

    Patches are added up in their order; a pixel that none covers is 0.
    """
    dtype = computed(theta.dtype)
    height, width = out_size
    image, total = theta.new_zeros(steps.outputs, height, width, dtype=dtype), theta.new_zeros(out_size, dtype=dtype)
    for t in (theta, extra):  # the image depends on them, also where there is no patch
        image = image if t is None else image + t[:0].sum().to(dtype)
    for n, (top, bottom, left, right) in enumerate(patches.rects.tolist()):
        u, v = (
            start + step * torch.arange(count, device=theta.device, dtype=torch.float64)
            for start, step, count in zip(patches.starts[n], geometry[:2], (bottom - top, right - left), strict=True)
        )
        weight = (window_weight(u, geometry.window)[:, None] * window_weight(v, geometry.window)).to(dtype)
        points = torch.cartesian_prod(u, v).view(-1, 2).to(dtype)
        y = evaluate(points, theta[n : n + 1], None if extra is None else extra[n : n + 1], steps)[0]
        around = (left, width - right, top, height - bottom)
        image = image + F.pad(weight * y.t().unflatten(1, weight.shape), around)
        total = total + F.pad(weight, around)
    return image / torch.where(total > 0, total, 1), total


# ---- inputs of tests and benchmarks -----------------------------------------------------------------


def make_inputs(
    num_weights: int,
    networks: int,
    extras: int = 0,
    *,
    fan_in: int = 32,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """theta [B,P] about as large as layers of `fan_in` inputs have it, and extra [B,E] in [1, 4), None for E = 0.

    Drawn in float64 and then rounded, so that every dtype and device sees the same numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    theta = (torch.rand(networks, num_weights, generator=generator, dtype=torch.float64) * 2 - 1) * (3 / fan_in) ** 0.5
    extra = 1 + 3 * torch.rand(networks, extras, generator=generator, dtype=torch.float64)
    return theta.to(device, dtype), extra.to(device, dtype) if extras else None


def patch_grid(size: tuple[int, int], patch_size: int, stride: int) -> Tensor:
    """Origins [n,2] int64 of patches that cover an image of `size`, `stride` apart; the last ones end at its border."""
    axes = [sorted({*range(0, max(n - patch_size, 0), stride), max(n - patch_size, 0)}) for n in size]
    return torch.cartesian_prod(*map(torch.tensor, axes))
