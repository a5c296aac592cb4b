"""Convolution kernels assembled from generated tiles: all kernels of a model in one call.

The raw ops, for zs, one [rows,cols,Z] a kernel, and the four weights of the generator:

    tiled_conv_{cpp,triton}(zs, weights, penalty) -> kernels, one after the other [sum of their elements], in zs' dtype;
                                                     penalty [] float32 at least; [0] where it is not wanted
    tiled_conv_backward_{cpp,triton}(grads, gpenalty, kernels, zs, weights, want_zs, want_weights) -> gradients of zs
                                                     and weights; [0] where not wanted

grads and kernels: one a kernel; a gradient that is not there is [0], and so is gpenalty, without which the kernels
are not read and need not be given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backends, native
from ..reference import tiled_conv as reference
from ..reference.tiled_conv import Generator
from .checks import FLOATING, autocast, check_size, check_tensor, check_together

backends.register("assemble_kernels", "cpp", "triton")

_WEIGHTS = 4
_SHAPES = {
    "weight_in": "[N_in,d,Z]", "bias_in": "[N_in,d]", "weight_out": "[N_out,kh,kw,d]", "bias_out": "[N_out,kh,kw]",
}  # fmt: skip


def assemble_kernels(
    zs: Sequence[Tensor],
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
    penalty: bool = False,
) -> Any:
    """Kernels whose tiles a two-layer linear hypernetwork generates (Ha et al., section 3.1), all of them at once.

        a_i = W_i z + B_i        tile[o, i] = <W_out[o], a_i> + B_out[o]        (equation 2)

    for every z of a kernel; tiles lie side by side, rows of them along the inputs, columns along the outputs (equation
    3), in the layout of torch.nn.Conv2d.weight.

    Args:
        zs: for every kernel its embeddings [rows,cols,Z], one a tile.
        weight_in, bias_in: W [N_in,d,Z] and B [N_in,d].
        weight_out, bias_out: W_out [N_out,kh,kw,d] and B_out [N_out,kh,kw]. All weights have one dtype.
        penalty: also return the penalty.

    Returns:
        For every kernel [cols * N_out, rows * N_in, kh, kw] in zs' dtype (under autocast in its dtype, as nn.Linear),
        a list; with `penalty` also [], float32 at least: the sum of the squares of all their elements, from the same
        pass. Differentiable in all tensors, twice. The kernels are parts of one block of memory.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    generator = Generator(weight_in, bias_in, weight_out, bias_out)
    _check(zs, generator)
    tensors = autocast(weight_in.device.type, *generator, *zs)
    data = tensors[_WEIGHTS].dtype if zs else tensors[0].dtype
    chosen = backends.select("assemble_kernels", weight_in.device.type, data, tensors[0].dtype)
    if chosen == "reference":
        kernels, squares = evaluate(tensors)
    else:
        *kernels, squares = TiledConv.apply(chosen, bool(penalty), *tensors)
    return (kernels, squares) if penalty else kernels


def _check(zs: Sequence[Tensor], g: Generator) -> None:
    if isinstance(zs, Tensor) or not isinstance(zs, Sequence):
        raise TypeError(f"zs must be a sequence of tensors [rows,cols,Z]; got {type(zs).__name__}")
    for name, weight in g._asdict().items():
        check_tensor(name, weight, (_SHAPES[name].count(",") + 1,), _SHAPES[name])
    n_in, d, embedding = g.weight_in.shape
    for dim, size in enumerate((n_in, d)):
        check_size("bias_in", g.bias_in, dim, size, "weight_in's")
    check_size("weight_out", g.weight_out, 3, d, "weight_in's d")
    for dim, size in enumerate(g.weight_out.shape[:3]):
        check_size("bias_out", g.bias_out, dim, size, "weight_out's")
    # A model has dozens of kernels, and a call takes a millisecond: names are made of what may be wrong alone.
    for i, z in enumerate(zs):
        if not isinstance(z, Tensor) or z.dim() != 3 or z.shape[2] != embedding or z.dtype not in FLOATING:
            check_tensor(f"zs[{i}]", z, (3,), "[rows,cols,Z]")
            check_size(f"zs[{i}]", z, 2, embedding, "weight_in's Z")
    if len({(t.dtype, t.device) for t in (*zs, *g)}) == 1:
        return
    check_together(**{f"zs[{i}]": z for i, z in enumerate(zs)}, **g._asdict())
    for what, tensors in (("zs", zs), ("weights", g)):
        if len(dtypes := {t.dtype for t in tensors}) > 1:
            raise TypeError(f"all {what} must have one dtype; got {', '.join(sorted(map(str, dtypes)))}")


