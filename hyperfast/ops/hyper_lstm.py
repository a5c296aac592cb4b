"""One layer of HyperLSTM, or of the LSTM that is its simplest case, over all time steps; hyper_lstm_rnn.py: HyperRNN.

The raw ops take 23 tensors in the order of NAMES, empty where a layer has no such part; R rows are those of all steps,
one step after the other, and batch_sizes [T] int64 on the CPU says how many each step has (empty: R / B steps of B):

    hyper_lstm_{cpp,triton}(tensors, batch_sizes, seed, ints, floats, save)
        -> h [R,H], c [R,H], hyper_h [R,K], hyper_c [R,K], saved
    hyper_lstm_backward_{cpp,triton}(grads of the four, tensors, those four, saved, batch_sizes, seed, ints, floats,
        want_x, want_weights) -> a gradient for each of the tensors (empty where there is none, or not wanted)

`saved` is a kernel's own, and empty without `save`. ints and floats are Options as encode() writes them. G gates: 4; in
an RNN 1, whose c and hyper_c are [B,0] and [R,0].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backends, native
from ..reference import hyper_lstm as reference
from ..reference import hyper_lstm_rnn as reference_rnn
from ..reference.hyper_lstm import Cell, HyperState, LSTMState, Options, Scaling, States
from ..reference.hyper_lstm_rnn import RNNCell
from . import hyper_lstm_vmap
from .checks import autocast, check_tensor, check_together

backends.register("hyper_lstm", "cpp", "triton")

NAMES = ("x", "h", "c", "hyper_h", "hyper_c",
         *Cell._fields, *(f"hyper_{name}" for name in Cell._fields), *Scaling._fields)  # fmt: skip
_STATE, _CELL, _HYPER, _SCALING = slice(1, 5), slice(5, 10), slice(10, 15), slice(15, 23)
_PANEL_BYTES = 64
CELLS = ("lstm", "tanh", "relu")  # in the order of csrc/hyper_lstm.h


def hyper_lstm(
    x: Tensor,
    state: HyperState,
    w: Cell,
    hyper: Cell | None = None,
    scaling: Scaling | None = None,
    options: Options | None = None,
    *,
    batch_sizes: Tensor | None = None,
    seed: Tensor | None = None,
) -> States:
    """One layer over all time steps (HyperNetworks, equations 9 to 13):

        pre  = d_h * (W_h h) + d_x * (W_x x) + beta + b0      d = D z, beta = D_b z_b, z = Z hyper_h (+ bias)
        y    = LN(pre) for y in i, f, g, o                    without ln_weight: y = pre
        c'   = sigmoid(f + forget_bias) * c + sigmoid(i) * Dropout(tanh(g))
        h'   = sigmoid(o) * tanh(LN(c'))

    where hyper_h is the output of an LSTM of the same form, without scales, that reads [h; x].

    Args:
        x: [R,I]: rows of all steps, one step after the other; [T,B,I].flatten(0, 1) where all sequences are as long.
        state: h and c [B,H], hyper_h and hyper_c [B,K] (K = 0 without a hyper cell).
        w: weights of the main cell; gates stacked in the order i, f, g, o.
        hyper, scaling: the hyper cell, and its maps to the scales. None: d = 1, beta = 0, an ordinary LSTM.
        options: forget bias, dropout, which output of the hyper cell is read; None: Options().
        batch_sizes: [T] int64 on the CPU, rows of each step, never more than before, at first B; None: B each.
        seed: [1] int64 on x's device; without it nothing is dropped.

    Returns:
        The states after each step, h and c [R,H], hyper_h and hyper_c [R,K], in x's dtype. All differentiable, twice.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    if (hyper is None) != (scaling is None):
        raise ValueError("hyper and scaling must be given together, or neither")
    options = Options() if options is None else options
    hyper_state = list(state.hyper)
    if hyper is None:  # one tensor in two places is no graph for torch.compile
        hyper_state = [x.new_empty(state.main.h.shape[0], 0) for _ in range(2)]
    tensors = (x, *state.main, *hyper_state, *w, *(hyper or (None,) * 5), *(scaling or (None,) * 8))
    return run("hyper_lstm", tensors, options, batch_sizes, seed)


