"""HyperLSTM and LayerNormLSTM (HyperNetworks, equations 9 to 13), one step after the other, in plain PyTorch.

Gates are stacked in PyTorch's order i, f, g, o. Shapes: T steps, B sequences, R rows (those of all steps, one step
after the other, as in a PackedSequence: T*B where all sequences have T steps), I inputs, H units, K units of the hyper
cell, Z elements of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .target_net_dropout import philox

LAYER_NORM_EPSILON = 1e-3


class Cell(NamedTuple):
    """The weights of one LSTM cell: input [4H,I], recurrent [4H,H], bias [4H]; layer norm's [5,H] for i, f, g, o, c."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor
    ln_weight: Tensor | None = None
    ln_bias: Tensor | None = None


class Scaling(NamedTuple):
    """From the hyper cell's output to the scales of the main cell (equations 11 and 12), of G gates (4; 1 in an RNN).

    z_*_weight [G,Z,K], z_h_bias and z_x_bias [G,Z], d_*_weight [G,H,Z].
    """

    z_h_weight: Tensor
    z_x_weight: Tensor
    z_b_weight: Tensor
    z_h_bias: Tensor
    z_x_bias: Tensor
    d_h_weight: Tensor
    d_x_weight: Tensor
    d_b_weight: Tensor


class Scales(NamedTuple):
    """Row scales of W_h and W_x, and the generated part of the bias: each [...,G,H]."""

    d_h: Tensor
    d_x: Tensor
    b: Tensor


class LSTMState(NamedTuple):
    """Output h and cell c, each [B,H]; c is carried un-normalised."""

    h: Tensor
    c: Tensor


def scales_of(hyper: Tensor, w: Scaling) -> Scales:
    """Equations 11 and 12: z = W ĥ (+ bias), d = D z. hyper [B,K] -> each [B,G,H]."""
    z_h = torch.einsum("bk,gzk->bgz", hyper, w.z_h_weight) + w.z_h_bias
    z_x = torch.einsum("bk,gzk->bgz", hyper, w.z_x_weight) + w.z_x_bias
    z_b = torch.einsum("bk,gzk->bgz", hyper, w.z_b_weight)
    return Scales(*(torch.einsum("bgz,ghz->bgh", z, d) for z, d in zip((z_h, z_x, z_b), w[5:], strict=True)))


def gates_to_state(pre: Tensor, c: Tensor, w: Cell, forget_bias: float, keep: Tensor | None) -> LSTMState:
    """Equation 13 (10 for the hyper cell): pre-activations [B,4,H] and c [B,H] -> the next state.

    c' = sigmoid(f + forget_bias) * c + sigmoid(i) * keep * tanh(g)      h' = sigmoid(o) * tanh(LN(c'))
    Each gate is layer-normalised before; keep [B,H] is dropout's mask, divided by the probability of being kept.
    """
    if w.ln_weight is not None and w.ln_bias is not None:
        pre = _normalised(pre) * w.ln_weight[:4] + w.ln_bias[:4]
    i, f, g, o = pre.unbind(1)
    new = torch.tanh(g) if keep is None else torch.tanh(g) * keep
    c = torch.sigmoid(f + forget_bias) * c + torch.sigmoid(i) * new
    shown = c if w.ln_weight is None or w.ln_bias is None else _normalised(c) * w.ln_weight[4] + w.ln_bias[4]
    return LSTMState(torch.sigmoid(o) * torch.tanh(shown), c)


def _normalised(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPSILON)


def lstm_step(x: Tensor, state: LSTMState, w: Cell, forget_bias: float = 0.0, keep: Tensor | None = None) -> LSTMState:
    """A plain or layer-normalised LSTM cell (equation 9): x [B,I]."""
    pre = x @ w.weight_ih.mT + state.h @ w.weight_hh.mT + w.bias
    return gates_to_state(pre.unflatten(1, (4, -1)), state.c, w, forget_bias, keep)


class HyperState(NamedTuple):
    """The main cell's state [B,H] and the hyper cell's [B,K]."""

    main: LSTMState
    hyper: LSTMState


def hyper_lstm_step(
    x: Tensor,
    state: HyperState,
    w: Cell,
    hyper: Cell,
    scaling: Scaling,
    *,
    embedding_from: str = "current",
    forget_bias: float = 0.0,
    keep: Tensor | None = None,
    hyper_keep: Tensor | None = None,
) -> tuple[HyperState, Scales]:
    """Equations 10 to 13: x [B,I] -> the next state, and the scales [B,4,H] that were applied.

    The hyper cell reads [h; x]. embedding_from: whether its new output ("current") or its last ("previous", equation 11
    as printed) makes the embeddings.
    """
    h = state.main.h
    after = lstm_step(torch.cat([h, x], 1), state.hyper, hyper, forget_bias, hyper_keep)
    scales = scales_of(after.h if embedding_from == "current" else state.hyper.h, scaling)
    gates = (4, w.weight_hh.shape[1])
    pre = scales.d_h * (h @ w.weight_hh.mT).unflatten(1, gates) + scales.d_x * (x @ w.weight_ih.mT).unflatten(1, gates)
    pre = pre + scales.b + w.bias.view(gates)
    return HyperState(gates_to_state(pre, state.main.c, w, forget_bias, keep), after), scales


