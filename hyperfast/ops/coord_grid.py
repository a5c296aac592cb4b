"""Coordinate networks on grids: eval_grid and render_patches. Coordinates are made where they are needed.

How a call runs: check -> norms folded into the layers (coord_grid_norms.py) -> backend -> autograd.Function
(coord_grid_autograd.py) -> raw op of that backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..plan import DropoutStage, NormStage, Plan
from ..plan_steps import Steps, flat, inputs_of, steps_of
from ..reference import coord_grid as reference
from ..reference.coord_grid import WINDOWS, Geometry, Patches
from .checks import check_size, check_tensor, check_together, float32_under_autocast
from .coord_grid_autograd import run_grid, run_render
from .coord_grid_norms import Statistics, folded

backends.register("eval_grid", "cpp", "triton")
backends.register("render_patches", "cpp", "triton")
backends.register("coord_grid_dropout")


def eval_grid(
    theta: Tensor, net: Any, sizes: Sequence[int], extra: Tensor | None = None, *, stats: Statistics | None = None
) -> Tensor:
    """B coordinate networks on one grid: y[b, i, j, ...] = T(c_i, c_j, ..., extra[b]; theta[b]).

    c_i = (2 i + 1) / size - 1, the centres of `size` pixels in [-1, 1]. Coordinates are computed in float32 (float64 for
    float64) and never stored.

    Args:
        theta: [B,P].
        net: an hf.nn.TargetNet whose first layer takes len(sizes) + E numbers.
        sizes: points along each axis, one axis or more; (H, W) for an image. The first axis is the first input.
        extra: [E] or [B,E], further inputs that do not depend on the point.
        stats: as net(..., stats=): PerTargetNorm statistics in place of those of this grid.

    Returns:
        [B, *sizes, O] in theta's dtype; under autocast in float32. Differentiable in theta, extra, the norms' gamma and
        beta and stats, twice.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    sizes = _sizes(sizes)
    theta, extra = _checked(theta, net, len(sizes), extra)
    chosen = _select("eval_grid", net, theta)
    if chosen is None:
        x = reference.grid_points(sizes, theta.dtype, theta.device)
        return net(_with_extra(x, extra), theta, stats=stats).unflatten(1, sizes)
    weights, steps = _steps(theta, net, sizes, extra, stats, chosen)
    return run_grid("eval", weights, extra, sizes, steps, chosen).unflatten(1, sizes).to(theta.dtype)


def render_patches(
    theta: Tensor,
    net: Any,
    origins: Tensor,
    patch_size: float,
    out_size: tuple[int, int],
    scale: float | tuple[float, float],
    extra: Tensor | None = None,
    window: str = "hann",
    check: bool = True,
    *,
    stats: Statistics | None = None,
) -> Tensor:
    """One image from a network for each patch of it; where patches overlap, their weighted mean.

    Output pixel (i, j) lies at (y, x) = ((i + 1/2) / sy, (j + 1/2) / sx). A patch covers it if origin <= (y, x) <
    origin + patch_size (compared in float64); there its input is u = 2 (y - oy) / patch_size - 1, v alike, then extra,
    and its weight the product over u and v of (1 + cos(pi u)) / 2 + 1e-3 ("hann") or 1 ("flat"). No image of a single
    patch is stored. Patches are added up in their order: the result does not depend on the number of threads.

    Args:
        theta: [n,P], a network a patch.
        net: an hf.nn.TargetNet whose first layer takes 2 + E numbers.
        origins: [n,2], row and column of a patch's corner in low-resolution pixels, of any integer or floating dtype;
            may be negative, or whatever leaves the image. No gradient.
        patch_size: height and width of a patch in low-resolution pixels.
        out_size: (H, W) of the image.
        scale: output pixels a low-resolution pixel, any positive number, or (sy, sx).
        extra: [E] or [n,E], further inputs, such as the scale.
        window: "hann" or "flat".
        check: whether a pixel that no patch covers is an error; it is 0 otherwise. On a GPU the check reads back.
        stats: as net(..., stats=). Without it, a norm that takes statistics of its points takes them of the patch's own
            grid of round(patch_size * scale) pixels, wherever the patch lies and whatever of it is on the image.

    Returns:
        [C,H,W] in theta's dtype; under autocast in float32. Differentiable as eval_grid.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came; with `check` the first pixel that
        no patch covers.
    """
    size, scales = _sizes(out_size, "out_size", 2), _scale(scale)
    if isinstance(patch_size, bool) or not isinstance(patch_size, (int, float)) or not 0 < patch_size < math.inf:
        raise ValueError(f"patch_size must be a positive number; got {patch_size!r}")
    if window not in WINDOWS:
        raise ValueError(f"window must be one of {', '.join(WINDOWS)}; got {window!r}")
    theta, extra = _checked(theta, net, 2, extra)
    _check_origins(origins, theta)
    chosen = _select("render_patches", net, theta)
    if chosen is None:
        raise RuntimeError(
            "render_patches can't drop out features of patches: call net.eval(), or eval_grid for a grid of each network"
        )
    rects, starts = torch.ops.hyperfast.coord_grid_place(origins.detach(), patch_size, size, scales, bool(check))
    geometry = Geometry(2 / (scales[0] * patch_size), 2 / (scales[1] * patch_size), WINDOWS.index(window))
    grid = tuple(max(1, round(patch_size * s)) for s in scales)
    weights, steps = _steps(theta, net, grid, extra, stats, chosen)
    return run_render(weights, extra, Patches(rects, starts), size, geometry, steps, chosen).to(theta.dtype)


