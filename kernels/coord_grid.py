"""Coordinate networks on grids: coordinates made in registers, all layers on chip, patches gathered tile by tile.

The layers are those of target_net.py's mlp_kernel; here they begin with the first layer on coordinates, which are
computed and multiplied in float32 whatever theta's type, and residuals keep a value in registers. What does not fit on
chip (a first, last or kept width beyond NARROW, wide widths as neighbours, more than three axes) goes layer by layer,
in chunks (coord_grid_chain.py), and so do backward and moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperfast.plan_steps import ACTIVATE, CLOSE, LINEAR, OPEN, Steps
from hyperfast.reference.coord_grid import Geometry, Patches, grid_points

from .common import TRITON_TYPES, activate, dot_precision, is_amd, is_blackwell, power_of_two, unit_columns
from .coord_grid_chain import chunks, inputs_of, outputs_of, patch_chunks, patch_points, window_weights
from .target_net import NARROW, MLPConfig, _biases, _through_wide, _whole

_LINEAR, _ACTIVATE, _OPEN = tl.constexpr(LINEAR), tl.constexpr(ACTIVATE), tl.constexpr(OPEN)
_CLOSE = tl.constexpr(CLOSE)
# Pixels of a tile of the image along x; it has rows for the rest of a program's points. Speed not measured.
TILE = 8
# Patches that a program looks at together to find those that meet its tile.
SEEN = 128


# ---- on chip ----------------------------------------------------------------------------------------


@triton.jit
def _add_input(acc, value, weight, INPUT, OUT: tl.constexpr, IN: tl.constexpr, PAD: tl.constexpr):
    """acc [ROWS, PAD] + value * W[:, INPUT]; value [ROWS] or one number."""
    o = tl.arange(0, PAD)
    w = tl.load(weight + o * IN + INPUT, o < OUT, 0.0).to(tl.float32)
    return acc + value * w[None, :]


@triton.jit
def _start(theta_at, extra_at, EXTRAS, ROWS: tl.constexpr, AXES: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr,
           WEIGHT: tl.constexpr, BIAS: tl.constexpr, HAS_BIAS: tl.constexpr):  # fmt: skip
    """[ROWS, PAD[1]]: the first layer's bias, and what extra adds to every point."""
    OUT: tl.constexpr = PAD[1]  # Triton 3.6 takes no PAD[1] in a shape
    acc = tl.zeros((ROWS, OUT), tl.float32) + _biases(theta_at + BIAS[0], 0, W[1], OUT, HAS_BIAS[0])
    for e in range(0, EXTRAS):
        value = tl.load(extra_at + e)
        acc = _add_input(acc, value, theta_at + WEIGHT[0], AXES + e, W[1], W[0], OUT)
    return acc


