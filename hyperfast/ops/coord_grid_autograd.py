"""The raw ops of coordinate grids, and their autograd. Three kinds share one schema:

    coord_grid_{kind}_{cpp,triton}(theta [B,P], extra [B,E] or None, rects, starts, sizes, geometry, steps, parameters)
        -> y, kept
    coord_grid_{kind}_backward_{cpp,triton}(gy, kept, theta, extra, rects, starts, sizes, geometry, steps, parameters,
        want_theta, want_extra) -> gtheta, gextra ([0] where not wanted)

    kind     y                                                       kept, which backward is given
    eval     [B, prod(sizes), O], theta's dtype                      nothing, [0]
    moments  [B,2,O] mean and biased variance over the grid, wide    y
    render   [O,H,W] image, wide; sizes = (H, W)                     [H,W] the sum of weights at each pixel

Wide is float32, or float64 for theta in float64; extra is wide. rects and starts: reference.coord_grid.Patches, None but
for render, as is geometry: reference.coord_grid.Geometry. steps and parameters: plan_steps.Steps as numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import native
from ..plan_steps import Steps
from ..reference import coord_grid as reference
from ..reference.coord_grid import Geometry, Patches, computed

_CALL = "Tensor theta, Tensor? extra, Tensor? rects, Tensor? starts, int[] sizes, float[] geometry, int[] steps, float[] parameters"
SCHEMA = f"({_CALL}) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = f"(Tensor gy, Tensor kept, {_CALL}, bool want_theta, bool want_extra) -> (Tensor, Tensor)"
KINDS = ("eval", "moments", "render")


def run_grid(
    kind: str, theta: Tensor, extra: Tensor | None, sizes: tuple[int, ...], steps: Steps, chosen: str
) -> Tensor:
    """eval or moments by backend `chosen`."""
    if chosen == "reference":
        return evaluate(kind, theta, extra, None, None, sizes, (), steps)
    return CoordGrid.apply(theta, extra, None, None, sizes, (), *steps.encode(), kind, chosen)[0]


def run_render(
    theta: Tensor,
    extra: Tensor | None,
    patches: Patches,
    out_size: tuple[int, ...],
    geometry: Geometry,
    steps: Steps,
    chosen: str,
) -> Tensor:
    """The image [C,H,W], wide, by backend `chosen`."""
    if chosen == "reference":
        return evaluate("render", theta, extra, *patches, out_size, geometry, steps)
    return CoordGrid.apply(theta, extra, *patches, out_size, tuple(geometry), *steps.encode(), "render", chosen)[0]


def evaluate(
    kind: str,
    theta: Tensor,
    extra: Tensor | None,
    rects: Tensor | None,
    starts: Tensor | None,
    sizes: Sequence[int],
    geometry: Sequence[float],
    steps: Steps,
) -> Tensor:
    """The reference of each kind: y."""
    if kind == "eval":
        return reference.eval_grid(theta, extra, sizes, steps)
    if kind == "moments":
        return reference.moments(theta, extra, sizes, steps)
    assert rects is not None  # render has them, as the schema says
    assert starts is not None
    shared = Geometry(geometry[0], geometry[1], int(geometry[2]))
    return reference.render(theta, extra, Patches(rects, starts), sizes, shared, steps)[0]


# ---- autograd ---------------------------------------------------------------------------------------


class CoordGrid(torch.autograd.Function):
    """apply(theta, extra, rects, starts, sizes, geometry, steps, parameters, kind, backend) -> (y, kept)."""

    @staticmethod
    def forward(theta, extra, rects, starts, sizes, geometry, steps, parameters, kind, chosen):
        op = getattr(torch.ops.hyperfast, f"coord_grid_{kind}_{chosen}")
        return op(theta, extra, rects, starts, sizes, geometry, steps, parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        theta, extra, rects, starts, *spec = inputs
        ctx.spec = spec
        ctx.mark_non_differentiable(output[1])
        kept = output[0] if spec[4] == "moments" else output[1]
        ctx.save_for_backward(kept, theta, extra, rects, starts)

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Tensor):
        wants = tuple(ctx.needs_input_grad[:2])
        gradients = CoordGridBackward.apply(gy, *ctx.saved_tensors, *ctx.spec, *wants)
        return *(g if want else None for g, want in zip(gradients, wants, strict=True)), *(None,) * 8

    @staticmethod
    def vmap(info: Any, in_dims: tuple, theta, extra, rects, starts, *spec):
        size = info.batch_size
        if spec[4] == "render":
            return _stacked(CoordGrid, size, in_dims, theta, extra, rects, starts, *spec)
        theta, extra = (_leading(t, dim, size) for t, dim in zip((theta, extra), in_dims[:2], strict=True))
        networks = theta.shape[1]
        extra = None if extra is None else extra.flatten(0, 1)
        y, kept = CoordGrid.apply(theta.flatten(0, 1), extra, rects, starts, *spec)
        return (y.unflatten(0, (size, networks)), kept), (0, None)


class CoordGridBackward(torch.autograd.Function):
    """Gradients of CoordGrid, themselves differentiable: fused forward, the reference behind it.

    apply(gy, kept, theta, extra, rects, starts, sizes, geometry, steps, parameters, kind, backend, want_theta,
    want_extra) -> (gtheta, gextra).
    """

    @staticmethod
    def forward(
        gy, kept, theta, extra, rects, starts, sizes, geometry, steps, parameters, kind, chosen, want_theta, want_extra
    ):
        op = getattr(torch.ops.hyperfast, f"coord_grid_{kind}_backward_{chosen}")
        return op(gy, kept, theta, extra, rects, starts, sizes, geometry, steps, parameters, want_theta, want_extra)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        gy, _, theta, extra, rects, starts, *spec = inputs
        ctx.spec = spec
        ctx.save_for_backward(gy, theta, extra, rects, starts)

    @staticmethod
    def backward(ctx: Any, *gg: Tensor):
        gy, theta, extra, rects, starts = ctx.saved_tensors
        sizes, geometry, steps, parameters, kind, _, *wants = ctx.spec
        program = Steps.decode(steps, parameters)
        inputs = (theta,) if extra is None else (theta, extra)
        wanted = [i for i in range(len(inputs)) if wants[i]]

        def forward(theta: Tensor, extra: Tensor | None = None) -> Tensor:
            return evaluate(kind, theta, extra, rects, starts, sizes, geometry, program)

        def gradients(gy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            _, pullback = torch.func.vjp(forward, *inputs)[:2]
            every = pullback(gy)
            return tuple(every[i] for i in wanted)

        _, pullback = torch.func.vjp(gradients, gy, *inputs)[:2]
        ggy, *found = pullback(tuple(gg[i] for i in wanted))
        found += [None] * (2 - len(found))
        return ggy, None, *found, *(None,) * 10

    @staticmethod
    def vmap(info: Any, in_dims: tuple, gy, kept, theta, extra, rects, starts, *spec):
        size = info.batch_size
        if spec[4] == "render":
            return _stacked(CoordGridBackward, size, in_dims, gy, kept, theta, extra, rects, starts, *spec)
        gy, theta, extra = (
            _leading(t, dim, size) for t, dim in zip((gy, theta, extra), (in_dims[0], *in_dims[2:4]), strict=True)
        )
        if spec[4] == "moments":
            kept = _leading(kept, in_dims[1], size).flatten(0, 1)
        folded = (None if t is None else t.flatten(0, 1) for t in (theta, extra))
        found = CoordGridBackward.apply(gy.flatten(0, 1), kept, *folded, rects, starts, *spec)
        return tuple(g.unflatten(0, (size, g.shape[0] // size)) for g in found), (0, 0)


def _leading(t: Tensor | None, dim: int | None, size: int) -> Any:
    """t with the vmapped dimension first, expanded where it has none."""
    if t is None:
        return None
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)


def _stacked(function: Any, size: int, in_dims: tuple, *args):
    """A call a sample."""
    results = [
        function.apply(*(a.select(dim, i) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)))
        for i in range(size)
    ]
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


# ---- raw ops ----------------------------------------------------------------------------------------

_library = torch.library.Library("hyperfast", "FRAGMENT")


def _place(origins, patch_size, out_size, scale, check):
    """Where patches lie; with `check`, an error for a pixel without a patch. One op, so that graphs can hold it."""
    patches, _ = reference.place_patches(origins, patch_size, out_size, scale)
    if check and math.prod(out_size):
        bare = (reference.count_of_patches(patches, out_size) == 0).flatten()
        if bare.any():
            place = divmod(int(bare.int().argmax()), out_size[1])
            raise ValueError(
                f"origins must cover every pixel of the image; no patch covers {int(bare.sum())} of "
                f"{tuple(out_size)} pixels, the first of them {place} (check=False makes them 0)"
            )
    return patches.rects, patches.starts


def _fake_place(origins, patch_size, out_size, scale, check):
    n = origins.shape[0]
    return origins.new_empty(n, 4, dtype=torch.int32), origins.new_empty(n, 2, dtype=torch.float64)


_library.define(
    "coord_grid_place(Tensor origins, float patch_size, SymInt[] out_size, float[] scale, bool check) -> (Tensor, Tensor)"
)
_library.impl("coord_grid_place", _place, "CompositeExplicitAutograd")
torch.library.register_fake("hyperfast::coord_grid_place", _fake_place, lib=_library)


def _registered(kind: str, backend: str) -> None:
    """Fakes and FLOP formulas of a kind's two raw ops."""

    def fake(theta, extra, rects, starts, sizes, geometry, steps, parameters):
        networks, outputs, wide = theta.shape[0], steps[-3], computed(theta.dtype)
        if kind == "eval":
            return theta.new_empty(networks, math.prod(sizes), outputs), theta.new_empty(0)
        if kind == "moments":
            return theta.new_empty(networks, 2, outputs, dtype=wide), theta.new_empty(0)
        return theta.new_empty(outputs, *sizes, dtype=wide), theta.new_empty(*sizes, dtype=wide)

    def fake_backward(gy, kept, theta, extra, *_):
        want_theta, want_extra = _[-2:]
        gextra = extra if extra is not None and want_extra else theta.new_empty(0, dtype=computed(theta.dtype))
        return theta.new_empty(theta.shape if want_theta else (0,)), gextra.new_empty(gextra.shape)

    def rows(theta, sizes, geometry) -> int:
        """Points of all networks; patches are counted whole, also where the image ends."""
        if kind == "render":
            return theta[0] * round(2 / geometry[0]) * round(2 / geometry[1])
        return theta[0] * math.prod(sizes)

    def flops(theta, extra, rects, starts, sizes, geometry, steps, parameters, **_) -> int:
        return rows(theta, sizes, geometry) * Steps.decode(steps, parameters).flops_per_row

    def flops_backward(gy, kept, theta, extra, rects, starts, sizes, geometry, steps, parameters, *wants, **_) -> int:
        """Recomputation and two products a layer, without the first one's to its inputs where extra is not wanted."""
        program = Steps.decode(steps, parameters)
        first = next((s for s in program.steps if s.num_weights), None)
        to_inputs = program.flops_per_row - (2 * first.inputs * first.outputs if first and not wants[1] else 0)
        each = program.flops_per_row * (1 + wants[0]) + to_inputs
        return rows(theta, sizes, geometry) * each

    for name, fake_of, flops_of in (
        (f"coord_grid_{kind}_{backend}", fake, flops),
        (f"coord_grid_{kind}_backward_{backend}", fake_backward, flops_backward),
    ):
        torch.library.register_fake(f"hyperfast::{name}", fake_of, lib=_library)
        register_flop_formula(getattr(torch.ops.hyperfast, name))(flops_of)


