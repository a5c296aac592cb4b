"""HyperLSTM, LayerNormLSTM and HyperRNN (HyperNetworks, equations 5 to 13), one step after the other, in plain PyTorch.

Gates are stacked in PyTorch's order i, f, g, o. Shapes: T steps, B sequences, I inputs, H units, K units of the hyper
cell, Z elements of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LAYER_NORM_EPSILON = 1e-3


class Cell(NamedTuple):
    """The weights of one LSTM cell: input [4H,I], recurrent [4H,H], bias [4H]; layer norm's [5,H] for i, f, g, o, c."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor
    ln_weight: Tensor | None = None
    ln_bias: Tensor | None = None


class Scaling(NamedTuple):
    """From the hyper cell's output to the scales of the main cell (equations 11 and 12), of G gates (4, or 1 for RNNs).

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


class RNNCell(NamedTuple):
    """The weights of one RNN cell: input [H,I], recurrent [H,H], bias [H]."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor


def hyper_rnn_step(
    x: Tensor, h: Tensor, hyper_h: Tensor, w: RNNCell, hyper: RNNCell, scaling: Scaling, nonlinearity: Callable
) -> tuple[Tensor, Tensor, Scales]:
    """Equations 6 and 8: x [B,I], h [B,H], hyper_h [B,K] -> the next h and hyper_h, and the scales [B,1,H].

    h' = phi(d_h * W_h h + d_x * W_x x + b)     hyper_h' = phi(Ŵ_h hyper_h + Ŵ_x [h; x] + b̂)
    """
    after = nonlinearity(torch.cat([h, x], 1) @ hyper.weight_ih.mT + hyper_h @ hyper.weight_hh.mT + hyper.bias)
    scales = scales_of(after, scaling)
    d_h, d_x, b = (s.squeeze(1) for s in scales)
    return nonlinearity(d_h * (h @ w.weight_hh.mT) + d_x * (x @ w.weight_ih.mT) + b + w.bias), after, scales