def run(
    op: str, tensors: Sequence[Tensor | None], options: Options, batch_sizes: Tensor | None, seed: Tensor | None
) -> States:
    """Checks the 23 tensors and runs the recurrence on the backend that serves `op`."""
    x = _check(tensors, options.cell, batch_sizes, seed)
    given = autocast(x.device.type, *tensors)  # a state from an earlier call may come in autocast's type, x in its own
    _check_types(given)
    weight_types = {t.dtype for t in given[5:] if t is not None}
    chosen = backends.select(op, x.device.type, given[0].dtype, *weight_types)
    if seed is None or (options.recurrent_dropout == 0 and options.hyper_recurrent_dropout == 0):
        seed = x.new_empty(0, dtype=torch.int64)
    if batch_sizes is None:
        batch_sizes = x.new_empty(0, dtype=torch.int64)  # a tensor on the CPU would keep inductor from CUDA graphs
    if chosen == "reference":
        return evaluate(given, batch_sizes, seed, options)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    return States(*HyperLSTM.apply(*given, batch_sizes, seed, *encode(options), chosen, save)[:4])


# The shape of each tensor: sizes by their names in the docstrings, C those of c.
_SHAPES = {
    "x": ("R", "I"), "h": ("B", "H"), "c": ("B", "C_H"), "hyper_h": ("B", "K"), "hyper_c": ("B", "C_K"),
    "weight_ih": ("GH", "I"), "weight_hh": ("GH", "H"), "bias": ("GH",), "ln_weight": ("5", "H"), "ln_bias": ("5", "H"),
    "hyper_weight_ih": ("GK", "H+I"), "hyper_weight_hh": ("GK", "K"), "hyper_bias": ("GK",),
    "hyper_ln_weight": ("5", "K"), "hyper_ln_bias": ("5", "K"),
    "z_h_weight": ("G", "Z", "K"), "z_x_weight": ("G", "Z", "K"), "z_b_weight": ("G", "Z", "K"),
    "z_h_bias": ("G", "Z"), "z_x_bias": ("G", "Z"),
    "d_h_weight": ("G", "H", "Z"), "d_x_weight": ("G", "H", "Z"), "d_b_weight": ("G", "H", "Z"),
}  # fmt: skip
# G and C by the kind of cell.
_WRITTEN = {False: {"G": "1", "GH": "H", "GK": "K", "C_H": "0", "C_K": "0"},
            True: {"G": "4", "GH": "4H", "GK": "4K", "C_H": "H", "C_K": "K"}}  # fmt: skip


def _check(tensors: Sequence[Tensor | None], cell: str, batch_sizes: Tensor | None, seed: Tensor | None) -> Tensor:
    """Raises for what is wrong, and returns x."""
    given = {name: t for name, t in zip(NAMES, tensors, strict=True) if t is not None}
    written = _WRITTEN[cell == "lstm"]
    shapes = {name: [written.get(size, size) for size in _SHAPES[name]] for name in given}
    documented = {name: f"[{','.join(shape)}]" for name, shape in shapes.items()}
    for name, t in given.items():
        check_tensor(name, t, (len(shapes[name]),), documented[name])
    x, batch, h, i = given["x"], given["h"].shape[0], given["h"].shape[1], given["x"].shape[1]
    k, z = given["hyper_h"].shape[1], given["z_h_weight"].shape[1] if "z_h_weight" in given else 0
    sizes = {"R": x.shape[0], "B": batch, "I": i, "H": h, "K": k, "Z": z, "4H": 4 * h, "4K": 4 * k, "H+I": h + i,
             "0": 0, "1": 1, "4": 4, "5": 5}  # fmt: skip
    for name, t in given.items():
        for dim, size in enumerate(shapes[name]):
            if t.shape[dim] != sizes[size]:
                raise ValueError(f"{name} must be {documented[name]} with {size} = {sizes[size]}; got {tuple(t.shape)}")
    check_together(**given)
    _check_rows(x, batch, batch_sizes)
    if seed is not None and (seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != x.device):
        raise ValueError(f"seed must be one int64 on {x.device}; got {tuple(seed.shape)} {seed.dtype} on {seed.device}")
    return x


