"""Recurrent layers whose weights change at every step: HyperLSTM, HyperRNN; LayerNormLSTM as their simplest cell.

Ha, Dai and Le, HyperNetworks, equations 5 to 13 and appendix A.2. The recurrences run on the PyTorch reference; they
have no fused kernels yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..ops.target_net_dropout import dropout, new_seed
from ..reference import hyper_lstm as reference
from ..reference.hyper_lstm import Cell, HyperState, LSTMState, RNNCell, Scales, Scaling
from .hyper_lstm_sequences import Sequences

_PROJECTIONS = ("z_h_weight", "z_x_weight", "z_b_weight", "z_h_bias", "z_x_bias", "d_h_weight", "d_x_weight", "d_b_weight")  # fmt: skip
STATE = ("h", "c", "hyper_h", "hyper_c")


class HyperLSTMState(NamedTuple):
    """h and c [L,B,H], hyper_h and hyper_c [L,B,K]; without B for unbatched input. c is carried un-normalised."""

    h: Tensor
    c: Tensor
    hyper_h: Tensor
    hyper_c: Tensor


def _check_probability(name: str, value: float) -> None:
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability from 0 to 1; got {value!r}")


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive whole number; got {value!r}")


def _orthogonal(weight: Tensor, gates: int) -> None:
    """Orthogonal as one matrix over all gates; a wide one has orthogonal rows."""
    nn.init.orthogonal_(weight) if weight.shape[0] and gates else None


class _Recurrence(nn.Module):
    """Layers one above the other, each over all steps; subclasses have the parameters and the step."""

    input_size: int
    hidden_size: int
    num_layers: int
    batch_first: bool
    dropout: float

    def _between(self, x: Tensor, layer: int) -> Tensor:
        """Dropout on what one layer gives the next."""
        return F.dropout(x, self.dropout, self.training) if layer + 1 < self.num_layers else x

    def _masks(self, x: Tensor, p: float, seed: Tensor | None, layer: int, size: int) -> Tensor | None:
        """Recurrent dropout's masks [T,B,size], over the probability of being kept; None where nothing is dropped."""
        if not self.training or p == 0 or seed is None:
            return None
        return dropout(x.new_ones(*x.shape[:2], size), p, seed, layer)


def _where(alive: Tensor | None, t: int, new: Tensor, old: Tensor) -> Tensor:
    return new if alive is None else torch.where(alive[t], new, old)


class LayerNormLSTM(_Recurrence):
    """An LSTM whose gates and output are layer-normalised (the paper's baseline); nn.LSTM with layer_norm=False.

        y = LN(W_h h + W_x x + b)  for y in i, f, g, o      c' = sigmoid(f + forget_bias) c + sigmoid(i) Dropout(tanh g)
        h' = sigmoid(o) tanh(LN(c'))

    LN has eps 1e-3 inside the root. Parameters of layer l, gates in the order i, f, g, o: weight_ih_l{l} [4H,I],
    weight_hh_l{l} [4H,H], bias_l{l} [4H]; with layer_norm ln_weight_l{l} and ln_bias_l{l} [5,H] (i, f, g, o, c).

    x: [T,B,I], [B,T,I] with batch_first, [T,I], or a PackedSequence. state: (h, c), each [L,B,H], or None for zeros.
    Returns out in the form of x with H features, and the state after each sequence's last step. dropout acts between
    layers; recurrent_dropout on g, one fresh mask a step. Both in training only.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        layer_norm: bool = True,
        recurrent_dropout: float = 0.0,
        forget_bias: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        _check_probability("dropout", dropout)
        _check_probability("recurrent_dropout", recurrent_dropout)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.layer_norm = batch_first, dropout, layer_norm
        self.recurrent_dropout, self.forget_bias = recurrent_dropout, forget_bias
        for layer in range(num_layers):
            inputs = hidden_size if layer else input_size
            _add_cell(self, "", f"_l{layer}", inputs, hidden_size, layer_norm, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal weights, zero biases, layer norm at 1 and 0."""
        for layer in range(self.num_layers):
            _reset_cell(self, "", f"_l{layer}", self.layer_norm)

    @classmethod
    def from_lstm(cls, lstm: nn.LSTM) -> LayerNormLSTM:
        """A layer without layer norm that computes what `lstm` computes. Raises ValueError where it has projections
        or two directions."""
        _check_convertible(lstm)
        new = cls(
            lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.batch_first, lstm.dropout, layer_norm=False,
            device=lstm.weight_hh_l0.device, dtype=lstm.weight_hh_l0.dtype,
        )  # fmt: skip
        _copy_lstm(new, lstm)
        return new

    def forward(
        self, x: Tensor | PackedSequence, state: Sequence[Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, LSTMState]:
        s = Sequences.of(x, self.input_size, self.batch_first)
        h0, c0 = s.state(state, STATE[:2], self.num_layers, (self.hidden_size,) * 2)
        values, alive = s.x, s.alive()
        seed = new_seed(values.device) if self.training and self.recurrent_dropout else None
        ends = []
        for layer in range(self.num_layers):
            w = _cell(self, "", f"_l{layer}", self.layer_norm)
            keep = self._masks(values, self.recurrent_dropout, seed, 2 * layer, self.hidden_size)
            now, outs = LSTMState(h0[layer], c0[layer]), []
            for t in range(values.shape[0]):
                new = reference.lstm_step(values[t], now, w, self.forget_bias, None if keep is None else keep[t])
                now = LSTMState(*(_where(alive, t, a, b) for a, b in zip(new, now, strict=True)))
                outs.append(_where(alive, t, now.h, torch.zeros_like(now.h)))
            ends.append(now)
            values = _stacked(outs, values, self.hidden_size)
            values = self._between(values, layer)
        return s.output(values), LSTMState(*s.final([torch.stack(part) for part in zip(*ends, strict=True)]))

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, layer_norm={self.layer_norm}"