# ---- what a net compiles to -------------------------------------------------------------------------


def _steps(
    theta: Tensor, net: Any, grid: tuple[int, ...], extra: Tensor | None, stats: Statistics | None, chosen: str
) -> tuple[Tensor, Steps]:
    """theta and steps without norms. Statistics that are not given are taken on `grid`, a pass for each norm."""
    stages = net.plan.stages
    items = list(flat(stages, inputs_of(stages)))
    norms = [item.names[0] for item in items if isinstance(item, NormStage)]
    if stats is not None and set(stats) != set(norms):
        raise ValueError(f"stats must have the layers {norms}; got {list(stats)}")
    if not norms:
        return theta, steps_of(stages)

    def moments(theta: Tensor, steps: Steps) -> Tensor:
        return run_grid("moments", theta, extra, grid, steps, chosen)

    return folded(theta, items, net, stats, moments, math.prod(grid))


def _select(op: str, net: Any, theta: Tensor) -> str | None:
    """The backend of a call; None where nothing but net itself can run it."""
    dropout = any(isinstance(stage, DropoutStage) for _, stage in net.plan.leaves())
    if not (dropout and net.training):
        return backends.select(op, theta.device.type, theta.dtype)
    backends.select("coord_grid_dropout", theta.device.type, theta.dtype)
    return None


# ---- checks -----------------------------------------------------------------------------------------


def _checked(theta: Tensor, net: Any, axes: int, extra: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """theta, in float32 under autocast, and extra [B,E] in the type of sums."""
    plan = getattr(net, "plan", None)
    if not isinstance(plan, Plan):
        raise TypeError(f"net must be an hf.nn.TargetNet; got {type(net).__name__}")
    check_tensor("theta", theta, (2,), "[B,P]")
    check_size("theta", theta, 1, plan.num_weights, "net's number of weights")
    extras = 0
    if extra is not None:
        check_tensor("extra", extra, (1, 2), "[E] or [B,E]")
        if extra.dim() == 2:
            check_size("extra", extra, 0, theta.shape[0], "theta's first dimension")
        check_together(theta=theta, extra=extra)
        extras = extra.shape[-1]
    takes = inputs_of(plan.stages)
    if takes != axes + extras:
        raise ValueError(
            f"net must take {axes + extras} inputs, a coordinate for each of {axes} axes and extra's {extras}; it takes {takes}"
        )
    theta = float32_under_autocast(theta)
    if extra is None or not extras:
        return theta, None
    return theta, extra.to(reference.computed(theta.dtype)).expand(theta.shape[0], extras)


def _sizes(sizes: Sequence[int], name: str = "sizes", axes: int | None = None) -> tuple[int, ...]:
    good = isinstance(sizes, Sequence) and len(sizes) >= 1 and axes in (None, len(sizes))
    if not good or any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) or n < 0 for n in sizes):
        raise ValueError(f"{name} must be {axes or 'one or more'} whole numbers of at least 0; got {sizes!r}")
    if math.prod(sizes) >= 2**31:
        raise ValueError(f"{name} must have less than 2^31 points; got {sizes!r}")
    return tuple(sizes)


def _scale(scale: float | tuple[float, float]) -> tuple[float, float]:
    pair = tuple(scale) if isinstance(scale, (tuple, list)) else (scale, scale)
    if len(pair) != 2 or any(
        isinstance(s, bool) or not isinstance(s, (int, float)) or not 0 < s < math.inf for s in pair
    ):
        raise ValueError(f"scale must be a positive number, or two of them, (sy, sx); got {scale!r}")
    return float(pair[0]), float(pair[1])


def _check_origins(origins: Tensor, theta: Tensor) -> None:
    if not isinstance(origins, Tensor):
        raise TypeError(f"origins must be a tensor [n,2]; got {type(origins).__name__}")
    if origins.dim() != 2:
        raise ValueError(f"origins must have shape [n,2]; got {tuple(origins.shape)}")
    if origins.dtype == torch.bool or origins.is_complex():
        raise TypeError(f"origins must be of an integer or floating dtype; got {origins.dtype}")
    check_size("origins", origins, 0, theta.shape[0], "theta's first dimension")
    check_size("origins", origins, 1, 2, "row and column")
    if origins.device != theta.device:
        raise ValueError(f"tensors must be on one device; got theta: {theta.device}, origins: {origins.device}")


def _with_extra(x: Tensor, extra: Tensor | None) -> Tensor:
    """Points [N,axes] with extra [B,E] beside them: [B,N,axes + E]; without extra as they are."""
    if extra is None:
        return x
    x = x.expand(extra.shape[0], *x.shape)
    return torch.cat([x, extra.to(x.dtype).unsqueeze(1).expand(-1, x.shape[1], -1)], -1)