def _check_types(tensors: Sequence[Tensor | None]) -> None:
    dtypes = {t.dtype for t in tensors[:5] if t is not None}
    if len(dtypes) > 1:
        raise TypeError(f"x and the state must have one dtype; got {', '.join(map(str, dtypes))}")
    if len({t.dtype for t in tensors[5:] if t is not None}) > 1:
        raise TypeError("all weights must have one dtype")


def _check_rows(x: Tensor, batch: int, batch_sizes: Tensor | None) -> None:
    if batch_sizes is None:
        if (batch == 0 and x.shape[0] != 0) or (batch > 0 and x.shape[0] % batch != 0):
            raise ValueError(f"x must have a multiple of B = {batch} rows; got {tuple(x.shape)}")
        return
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1 or batch_sizes.device.type != "cpu":
        raise TypeError(f"batch_sizes must be [T] int64 on the CPU; got {batch_sizes.dtype} on {batch_sizes.device}")
    n = batch_sizes
    if (n.numel() and (int(n[0]) != batch or bool((n[1:] > n[:-1]).any()) or int(n[-1]) < 1)) or int(n.sum()) != len(x):
        raise ValueError(f"batch_sizes must begin with B = {batch}, not rise, and sum to x's rows, {len(x)}; got {n}")


def steps_of(rows: int, batch: int, batch_sizes: Tensor) -> list[int]:
    """Rows of each step."""
    if batch_sizes.numel() or not batch:
        return batch_sizes.tolist()
    return [batch] * (rows // batch)


def evaluate(tensors: Sequence[Tensor | None], batch_sizes: Tensor, seed: Tensor, options: Options) -> States:
    """The reference on the 23 tensors, in the widest of their types; results in x's dtype."""
    given = [t for t in tensors if t is not None]
    x, dtype = given[0], given[0].dtype
    for t in given:
        dtype = torch.promote_types(dtype, t.dtype)
    wide: list[Any] = [None if t is None else t.to(dtype) for t in tensors]
    steps = steps_of(len(x), wide[1].shape[0], batch_sizes)
    if options.cell != "lstm":
        cells = RNNCell(*wide[5:8]), RNNCell(*wide[10:13]), Scaling(*wide[_SCALING])
        h, hyper_h = reference_rnn.hyper_rnn(wide[0], steps, wide[1], wide[3], *cells, options.cell)
        return States(*(t.to(x.dtype) for t in (h, h[:, :0], hyper_h, hyper_h[:, :0])))
    cell, hyper = (None if part[0] is None else Cell(*part) for part in (wide[_CELL], wide[_HYPER]))
    assert cell is not None
    state = HyperState(LSTMState(*wide[1:3]), LSTMState(*wide[3:5]))
    out = reference.hyper_lstm(
        wide[0], steps, state, cell, hyper,
        None if wide[15] is None else Scaling(*wide[_SCALING]), options, seed if seed.numel() else None,
    )  # fmt: skip
    return States(*(t.to(x.dtype) for t in out))


# ---- autograd ---------------------------------------------------------------------------------------

_BACKWARD_ARGUMENTS = 39
_SPEC = 6  # batch_sizes, seed, ints, floats, backend, save


class HyperLSTM(torch.autograd.Function):
    """apply(*23 tensors, batch_sizes, seed, ints, floats, backend, save) -> (h, c, hyper_h, hyper_c, saved)."""

    @staticmethod
    def forward(*args):
        *tensors, batch_sizes, seed, ints, floats, chosen, save = args
        op = getattr(torch.ops.hyperfast, f"hyper_lstm_{chosen}")
        return op(_filled(tensors), batch_sizes, seed, ints, floats, save)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        *tensors, batch_sizes, seed, ints, floats, chosen, _ = inputs
        ctx.spec = ints, floats, chosen
        ctx.mark_non_differentiable(output[4])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, batch_sizes, seed, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):
        every = ctx.saved_tensors
        if all(g is None for g in grads[:4]):
            return (None,) * (len(NAMES) + _SPEC)
        wants = tuple(ctx.needs_input_grad[: len(NAMES)])
        found = HyperLSTMBackward.apply(*grads[:4], *every, *ctx.spec, wants[0], any(wants[5:]))
        return *(g if want else None for g, want in zip(found, wants, strict=True)), *(None,) * _SPEC

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args):
        return hyper_lstm_vmap.forward(HyperLSTM.apply, info.batch_size, in_dims, args)