@triton.jit
def _steps(h, theta_at, S: tl.constexpr, KIND: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr,
           WEIGHT: tl.constexpr, BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr, PARAM: tl.constexpr,
           DEPTH: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """All steps after the first layer's products: [ROWS, PAD[1]] -> [ROWS, PAD[S]]. Two residuals may be open at once."""
    h = activate(h, ACT[0], PARAM[0])
    outer = h
    inner = h
    for s in tl.static_range(1, S):
        if KIND[s] == _OPEN:
            if DEPTH[s] == 0:
                outer = h
            else:
                inner = h
        elif KIND[s] == _CLOSE:
            h = activate((outer if DEPTH[s] == 0 else inner) + h, ACT[s], PARAM[s])
        elif KIND[s] == _ACTIVATE:
            h = activate(h, ACT[s], PARAM[s])
        elif WIDE[s]:
            pass  # done together with the layer before
        elif not WIDE[s + 1]:
            h = _whole(h, theta_at + WEIGHT[s], theta_at + BIAS[s], W[s], W[s + 1], PAD[s], PAD[s + 1], HAS_BIAS[s],
                       ACT[s], PARAM[s], DOT, PRECISION)  # fmt: skip
        else:
            h = _through_wide(h, theta_at + WEIGHT[s], theta_at + BIAS[s], theta_at + WEIGHT[s + 1],
                              theta_at + BIAS[s + 1], W[s], W[s + 1], W[s + 2], PAD[s], PAD[s + 2], HAS_BIAS[s],
                              HAS_BIAS[s + 1], ACT[s], PARAM[s], ACT[s + 1], PARAM[s + 1], CHUNK, DOT,
                              PRECISION)  # fmt: skip
    return h


@triton.jit
def _centre(index, size):
    """Coordinate of a pixel's centre: one rounding."""
    return (2 * index + 1 - size).to(tl.float32) / size


@triton.jit
def grid_kernel(
    theta, extra, y, N, EXTRAS, theta_row, y_network, size_0, size_1, size_2, AXES: tl.constexpr, ROWS: tl.constexpr,
    S: tl.constexpr, KIND: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr, WIDE: tl.constexpr, WEIGHT: tl.constexpr,
    BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr, PARAM: tl.constexpr, DEPTH: tl.constexpr,
    CHUNK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: ROWS points of one network's grid. Nothing but its outputs leaves the chip.

    Reads P of theta (once from memory, for further blocks from L2) and E of extra, writes ROWS*O of y. FLOPs:
    2*ROWS*sum(in*out).
    """
    blocks = tl.cdiv(N, ROWS)
    network = (tl.program_id(0) // blocks).to(tl.int64)
    n = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    theta_at = theta + network * theta_row
    h = _start(theta_at, extra + network * EXTRAS, EXTRAS, ROWS, AXES, W, PAD, WEIGHT, BIAS, HAS_BIAS)
    # The last axis is the fastest: size_0 belongs to it, size_1 to the one before.
    rest = n
    for axis in tl.static_range(AXES):
        if axis == 0:
            size = size_0
        elif axis == 1:
            size = size_1
        else:
            size = size_2
        value = _centre(rest % size, size)
        h = _add_input(h, value[:, None], theta_at + WEIGHT[0], AXES - 1 - axis, W[1], W[0], PAD[1])
        rest = rest // size
    h = _steps(h, theta_at, S, KIND, W, PAD, WIDE, WEIGHT, BIAS, HAS_BIAS, ACT, PARAM, DEPTH, CHUNK, DOT, PRECISION)
    o = tl.arange(0, PAD[S])
    at = y + network * y_network + n.to(tl.int64)[:, None] * W[S] + o[None, :]
    tl.store(at, h.to(y.dtype.element_ty), (n < N)[:, None] & (o < W[S])[None, :])


@triton.jit
def _from_centre(pixel, centre, step):
    """(pixel - centre) * step for a centre of two floats, a whole number and the rest: the error is relative to |u|."""
    return (pixel.to(tl.float32) - tl.load(centre) - tl.load(centre + 1)) * step


@triton.jit
def render_kernel(
    theta, extra, stored, rects, centres, rows, columns, image, total, COUNT, EXTRAS, theta_row, stored_patch, stored_row, HEIGHT, WIDTH,
    step_u, step_v, rows_patch, columns_patch, BEFORE, DIVIDE: tl.constexpr, FUSED: tl.constexpr, ROWS: tl.constexpr,
    SEEN: tl.constexpr, TILE: tl.constexpr, S: tl.constexpr, KIND: tl.constexpr, W: tl.constexpr, PAD: tl.constexpr,
    WIDE: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, HAS_BIAS: tl.constexpr, ACT: tl.constexpr,
    PARAM: tl.constexpr, DEPTH: tl.constexpr, CHUNK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a tile of ROWS // TILE x TILE pixels of the image, gathered from the patches that meet it, in order.

    FUSED: a patch's network is evaluated for the tile, on chip; else its outputs are read from stored [COUNT, rows,
    columns, O]. BEFORE: whether image and total hold the sums of earlier patches; DIVIDE: whether these are the last.
    rows and columns hold the windows of every patch along its axes. Reads the rectangles of all patches, and of those
    that meet the tile P of theta (from L2) or ROWS*O of stored; writes ROWS*O of the image and ROWS of total. FLOPs:
    2*ROWS*sum(in*out) for every patch that meets the tile.
    """
    tiles_x = tl.cdiv(WIDTH, TILE)
    first_row = (tl.program_id(0) // tiles_x) * (ROWS // TILE)
    first_column = (tl.program_id(0) % tiles_x) * TILE
    i = first_row + tl.arange(0, ROWS) // TILE
    j = first_column + tl.arange(0, ROWS) % TILE
    OUT: tl.constexpr = PAD[S]  # Triton 3.6 takes no PAD[S] in a shape
    o = tl.arange(0, OUT)
    on_image = (i < HEIGHT) & (j < WIDTH)
    pixel = i.to(tl.int64) * WIDTH + j
    image_at = image + o.to(tl.int64)[None, :] * HEIGHT * WIDTH + pixel[:, None]
    inside_image = on_image[:, None] & (o < W[S])[None, :]
    acc = tl.zeros((ROWS, OUT), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    if BEFORE != 0:
        acc += tl.load(image_at, inside_image, 0.0)
        weight += tl.load(total + pixel, on_image, 0.0)
    for start in range(0, COUNT, SEEN):
        patch = start + tl.arange(0, SEEN)
        there = patch < COUNT
        meets = there & (tl.load(rects + 4 * patch, there, 0) < first_row + ROWS // TILE)
        meets &= tl.load(rects + 4 * patch + 1, there, 0) > first_row
        meets &= tl.load(rects + 4 * patch + 2, there, 0) < first_column + TILE
        meets &= tl.load(rects + 4 * patch + 3, there, 0) > first_column
        number = tl.min(tl.where(meets, patch, COUNT), 0)
        while number < COUNT:
            network = number.to(tl.int64)
            top, bottom = tl.load(rects + 4 * network), tl.load(rects + 4 * network + 1)
            left, right = tl.load(rects + 4 * network + 2), tl.load(rects + 4 * network + 3)
            u = _from_centre(i - top, centres + 4 * network, step_u)
            v = _from_centre(j - left, centres + 4 * network + 2, step_v)
            covered = (i >= top) & (i < bottom) & (j >= left) & (j < right)
            if FUSED:
                theta_at = theta + network * theta_row
                h = _start(theta_at, extra + network * EXTRAS, EXTRAS, ROWS, 2, W, PAD, WEIGHT, BIAS, HAS_BIAS)
                h = _add_input(h, u[:, None], theta_at + WEIGHT[0], 0, W[1], W[0], PAD[1])
                h = _add_input(h, v[:, None], theta_at + WEIGHT[0], 1, W[1], W[0], PAD[1])
                h = _steps(h, theta_at, S, KIND, W, PAD, WIDE, WEIGHT, BIAS, HAS_BIAS, ACT, PARAM, DEPTH, CHUNK, DOT,
                           PRECISION)  # fmt: skip
            else:
                at = (
                    stored
                    + network * stored_patch
                    + (i - top)[:, None] * stored_row
                    + (j - left)[:, None] * W[S]
                    + o[None, :]
                )
                h = tl.load(at, covered[:, None] & (o < W[S])[None, :], 0.0).to(tl.float32)
            w = tl.load(rows + network * rows_patch + i - top, covered, 0.0)
            w *= tl.load(columns + network * columns_patch + j - left, covered, 0.0)
            acc += tl.where(covered[:, None], w[:, None] * h, 0.0)
            weight += w
            number = tl.min(tl.where(meets & (patch > number), patch, COUNT), 0)
    if DIVIDE:
        acc /= tl.where(weight > 0, weight, 1.0)[:, None]
    tl.store(image_at, acc, inside_image)
    tl.store(total + pixel, weight, on_image)


# ---- launchers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """What a kernel takes of a network: its steps as constants, and whether they fit on chip."""

    steps: Steps
    widths: tuple[int, ...]
    depths: tuple[int, ...]

    @classmethod
    def of(cls, steps: Steps) -> Program:
        depths, depth = [], 0
        for step in steps.steps:
            depth -= step.kind == CLOSE
            depths.append(depth)
            depth += step.kind == OPEN
        return cls(steps, (steps.inputs, *(step.outputs for step in steps.steps)), tuple(depths))

    def fits(self, axes: int) -> bool:
        """Whether every wide width is one that _through_wide streams, and two residuals at most are open at once."""
        steps, wide = self.steps.steps, [width > NARROW for width in self.widths]
        nested = any(step.kind == OPEN and depth > 1 for step, depth in zip(steps, self.depths, strict=True))
        if axes > 3 or nested or steps[0].kind != LINEAR or wide[1]:
            return False
        s = 1
        while s < len(steps):
            if steps[s].kind != LINEAR or not wide[s + 1]:
                s += 1  # and its input is narrow, as everything before fits
            elif s + 1 < len(steps) and steps[s + 1].kind == LINEAR and not wide[s + 2]:
                s += 2
            else:
                return False
        return True

    def constants(self, dot: torch.dtype) -> dict[str, object]:
        weights, biases, at = [], [], 0
        for step in self.steps.steps:
            weights.append(at)
            biases.append(at + step.inputs * step.outputs if step.kind == LINEAR else at)
            at += step.num_weights
        steps = self.steps.steps
        return {
            "S": len(steps), "KIND": tuple(s.kind for s in steps), "W": self.widths,
            "PAD": tuple(min(power_of_two(w), NARROW) for w in self.widths),
            "WIDE": tuple(w > NARROW for w in self.widths), "WEIGHT": tuple(weights), "BIAS": tuple(biases),
            "HAS_BIAS": tuple(s.bias for s in steps), "ACT": tuple(s.activation.code for s in steps),
            "PARAM": tuple(s.activation.parameter for s in steps), "DEPTH": self.depths, "CHUNK": NARROW,
            "DOT": TRITON_TYPES[dot], "PRECISION": dot_precision(dot),
        }  # fmt: skip


def _grid_config(points: int, dot: torch.dtype) -> MLPConfig:
    """That of mlp_kernel; in strict float32 with 4 warps before Blackwell, where 8 spill 24 bytes on sm_80. Speed not measured."""
    config = MLPConfig.for_shape(points, dot)
    strict = dot == torch.float32 and dot_precision(dot) == "ieee"
    return replace(config, num_warps=4) if strict and not is_blackwell() else config


def _render_config(dot: torch.dtype) -> MLPConfig:
    """That of mlp_kernel for 64 points, less where it spills on NVIDIA: strict float32 (up to 16 bytes) and 16 bits on
    Blackwell (28 to 32) take fewer points, TF32 (4 to 140) one stage. Speed not measured."""
    config = MLPConfig.for_shape(64, dot)
    if is_amd():
        return config
    if dot != torch.float32:
        return replace(config, block_rows=32) if is_blackwell() else config
    return MLPConfig(16, 4, 2) if dot_precision(dot) == "ieee" else replace(config, num_stages=1)


def _extras(extra: Tensor | None) -> int:
    return 0 if extra is None else extra.shape[1]


def grid_eval(theta: Tensor, extra: Tensor | None, rects, starts, sizes: Sequence[int], geometry, steps: Steps):
    """(y [B, N, O], nothing kept) of kind eval."""
    networks, points = theta.shape[0], 1
    for size in sizes:
        points *= size
    y = theta.new_empty(networks, points, steps.outputs)
    if y.numel() == 0:
        return y, theta.new_empty(0)
    theta, program = unit_columns(theta), Program.of(steps)
    extra = None if extra is None else extra.contiguous()
    if not program.fits(len(sizes)):
        x = grid_points(sizes, torch.float32, theta.device)
        for some, part in chunks(networks, points, steps):
            some_extra = None if extra is None else extra[some]
            y[some, part] = outputs_of(theta[some], inputs_of(x[part], some_extra), steps)
        return y, theta.new_empty(0)
    config = _grid_config(points, theta.dtype)
    fastest = (*reversed(sizes), 1, 1)[:3]
    grid_kernel[(networks * triton.cdiv(points, config.block_rows),)](
        theta, theta if extra is None else extra, y, points, _extras(extra), theta.stride(0), y.stride(0), *fastest,
        AXES=len(sizes), ROWS=config.block_rows, **program.constants(theta.dtype), num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    return y, theta.new_empty(0)


def grid_moments(theta: Tensor, extra: Tensor | None, rects, starts, sizes: Sequence[int], geometry, steps: Steps):
    """(mean and biased variance [B,2,O], nothing kept) of kind moments."""
    networks, points = theta.shape[0], 1
    for size in sizes:
        points *= size
    y = theta.new_full((networks, 2, steps.outputs), torch.nan, dtype=torch.float32)
    theta, x = unit_columns(theta), grid_points(sizes, torch.float32, theta.device)
    done = 0
    for some, part in chunks(networks, points, steps):
        h = outputs_of(theta[some], inputs_of(x[part], None if extra is None else extra[some]), steps)
        var, mean = torch.var_mean(h, 1, correction=0)
        if part.start == 0:
            y[some, 0], y[some, 1], done = mean, var, h.shape[1]
            continue
        share, difference = h.shape[1] / (done + h.shape[1]), mean - y[some, 0]
        y[some, 0] += difference * share
        y[some, 1] += (var - y[some, 1]) * share + difference.square() * (share * (1 - share))
        done += h.shape[1]
    return y, theta.new_empty(0)


def grid_render(
    theta: Tensor,
    extra: Tensor | None,
    rects: Tensor,
    starts: Tensor,
    sizes: Sequence[int],
    geometry: Sequence[float],
    steps: Steps,
):
    """(image [C,H,W], sum of weights [H,W]) of kind render."""
    height, width = sizes
    image = theta.new_zeros(steps.outputs, height, width, dtype=torch.float32)
    total = theta.new_zeros(height, width, dtype=torch.float32)
    if total.numel() == 0 or theta.shape[0] == 0:
        return image, total
    patches = Patches(rects.contiguous(), starts)
    shared = Geometry(geometry[0], geometry[1], int(geometry[2]))
    theta, program = unit_columns(theta), Program.of(steps)
    extra = None if extra is None else extra.contiguous()
    if program.fits(2):
        _render(theta, extra, theta, patches, image, total, shared, program, True, False, True)
        return image, total
    every = list(patch_chunks(theta.shape[0], shared, steps))
    for some in every:
        mine = Patches(patches.rects[some], patches.starts[some])
        x = patch_points(mine, shared, None if extra is None else extra[some])
        y = outputs_of(theta[some], x.flatten(1, 2), steps).unflatten(1, x.shape[1:3])
        _render(theta, None, y, mine, image, total, shared, program, False, some.start > 0, some is every[-1])
    return image, total


def _render(theta: Tensor, extra: Tensor | None, stored: Tensor, patches: Patches, image: Tensor, total: Tensor,
            geometry: Geometry, program: Program, fused: bool, before: bool, last: bool) -> None:  # fmt: skip
    """One launch of render_kernel over the whole image."""
    config = _render_config(theta.dtype)
    height, width = total.shape
    # Pixels from a patch's corner to u = 0 and to v = 0.
    zero = torch.stack([-patches.starts[:, 0] / geometry.step_u, -patches.starts[:, 1] / geometry.step_v], 1)
    centres = torch.stack([zero.round(), zero - zero.round()], -1).float()
    windows, constants = window_weights(patches, geometry), program.constants(theta.dtype)
    if not fused:  # only outputs are read, all of them
        constants["PAD"] = tuple(power_of_two(w) for w in program.widths)
    tiles = triton.cdiv(height, config.block_rows // TILE) * triton.cdiv(width, TILE)
    render_kernel[(tiles,)](
        theta, theta if extra is None else extra, stored, patches.rects, centres, *windows, image, total, patches.rects.shape[0],
        _extras(extra), theta.stride(0), stored.stride(0), stored.stride(1), height, width, geometry.step_u, geometry.step_v,
        *(window.stride(0) for window in windows), int(before), DIVIDE=last, FUSED=fused, ROWS=config.block_rows, SEEN=SEEN,
        TILE=TILE, **constants, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