def evaluate(tensors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The reference on weights and zs, in the wider of their types; kernels in zs' dtype."""
    weights, zs = tensors[:_WEIGHTS], tensors[_WEIGHTS:]
    data = zs[0].dtype if zs else weights[0].dtype
    wide = torch.promote_types(data, weights[0].dtype)
    generator = Generator(*(w.to(wide) for w in weights))
    kernels, penalty = reference.assemble_kernels([z.to(wide) for z in zs], generator)
    return [k.to(data) for k in kernels], penalty


# ---- autograd ---------------------------------------------------------------------------------------


class TiledConv(torch.autograd.Function):
    """apply(backend, penalty, *weights, *zs) -> (*kernels, penalty)."""

    @staticmethod
    def forward(chosen, penalty, *tensors):
        weights, zs = list(tensors[:_WEIGHTS]), list(tensors[_WEIGHTS:])
        flat, squares = getattr(torch.ops.hyperfast, f"tiled_conv_{chosen}")(zs, weights, penalty)
        kernels, at = [], 0
        for out, inputs, kh, kw in kernel_shapes(zs, weights):
            strides = inputs * kh * kw, kh * kw, kw, 1
            kernels.append(flat.as_strided((out, inputs, kh, kw), strides, at))
            at += out * strides[0]
        return *kernels, squares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.chosen, penalty, *tensors = inputs
        ctx.set_materialize_grads(False)
        if not penalty:
            ctx.mark_non_differentiable(output[-1])
        ctx.save_for_backward(*tensors, *(output[:-1] if penalty else ()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):
        count = len(grads) - 1
        tensors, kernels = ctx.saved_tensors[: _WEIGHTS + count], ctx.saved_tensors[_WEIGHTS + count :]
        wants = ctx.needs_input_grad[2:]
        if all(g is None for g in grads):
            return (None,) * (2 + len(wants))
        spec = ctx.chosen, count, any(wants[_WEIGHTS:]), any(wants[:_WEIGHTS])
        if grads[-1] is None:
            kernels = ()
        found = TiledConvBackward.apply(spec, *grads, *tensors, *kernels)
        return None, None, *(g if want else None for g, want in zip(found, wants, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args):
        results = [TiledConv.apply(*_sample(args, in_dims, i)) for i in range(info.batch_size)]
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


class TiledConvBackward(torch.autograd.Function):
    """Gradients of TiledConv, themselves differentiable: fused forward, the reference behind it.

    apply((backend, L, want_zs, want_weights), *L + 1 grads, *weights, *zs, *kernels) -> gradients of weights and zs.
    """

    @staticmethod
    def forward(*args):
        spec, *tensors = args if isinstance(args[0], tuple) else args[1:]  # torch.compile puts a context before them
        chosen, count, want_zs, want_weights = spec
        grads, gpenalty, weights, zs, kernels = _parts(tensors, count)
        none = weights[0].new_empty(0)
        grads = [none if g is None else g for g in grads]
        op = getattr(torch.ops.hyperfast, f"tiled_conv_backward_{chosen}")
        found = op(
            grads, none if gpenalty is None else gpenalty, list(kernels), list(zs), list(weights), want_zs, want_weights
        )  # fmt: skip
        return *found[count:], *found[:count]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.spec, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.given = len(tensors)
        ctx.save_for_backward(*tensors[: 2 * ctx.spec[1] + _WEIGHTS + 1])

    @staticmethod
    def backward(ctx: Any, *gg: Tensor | None):
        _, count, want_zs, want_weights = ctx.spec
        grads, gpenalty, weights, zs, _ = _parts(ctx.saved_tensors, count)
        outer, inner = [*grads, gpenalty], [*weights, *zs]
        present = [i for i, g in enumerate(outer) if g is not None]
        was_wanted = [want_weights] * _WEIGHTS + [want_zs] * count
        wanted = [i for i, g in enumerate(gg) if g is not None and was_wanted[i]]
        result: list[Tensor | None] = [None] * (1 + ctx.given)
        if not wanted:
            return tuple(result)

        def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
            kernels, penalty = evaluate(tensors)
            return tuple([*kernels, penalty][i] for i in present)

        def gradients(*both: Tensor) -> tuple[Tensor, ...]:
            _, pullback = torch.func.vjp(forward, *both[len(present) :])[:2]
            every = pullback(tuple(both[: len(present)]))
            return tuple(every[i] for i in wanted)

        _, pullback = torch.func.vjp(gradients, *(outer[i] for i in present), *inner)[:2]
        found = pullback(tuple(gg[i] for i in wanted))
        places = [*present, *range(len(outer), len(outer) + len(inner))]
        for place, g in zip(places, found, strict=True):
            result[1 + place] = g
        return tuple(result)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args):
        results = [TiledConvBackward.apply(*_sample(args, in_dims, i)) for i in range(info.batch_size)]
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])