# ---- sequences ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What a recurrence has besides its weights."""

    embedding_from: str = "current"
    forget_bias: float = 0.0
    recurrent_dropout: float = 0.0
    hyper_recurrent_dropout: float = 0.0
    layer: int = 0
    """Dropout's masks are those of layers 2 * layer (main cell) and 2 * layer + 1 (hyper cell) under one seed."""
    cell: str = "lstm"
    """Of both cells; "tanh" or "relu": HyperRNN (hyper_lstm_rnn.py), without c, layer norm and the options above."""


class States(NamedTuple):
    """States after every step: h and c [R,H], hyper_h and hyper_c [R,K] (K = 0 without a hyper cell)."""

    h: Tensor
    c: Tensor
    hyper_h: Tensor
    hyper_c: Tensor


def hyper_lstm(
    x: Tensor,
    batch_sizes: Sequence[int],
    state: HyperState,
    w: Cell,
    hyper: Cell | None,
    scaling: Scaling | None,
    options: Options,
    seed: Tensor | None = None,
) -> States:
    """Equations 9 to 13 over all steps. x [R,I]; batch_sizes [T]: rows of each step, never more than the step before.

    hyper and scaling None: the LSTM of equation 9, whose hyper state passes. seed [1] int64: of recurrent dropout, which
    is off without one.
    """
    keep = _masks(seed, batch_sizes, 2 * options.layer, options.recurrent_dropout, x, state.main.h.shape[1])
    hyper_keep = _masks(
        seed, batch_sizes, 2 * options.layer + 1, options.hyper_recurrent_dropout, x, state.hyper.h.shape[1]
    )
    steps, begin = [], 0
    for n in batch_sizes:
        rows = slice(begin, begin + n)
        begin += n
        state = HyperState(*(LSTMState(*(part[:n] for part in cell)) for cell in state))
        now, hyper_now = (None if mask is None else mask[rows] for mask in (keep, hyper_keep))
        if hyper is None or scaling is None:
            state = HyperState(lstm_step(x[rows], state.main, w, options.forget_bias, now), state.hyper)
        else:
            state, _ = hyper_lstm_step(
                x[rows], state, w, hyper, scaling, embedding_from=options.embedding_from,
                forget_bias=options.forget_bias, keep=now, hyper_keep=hyper_now,
            )  # fmt: skip
        steps.append((*state.main, *state.hyper))
    if not steps:
        return States(*(part[:0] + x.sum() for cell in state for part in cell))
    return States(*(torch.cat(parts) for parts in zip(*steps, strict=True)))


def keep_mask(seed: Tensor, layer: int, p: float, t: Tensor, b: Tensor, features: int) -> Tensor:
    """[R,features]: 1 / (1 - p) where unit h of sequence b is kept at step t, else 0; t, b [R].

    Kept where word h mod 4 of philox(seed; h div 4, b, t, layer) is not below round(p * 2^32).
    """
    groups = torch.arange((features + 3) // 4, device=seed.device)
    t, b = t.to(seed.device).unsqueeze(1), b.to(seed.device).unsqueeze(1)
    words = torch.broadcast_tensors(*philox(seed, groups, b, t, torch.full_like(groups, layer)))
    word = torch.stack(words, -1).flatten(-2)[:, :features]
    return (word >= round(p * 2**32)).double() / (1 - p if p < 1 else 1.0)


def _masks(seed, batch_sizes: Sequence[int], layer: int, p: float, x: Tensor, features: int) -> Tensor | None:
    if seed is None or p == 0 or not batch_sizes:
        return None
    t = torch.cat([torch.full((n,), step) for step, n in enumerate(batch_sizes)])
    b = torch.cat([torch.arange(n) for n in batch_sizes])
    return keep_mask(seed, layer, p, t, b, features).to(x.dtype)


def make_inputs(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    hyper_size: int,
    embedding_size: int,
    *,
    layer_norm: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, HyperState, Cell, Cell, Scaling]:
    """x [T*B,I], state and weights of a layer with nothing at zero or one: no symmetry hides an error.

    Input and state have weights of their own fan-in: with one scale for both the state drowns the input, and the
    gradients of one sequence in a hundred explode over 100 steps and hide the others' in every sum.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
        values = mean + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.to(device, dtype)

    def cell(inputs: int, units: int) -> Cell:
        norm = (normal(5, units, scale=0.2, mean=1.0), normal(5, units, scale=0.1)) if layer_norm else (None, None)
        weight_ih = normal(4 * units, inputs, scale=inputs**-0.5 if inputs else 1.0)
        weight_hh = normal(4 * units, units, scale=units**-0.5 if units else 1.0)
        return Cell(weight_ih, weight_hh, normal(4 * units, scale=0.1), *norm)

    z, h, k = embedding_size, hidden_size, hyper_size
    projections = [normal(4, z, k, scale=k**-0.5) for _ in range(3)]
    biases = [normal(4, z, scale=0.2, mean=1.0) for _ in range(2)]
    maps = [normal(4, h, z, scale=0.3 / z**0.5, mean=0.5 / z) for _ in range(2)] + [normal(4, h, z, scale=0.2)]
    state = HyperState(
        LSTMState(normal(batch, h, scale=0.3), normal(batch, h, scale=0.5)),
        LSTMState(normal(batch, k, scale=0.3), normal(batch, k, scale=0.5)),
    )
    x = normal(steps * batch, input_size, scale=2.0)
    return x, state, cell(input_size, h), cell(h + input_size, k), Scaling(*projections, *biases, *maps)
