"""Coordinate networks layer by layer, in chunks of networks and points: batched products with fused epilogues.

A step's value is held before its activation, which the next product applies as it reads (kernels/product.py), so that
backward has what it needs. Values are float32; products take operands in theta's type, but the first layer's, whose
coordinates keep float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from hyperfast.plan import IDENTITY, Activation
from hyperfast.plan_steps import ACTIVATE, CLOSE, LINEAR, OPEN, Steps
from hyperfast.reference.coord_grid import Geometry, Patches, window_weight
from hyperfast.reference.target_net import activate

from .product import Operand, operand, product
from .target_net import gate_kernel

# Values that a chunk may hold at once, 256 MiB of them.
CHUNK = 1 << 26


@dataclass(frozen=True)
class Value:
    """h = activation(tensor); tensor [B,N,F]."""

    tensor: Tensor
    activation: Activation = IDENTITY

    def applied(self) -> Tensor:
        return activate(self.activation, self.tensor)


@dataclass(frozen=True)
class Weights:
    """Those of one LINEAR step, where they lie in rows of theta."""

    weight: Operand
    bias: tuple[Tensor, int] | None


def _weights(theta: Tensor, steps: Steps) -> list[Weights | None]:
    found: list[Weights | None] = []
    at = 0
    for step in steps.steps:
        if step.kind != LINEAR:
            found.append(None)
            continue
        end = at + step.inputs * step.outputs
        weight = Operand(theta[:, at:end], (theta.stride(0), step.inputs, 1))
        found.append(Weights(weight, (theta[:, end:], theta.stride(0)) if step.bias else None))
        at += step.num_weights
    return found


def _dot(theta: Tensor, steps: Steps, s: int) -> torch.dtype:
    """The operand type of step s: coordinates keep float32."""
    first = all(step.kind != LINEAR for step in steps.steps[:s])
    return torch.float32 if first else theta.dtype


# ---- chunks -----------------------------------------------------------------------------------------


def _points_at_once(steps: Steps) -> int:
    width = steps.inputs + sum(2 * step.outputs for step in steps.steps)
    return max(1, CHUNK // width)


def chunks(networks: int, points: int, steps: Steps) -> Iterator[tuple[slice, slice]]:
    """(networks, points) of each chunk; all points of some networks before the next. Which points depends on B not."""
    if points == 0:
        return
    at_once = _points_at_once(steps)
    some = max(1, at_once // points)
    for b in range(0, networks, some):
        for n in range(0, points, at_once):
            yield slice(b, min(b + some, networks)), slice(n, min(n + at_once, points))


def patch_sizes(geometry: Geometry) -> tuple[int, int]:
    """Rows and columns that a patch may cover: one more than its size where a comparison is off by a rounding."""
    return math.ceil(2 / geometry.step_u) + 1, math.ceil(2 / geometry.step_v) + 1


def patch_chunks(patches: int, geometry: Geometry, steps: Steps) -> Iterator[slice]:
    """Some whole patches at a time."""
    some = max(1, _points_at_once(steps) // math.prod(patch_sizes(geometry)))
    for n in range(0, patches, some):
        yield slice(n, min(n + some, patches))


# ---- points -----------------------------------------------------------------------------------------


def inputs_of(x: Tensor, extra: Tensor | None) -> Tensor:
    """Points [N,axes] and extra [B,E] -> [B,N,axes + E]; without extra [N,axes], for all networks."""
    if extra is None:
        return x
    return torch.cat([x.expand(extra.shape[0], *x.shape), extra.unsqueeze(1).expand(-1, x.shape[0], -1)], -1)


def window_weights(patches: Patches, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """[n, rows] and [n, columns] float32: each patch's window along its axes. Forward and backward have the same bits."""
    weights = []
    for axis, count in enumerate(patch_sizes(geometry)):
        along = torch.arange(count, device=patches.starts.device, dtype=torch.float64)
        u = patches.starts[:, axis, None] + along * geometry[axis]
        weights.append(window_weight(u, geometry.window).float())
    return weights[0], weights[1]