def _parts(
    tensors: Sequence[Any], count: int
) -> tuple[Sequence[Any], Any, Sequence[Any], Sequence[Any], Sequence[Any]]:
    """grads, gpenalty, weights, zs, kernels of TiledConvBackward's arguments."""
    zs = count + 1 + _WEIGHTS
    return tensors[:count], tensors[count], tensors[count + 1 : zs], tensors[zs : zs + count], tensors[zs + count :]


def _sample(args: tuple, in_dims: tuple, i: int) -> list:
    """The arguments of one sample."""
    return [a.select(dim, i) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)]


# ---- raw ops ----------------------------------------------------------------------------------------


def kernel_shapes(zs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[tuple[int, int, int, int]]:
    """[out, in, kh, kw] of each kernel."""
    n_in, (n_out, kh, kw) = weights[0].shape[0], weights[2].shape[:3]
    return [(cols * n_out, rows * n_in, kh, kw) for rows, cols, _ in (z.shape for z in zs)]


def _fake(zs, weights, penalty):
    total = sum(math.prod(shape) for shape in kernel_shapes(zs, weights))
    like = zs[0] if zs else weights[0]
    wide = torch.promote_types(weights[0].dtype, torch.float32)
    return like.new_empty(total), weights[0].new_empty(() if penalty else (0,), dtype=wide)


def _fake_backward(grads, gpenalty, kernels, zs, weights, want_zs, want_weights):
    wants = [want_zs] * len(zs) + [want_weights] * _WEIGHTS
    return [t.new_empty(t.shape if want else (0,)) for t, want in zip([*zs, *weights], wants, strict=True)]


def _flops(zs, weights, *_, **__) -> int:
    """The fold of both layers, and the product of embeddings and fold."""
    (n_in, d, embedding), (n_out, kh, kw, _d) = weights[0], weights[2]
    tiles = sum(rows * cols for rows, cols, _z in zs)
    return 2 * n_in * n_out * kh * kw * embedding * (d + tiles)


def _flops_backward(grads, gpenalty, kernels, zs, weights, want_zs, want_weights, **__) -> int:
    """As forward's for the embeddings; for the weights the product once more, and two of the fold's size."""
    (n_in, d, embedding), (n_out, kh, kw, _d) = weights[0], weights[2]
    tiles = sum(rows * cols for rows, cols, _z in zs)
    each = 2 * n_in * n_out * kh * kw * embedding
    return each * ((d + tiles) * want_zs + (2 * d + tiles) * want_weights)


def _triton(zs, weights, penalty):
    from ..kernels import tiled_conv as kernels

    with torch.cuda.device_of(weights[0]):  # Triton launches on the current device
        return kernels.assemble(zs, weights, penalty)


def _triton_backward(grads, gpenalty, kernels, zs, weights, want_zs, want_weights):
    from ..kernels import tiled_conv as launchers

    with torch.cuda.device_of(weights[0]):
        return launchers.assemble_backward(grads, gpenalty, kernels, zs, weights, want_zs, want_weights)


_library = torch.library.Library("hyperfast", "FRAGMENT")
_library.define("tiled_conv_triton(Tensor[] zs, Tensor[] weights, bool penalty) -> (Tensor, Tensor)")
_library.define(
    "tiled_conv_backward_triton(Tensor[] grads, Tensor gpenalty, Tensor[] kernels, Tensor[] zs, Tensor[] weights, "
    "bool want_zs, bool want_weights) -> Tensor[]"
)
for _key in ("CPU", "CUDA", "XPU"):
    _library.impl("tiled_conv_triton", _triton, _key)
    _library.impl("tiled_conv_backward_triton", _triton_backward, _key)
for _backend in ["triton"] + ["cpp"] * (native.WHY_NOT_LOADED is None):
    for _name, _fake_of, _flops_of in (
        (f"tiled_conv_{_backend}", _fake, _flops),
        (f"tiled_conv_backward_{_backend}", _fake_backward, _flops_backward),
    ):
        torch.library.register_fake(f"hyperfast::{_name}", _fake_of, lib=_library)
        register_flop_formula(getattr(torch.ops.hyperfast, _name))(_flops_of)