class HyperLSTMBackward(torch.autograd.Function):
    """Gradients of HyperLSTM, themselves differentiable: fused forward, the reference behind it.

    apply(four grads, 23 tensors, batch_sizes, seed, four outputs, saved, ints, floats, backend, want_x, want_weights).
    """

    @staticmethod
    def forward(*args):
        args = args[-_BACKWARD_ARGUMENTS:]  # torch.compile puts a context before them
        grads, tensors, (batch_sizes, seed), outputs = args[:4], args[4:27], args[27:29], args[29:34]
        ints, floats, chosen, *wants = args[34:]
        op = getattr(torch.ops.hyperfast, f"hyper_lstm_backward_{chosen}")
        x = tensors[0]
        grads = [x.new_empty(0) if g is None else g for g in grads]
        found = op(grads, _filled(tensors), list(outputs), batch_sizes, seed, ints, floats, *wants)
        return tuple(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.options = decode(*inputs[34:36])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:29])

    @staticmethod
    def backward(ctx: Any, *gg: Tensor | None):
        grads, tensors, (batch_sizes, seed) = ctx.saved_tensors[:4], ctx.saved_tensors[4:27], ctx.saved_tensors[27:]
        has_grad = [i for i, g in enumerate(grads) if g is not None]
        present = [i for i, t in enumerate(tensors) if t is not None]
        wanted = [at for at, i in enumerate(present) if gg[i] is not None]
        if not wanted:
            return (None,) * _BACKWARD_ARGUMENTS

        def forward(*given: Tensor) -> tuple[Tensor, ...]:
            every: list[Tensor | None] = [None] * len(tensors)
            for i, t in zip(present, given, strict=True):
                every[i] = t
            out = evaluate(every, batch_sizes, seed, ctx.options)
            return tuple(out[i] for i in has_grad)

        def gradients(*both: Tensor) -> tuple[Tensor, ...]:
            _, pullback = torch.func.vjp(forward, *both[len(has_grad) :])[:2]
            every = pullback(tuple(both[: len(has_grad)]))
            return tuple(every[at] for at in wanted)

        arguments = [grads[i] for i in has_grad] + [tensors[i] for i in present]
        _, pullback = torch.func.vjp(gradients, *arguments)[:2]
        found = pullback(tuple(gg[present[at]] for at in wanted))
        result: list[Tensor | None] = [None] * _BACKWARD_ARGUMENTS
        for place, g in zip((*has_grad, *(4 + i for i in present)), found, strict=True):
            result[place] = g
        return tuple(result)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args):
        return hyper_lstm_vmap.backward(HyperLSTMBackward.apply, info.batch_size, in_dims, args)


