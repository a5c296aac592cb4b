"""Backward of coordinate networks on grids: chunk by chunk through coord_grid_chain.py, with recomputation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hyperfast.plan_steps import Steps
from hyperfast.reference.coord_grid import Geometry, Patches, grid_points

from .common import unit_columns
from .coord_grid_chain import (
    Value,
    back_through,
    chunks,
    inputs_of,
    patch_chunks,
    patch_points,
    patch_sizes,
    values_of,
    window_weights,
)


class _Gradients:
    """Gradients of theta and extra, as chunks bring them in."""

    def __init__(self, theta: Tensor, extra: Tensor | None, steps: Steps, axes: int, wants: tuple[bool, bool]) -> None:
        want_theta, want_extra = wants
        self.steps, self.axes = steps, axes
        self.theta = theta.new_zeros(theta.shape if want_theta else (0,))
        wanted = extra.shape if extra is not None and want_extra else (0,)
        self.extra = theta.new_zeros(wanted, dtype=torch.float32)
        self.wants = want_theta, want_extra and extra is not None

    def take(self, gy: Tensor, values: list[Value], theta: Tensor, some: slice, whole: bool) -> None:
        """gy [B,N,O] of some networks; `whole`: these are all of their points."""
        target = None
        if self.wants[0]:
            target = self.theta[some] if whole else theta.new_zeros(theta[some].shape, dtype=torch.float32)
        gx = back_through(gy, theta[some], values, self.steps, target, self.wants[1])
        if target is not None and not whole:
            self.parts = target if some.start != getattr(self, "at", -1) else self.parts + target
            self.at = some.start
            self.theta[some] = self.parts.to(theta.dtype)
        if gx is not None:
            self.extra[some] += gx[..., self.axes :].sum(1)

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        return self.theta, self.extra


def _over_grid(theta: Tensor, extra: Tensor | None, sizes: Sequence[int], steps: Steps, wants: tuple[bool, bool],
               output_gradient) -> tuple[Tensor, Tensor]:  # fmt: skip
    """output_gradient(networks, points, last value) -> gy [B,N,O] float32 of a chunk."""
    points = math.prod(sizes)
    gradients = _Gradients(theta, extra, steps, len(sizes), wants)
    if not any(gradients.wants) or theta.shape[0] == 0 or points == 0:
        return gradients.both
    theta, x = unit_columns(theta), grid_points(sizes, torch.float32, theta.device)
    for some, part in chunks(theta.shape[0], points, steps):
        values = values_of(theta[some], inputs_of(x[part], None if extra is None else extra[some]), steps)
        gy = output_gradient(some, part, values[-1])
        gradients.take(gy, values, theta, some, part == slice(0, points))
    return gradients.both


def grid_eval_backward(
    gy: Tensor, kept, theta: Tensor, extra, rects, starts, sizes, geometry, steps: Steps, *wants: bool
) -> tuple[Tensor, Tensor]:
    """gy [B, N, O]: of kind eval."""
    return _over_grid(theta, extra, sizes, steps, wants, lambda some, part, value: gy[some, part].float())


def grid_moments_backward(
    gy: Tensor, kept: Tensor, theta: Tensor, extra, rects, starts, sizes, geometry, steps: Steps, *wants: bool
) -> tuple[Tensor, Tensor]:
    """mean = sum h / N, var = sum (h - mean)^2 / N: gh = (gmean + 2 (h - mean) gvar) / N."""
    points = math.prod(sizes)

    def output_gradient(some: slice, part: slice, value: Value) -> Tensor:
        h = value.applied()
        return (gy[some, :1] + 2 * (h - kept[some, :1]) * gy[some, 1:]) / points

    return _over_grid(theta, extra, sizes, steps, wants, output_gradient)


def grid_render_backward(
    gy: Tensor, kept: Tensor, theta: Tensor, extra, rects: Tensor, starts: Tensor, sizes, geometry, steps: Steps,
    *wants: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """gy [O,H,W] and the sums of weights [H,W]: of kind render."""
    gradients = _Gradients(theta, extra, steps, 2, wants)
    if not any(gradients.wants) or theta.shape[0] == 0 or math.prod(sizes) == 0:
        return gradients.both
    shared, theta = Geometry(geometry[0], geometry[1], int(geometry[2])), unit_columns(theta)
    for some in patch_chunks(theta.shape[0], shared, steps):
        patches = Patches(rects[some].long(), starts[some])
        x = patch_points(patches, shared, None if extra is None else extra[some])
        values = values_of(theta[some], x.flatten(1, 2), steps)
        gradients.take(_from_image(gy, kept, patches, shared), values, theta, some, True)
    return gradients.both


def _from_image(gimage: Tensor, total: Tensor, patches: Patches, geometry: Geometry) -> Tensor:
    """[n, points, O]: each patch's share of the gradient at the pixels that it covers, 0 elsewhere."""
    places = []
    for axis, (count, size) in enumerate(zip(patch_sizes(geometry), total.shape, strict=True)):
        first, end = patches.rects[:, 2 * axis, None], patches.rects[:, 2 * axis + 1, None]
        place = first + torch.arange(count, device=first.device)
        places.append((place.clamp(max=size - 1), place < end))
    (rows, on_rows), (columns, on_columns) = places
    covered = on_rows[:, :, None] & on_columns[:, None, :]
    index = rows[:, :, None], columns[:, None, :]
    along_rows, along_columns = window_weights(patches, geometry)
    weight = along_rows[:, :, None] * along_columns[:, None, :] / total[index]
    gy = torch.where(covered.unsqueeze(-1), weight.unsqueeze(-1) * gimage.permute(1, 2, 0)[index], 0.0)
    return gy.flatten(1, 2)