def _launcher(name: str, kind: str) -> Any:
    """A launcher of Triton kernels, imported where it is called: Triton may be missing."""
    from ..kernels import coord_grid, coord_grid_backward

    if name == "forward":
        return getattr(coord_grid, f"grid_{kind}")
    return getattr(coord_grid_backward, f"grid_{kind}_backward")


def _triton(kind: str) -> Any:
    def forward(theta, extra, rects, starts, sizes, geometry, steps, parameters):
        with torch.cuda.device_of(theta):  # Triton launches on the current device
            run = _launcher("forward", kind)
            return run(theta, extra, rects, starts, sizes, geometry, Steps.decode(steps, parameters))

    return forward


def _triton_backward(kind: str) -> Any:
    def backward(gy, kept, theta, extra, rects, starts, sizes, geometry, steps, parameters, *wants):
        with torch.cuda.device_of(theta):
            run = _launcher("backward", kind)
            program = Steps.decode(steps, parameters)
            return run(gy, kept, theta, extra, rects, starts, sizes, geometry, program, *wants)

    return backward


for _kind in KINDS:
    _library.define(f"coord_grid_{_kind}_triton" + SCHEMA)
    _library.define(f"coord_grid_{_kind}_backward_triton" + BACKWARD_SCHEMA)
    for _key in ("CPU", "CUDA", "XPU"):
        _library.impl(f"coord_grid_{_kind}_triton", _triton(_kind), _key)
        _library.impl(f"coord_grid_{_kind}_backward_triton", _triton_backward(_kind), _key)
    for _backend in ["triton"] + ["cpp"] * (native.WHY_NOT_LOADED is None):
        _registered(_kind, _backend)