def _filled(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Empty tensors, of the weights' dtype, in place of None."""
    return [tensors[6].new_empty(0) if t is None else t for t in tensors]  # type: ignore[union-attr]


def encode(options: Options) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Options as the raw ops take them: (previous, layer, cell), (forget bias, both probabilities of dropping)."""
    ints = (int(options.embedding_from == "previous"), options.layer, CELLS.index(options.cell))
    return ints, (options.forget_bias, options.recurrent_dropout, options.hyper_recurrent_dropout)


def decode(ints: Sequence[int], floats: Sequence[float]) -> Options:
    """The Options that encode() wrote down."""
    return Options(("current", "previous")[ints[0]], floats[0], floats[1], floats[2], ints[1], CELLS[ints[2]])


# ---- raw ops ----------------------------------------------------------------------------------------


def saved_width(gates: int, hidden: int, hyper: int, dtype: torch.dtype, backend: str = "cpp") -> int:
    """Values that a kernel saves for a row: the products with h and hyper_h, in C++ each gate in whole vectors."""
    lanes = _PANEL_BYTES // (8 if dtype == torch.float64 else 4) if backend == "cpp" else 1
    return sum(gates * math.ceil(units / lanes) * lanes for units in (hidden, hyper))


def _fake(backend, tensors, batch_sizes, seed, ints, floats, save):
    x, h, hyper_h = tensors[0], tensors[1], tensors[3]
    rows, wide = x.shape[0], torch.promote_types(x.dtype, torch.float32)
    width = saved_width(1 if ints[2] else 4, h.shape[1], hyper_h.shape[1], wide, backend)
    saved = x.new_empty((rows, width) if save else (0, 0), dtype=wide)
    return *(x.new_empty((rows, t.shape[1])) for t in tensors[1:5]), saved


def _fake_backward(grads, tensors, outputs, batch_sizes, seed, ints, floats, want_x, want_weights):
    wanted = [want_x, *[True] * 4, *[want_weights] * 18]
    return [t.new_empty(t.shape if want else (0,)) for t, want in zip(tensors, wanted, strict=True)]


def _flops(tensors, *_, **__) -> int:
    """Products of matrices: input, recurrent, hyper cell, embeddings, scales."""
    rows = tensors[0][0]
    products = sum(math.prod(tensors[i]) for i in (5, 6, 10, 11, *range(15, 18), *range(20, 23)) if len(tensors[i]) > 1)
    return 2 * rows * products


def _flops_backward(grads, tensors, *_, **__) -> int:
    return 2 * _flops(tensors)


def _triton(tensors, batch_sizes, seed, ints, floats, save):
    steps = tuple(steps_of(tensors[0].shape[0], tensors[1].shape[0], batch_sizes))
    return tuple(_launch(_forward_loop, [*tensors, seed], steps, tuple(ints), tuple(floats), save))


def _triton_backward(grads, tensors, outputs, batch_sizes, seed, ints, floats, want_x, want_weights):
    steps = tuple(steps_of(tensors[0].shape[0], tensors[1].shape[0], batch_sizes))
    every = [*grads, *tensors, *outputs, seed]
    return list(_launch(_backward_loop, every, steps, tuple(ints), tuple(floats), want_x, want_weights))


def _forward_loop(tensors, steps, ints, floats, save):
    from ..kernels import hyper_lstm as kernels

    return kernels.hyper_lstm(tensors[:23], steps, tensors[23], ints, floats, save)


def _backward_loop(tensors, steps, ints, floats, want_x, want_weights):
    from ..kernels import hyper_lstm_backward as kernels

    grads, tensors, outputs, seed = tensors[:4], tensors[4:27], tensors[27:32], tensors[32]
    return kernels.hyper_lstm_backward(grads, tensors, outputs, steps, seed, ints, floats, want_x, want_weights)


def _launch(loop: Any, tensors: list[Tensor], steps: tuple[int, ...], *constants: Any) -> Sequence[Tensor]:
    """loop(tensors, steps, *constants), on CUDA as one graph from the second call of its kind on."""
    from ..kernels import cuda_graphs

    with torch.cuda.device_of(tensors[-1]):  # Triton launches on the current device
        if cuda_graphs.worthwhile(tensors[-1].device, len(steps)):
            return cuda_graphs.replays(loop, tensors, steps, *constants)
        return loop(tensors, steps, *constants)


_library = torch.library.Library("hyperfast", "FRAGMENT")
_library.define(
    "hyper_lstm_triton(Tensor[] tensors, Tensor batch_sizes, Tensor seed, int[] ints, float[] floats, bool save) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "hyper_lstm_backward_triton(Tensor[] grads, Tensor[] tensors, Tensor[] outputs, Tensor batch_sizes, Tensor seed, "
    "int[] ints, float[] floats, bool want_x, bool want_weights) -> Tensor[]"
)
for _key in ("CPU", "CUDA", "XPU"):
    _library.impl("hyper_lstm_triton", _triton, _key)
    _library.impl("hyper_lstm_backward_triton", _triton_backward, _key)
for _backend in ["triton"] + ["cpp"] * (native.WHY_NOT_LOADED is None):
    for _name, _fake_of, _flops_of in (
        (f"hyper_lstm_{_backend}", partial(_fake, _backend), _flops),
        (f"hyper_lstm_backward_{_backend}", _fake_backward, _flops_backward),
    ):
        torch.library.register_fake(f"hyperfast::{_name}", _fake_of, lib=_library)
        register_flop_formula(getattr(torch.ops.hyperfast, _name))(_flops_of)