def patch_points(patches: Patches, geometry: Geometry, extra: Tensor | None) -> Tensor:
    """[n, rows, columns, 2 + E] float32: inputs at patch_sizes(geometry) pixels from each patch's corner."""
    rows, columns = patch_sizes(geometry)
    along = lambda count: torch.arange(count, device=patches.starts.device, dtype=torch.float64)
    u = (patches.starts[:, :1] + along(rows) * geometry.step_u).float()
    v = (patches.starts[:, 1:] + along(columns) * geometry.step_v).float()
    n = u.shape[0]
    axes = [u[:, :, None].expand(n, rows, columns), v[:, None, :].expand(n, rows, columns)]
    if extra is not None:
        axes += [e.view(n, 1, 1).expand(n, rows, columns) for e in extra.unbind(1)]
    return torch.stack(axes, -1)


# ---- forward ----------------------------------------------------------------------------------------


def values_of(theta: Tensor, x: Tensor, steps: Steps) -> list[Value]:
    """The value before each step, and the last: x [B,N,I] or [N,I]."""
    values, kept = [Value(x)], []
    networks, rows = theta.shape[0], x.shape[-2]
    for s, (step, weights) in enumerate(zip(steps.steps, _weights(theta, steps), strict=True)):
        h = values[-1]
        if weights is not None:
            z = theta.new_empty(networks, rows, step.outputs, dtype=torch.float32)
            shape = networks, rows, step.outputs, step.inputs
            product(
                operand(h.tensor), weights.weight.T, operand(z), shape, _dot(theta, steps, s), a_act=h.activation,
                bias=weights.bias,
            )  # fmt: skip
            values.append(Value(z, step.activation))
        elif step.kind == OPEN:
            kept.append(h)
            values.append(h)
        elif step.kind == CLOSE:
            values.append(Value(kept.pop().applied() + h.applied(), step.activation))
        elif step.kind == ACTIVATE:
            values.append(Value(h.applied(), step.activation))
    return values


def outputs_of(theta: Tensor, x: Tensor, steps: Steps) -> Tensor:
    """[B,N,O] float32."""
    y = values_of(theta, x, steps)[-1].applied()
    return y if y.dim() == 3 else y.expand(theta.shape[0], *y.shape)


# ---- backward ---------------------------------------------------------------------------------------


def back_through(gy: Tensor, theta: Tensor, values: list[Value], steps: Steps, gtheta: Tensor | None,
                 want_inputs: bool) -> Tensor | None:  # fmt: skip
    """Gradients from gy [B,N,O] float32: written to gtheta [B,P], and returned [B,N,I] with want_inputs.

    Deterministic: every sum has one program and one order.
    """
    weights, kept = _weights(theta, steps), []
    targets = None if gtheta is None else _weights(gtheta, steps)
    g, gated = gy, False  # gated: g is the gradient of the value's tensor, not of its activation
    networks, rows = gy.shape[:2]
    first = next((s for s, step in enumerate(steps.steps) if step.kind == LINEAR), -1)
    for s in reversed(range(len(steps.steps))):
        step, w, h, out = steps.steps[s], weights[s], values[s], values[s + 1]
        if step.kind == OPEN:
            g = g + kept.pop()
            continue
        if not gated:
            g = _gated(g, out)
        gated = False
        if step.kind == CLOSE:
            kept.append(g)
        elif w is not None:
            if targets is not None and (target := targets[s]) is not None:
                shape = networks, step.outputs, step.inputs, rows
                product(
                    operand(g).T, operand(h.tensor), target.weight, shape, _dot(theta, steps, s),
                    b_act=h.activation, sums=target.bias,
                )  # fmt: skip
            if s == first and not want_inputs:
                return None
            below = theta.new_empty(networks, rows, step.inputs, dtype=torch.float32)
            gated = s > 0 and steps.steps[s - 1].kind != OPEN
            product(
                operand(g), w.weight, operand(below), (networks, rows, step.inputs, step.outputs),
                _dot(theta, steps, s), gate=(h.tensor, h.activation) if gated else None,
            )  # fmt: skip
            g = below
    return g if want_inputs else None


def _gated(g: Tensor, value: Value) -> Tensor:
    """g * activation'(tensor)."""
    if value.activation == IDENTITY or g.numel() == 0:
        return g
    z = value.tensor.expand(g.shape).contiguous()
    out = torch.empty_like(z)
    gate_kernel[(triton.cdiv(z.numel(), 1024),)](
        g, z, out, z.numel(), z.shape[1], z.shape[2], g.stride(0), g.stride(1), ACT=value.activation.code,
        PARAM=value.activation.parameter, BLOCK=1024, num_warps=4,
    )  # fmt: skip
    return out
