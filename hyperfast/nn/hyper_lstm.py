"""Recurrent layers whose weights change at every step: HyperLSTM, HyperRNN; LayerNormLSTM as their simplest cell.

Ha, Dai and Le, HyperNetworks, equations 5 to 13 and appendix A.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..ops.hyper_lstm import hyper_lstm
from ..ops.target_net_dropout import new_seed
from ..reference.hyper_lstm import Cell, HyperState, LSTMState, Options, Scales, Scaling, States, scales_of
from .hyper_lstm_sequences import Sequences

_CELL = ("weight_ih", "weight_hh", "bias")
_LAYER_NORM = ("ln_weight", "ln_bias")


class HyperLSTMState(NamedTuple):
    """h and c [L,B,H], hyper_h and hyper_c [L,B,K]; without B for unbatched input. c is carried un-normalised."""

    h: Tensor
    c: Tensor
    hyper_h: Tensor
    hyper_c: Tensor


class _Recurrence(nn.Module):
    """Layers one above the other. Subclasses say which parameters a layer has."""

    def __init__(
        self, input_size: int, hidden_size: int, hyper_size: int, num_layers: int, batch_first: bool, dropout: float,
        layer_norm: bool, hyper_layer_norm: bool, options: Options,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, value in sizes.items():
            check_positive(name, value)
        probabilities = (dropout, options.recurrent_dropout, options.hyper_recurrent_dropout)
        names = ("dropout", "recurrent_dropout", "hyper_recurrent_dropout")
        for name, p in zip(names, probabilities, strict=True):
            check_probability(name, p)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.layer_norm = batch_first, dropout, layer_norm
        self.hyper_size, self.hyper_layer_norm, self.options = hyper_size, hyper_layer_norm, options

    def _add_cell(
        self, prefix: str, layer: int, inputs: int, units: int, layer_norm: bool, factory: dict[str, Any]
    ) -> None:
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (4 * units, inputs), "weight_hh": (4 * units, units), "bias": (4 * units,),
        }  # fmt: skip
        if layer_norm:
            shapes |= {"ln_weight": (5, units), "ln_bias": (5, units)}
        for name, shape in shapes.items():
            self.register_parameter(f"{prefix}{name}_l{layer}", nn.Parameter(torch.empty(shape, **factory)))

    def _get(self, name: str, layer: int) -> Any:
        return getattr(self, f"{name}_l{layer}")

    def _cell(self, prefix: str, layer: int, layer_norm: bool) -> Cell:
        names = _CELL + (_LAYER_NORM if layer_norm else ())
        return Cell(*(self._get(prefix + name, layer) for name in names))

    def _reset_cell(self, prefix: str, layer: int, layer_norm: bool) -> None:
        """Appendix A.2.3: orthogonal weights (of all gates together), biases 0, layer norm at 1 and 0."""
        for name in ("weight_ih", "weight_hh"):
            orthogonal_(self._get(prefix + name, layer))
        nn.init.zeros_(self._get(f"{prefix}bias", layer))
        if layer_norm:
            nn.init.ones_(self._get(f"{prefix}ln_weight", layer))
            nn.init.zeros_(self._get(f"{prefix}ln_bias", layer))

    def _weights(self, layer: int) -> tuple[Cell, Cell | None, Scaling | None]:
        raise NotImplementedError

    def _run(self, s: Sequences, state: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...], list[States]]:
        """(output rows, final state parts [L,B,size], states of every layer), rows as `s` has them."""
        options, rows, every = self.options, s.rows, []
        drops = self.training and (options.recurrent_dropout > 0 or options.hyper_recurrent_dropout > 0)
        seed = new_seed(rows.device) if drops else None
        for layer in range(self.num_layers):
            now = HyperState(
                LSTMState(state[0][layer], state[1][layer]), LSTMState(state[2][layer], state[3][layer])
            )  # fmt: skip
            own = replace(options, layer=layer)
            states = hyper_lstm(rows, now, *self._weights(layer), own, batch_sizes=s.batch_sizes, seed=seed)
            every.append(states)
            rows = states.h
            if layer + 1 < self.num_layers:
                rows = F.dropout(rows, self.dropout, self.training)
        ends = []
        for part in range(4):
            per_layer = [s.last(states[part], state[part][layer]) for layer, states in enumerate(every)]
            ends.append(torch.stack(per_layer))
        return rows, tuple(ends), every


@torch.no_grad()
def orthogonal_(weight: Tensor) -> None:
    """nn.init.orthogonal_ for any floating type: PyTorch has no QR decomposition of half types."""
    drawn = weight if weight.dtype == torch.float64 else torch.empty_like(weight, dtype=torch.float32)
    weight.copy_(nn.init.orthogonal_(drawn))


def check_positive(name: str, value: object) -> None:
    """Raises ValueError unless `value` is a positive int."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive whole number; got {value!r}")


def check_probability(name: str, value: object) -> None:
    """Raises ValueError unless `value` is from 0 to 1."""
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a probability from 0 to 1; got {value!r}")


class HyperLSTM(_Recurrence):
    """An LSTM whose rows of weights are rescaled at every step by a smaller LSTM (HyperNetworks, equations 10 to 13).

        hyper_h' = LSTM^([h; x])                       z = Z hyper_h' (+ bias),  d = D z,  beta = D_b z_b
        y  = LN(d_h * (W_h h) + d_x * (W_x x) + beta + b0)          for y in i, f, g, o
        c' = sigmoid(f + forget_bias) * c + sigmoid(i) * Dropout(tanh g)
        h' = sigmoid(o) * tanh(LN(c'))

    LN has eps 1e-3 inside the root; without layer_norm it is left out. Gates are stacked in the order i, f, g, o.

    Args:
        input_size, hidden_size: I, H.
        hyper_size: K, units of the hyper cell.
        embedding_size: Z, elements of each embedding z.
        num_layers, batch_first, dropout: as in nn.LSTM; dropout acts between layers.
        layer_norm: of the main cell; hyper_layer_norm: of the hyper cell, None: as the main cell's.
        recurrent_dropout, hyper_recurrent_dropout: on tanh g of either cell, a fresh mask at every step.
        forget_bias: added to the f gate after its layer norm, in both cells.
        embedding_from: "current": z is made of hyper_h'; "previous": of the hyper cell's output before this step, as
            equation 11 is printed.
        init: "paper": appendix A.2.3, in which the elements of z_h and z_x are all alike and stay so under training;
            "asymmetric": their weights start at N(0, 0.01^2) and the maps D within +-50 % of 0.1 / Z, so that they differ.

    Parameters of layer l: weight_ih_l{l} [4H,I], weight_hh_l{l} [4H,H], bias_l{l} [4H]; hyper_weight_ih_l{l} [4K,H+I]
    (columns h, then x), hyper_weight_hh_l{l} [4K,K], hyper_bias_l{l} [4K]; z_h_weight_l{l}, z_x_weight_l{l},
    z_b_weight_l{l} [4,Z,K]; z_h_bias_l{l}, z_x_bias_l{l} [4,Z]; d_h_weight_l{l}, d_x_weight_l{l}, d_b_weight_l{l}
    [4,H,Z]; with layer norm ln_weight_l{l}, ln_bias_l{l} [5,H] (i, f, g, o, c), hyper_ln_weight_l{l}, hyper_ln_bias_l{l}
    [5,K].
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        hyper_size: int = 128,
        embedding_size: int = 4,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        layer_norm: bool = True,
        hyper_layer_norm: bool | None = None,
        recurrent_dropout: float = 0.0,
        hyper_recurrent_dropout: float = 0.0,
        forget_bias: float = 0.0,
        embedding_from: str = "current",
        init: str = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if embedding_from not in ("current", "previous"):
            raise ValueError(f"embedding_from must be 'current' or 'previous'; got {embedding_from!r}")
        if init not in ("paper", "asymmetric"):
            raise ValueError(f"init must be 'paper' or 'asymmetric'; got {init!r}")
        check_positive("hyper_size", hyper_size)
        check_positive("embedding_size", embedding_size)
        options = Options(embedding_from, float(forget_bias), recurrent_dropout, hyper_recurrent_dropout)
        super().__init__(
            input_size, hidden_size, hyper_size, num_layers, batch_first, dropout, layer_norm,
            layer_norm if hyper_layer_norm is None else hyper_layer_norm, options,
        )  # fmt: skip
        self.embedding_size, self.init = embedding_size, init
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        h, k, z = hidden_size, hyper_size, embedding_size
        shapes = dict(zip(Scaling._fields, [(4, z, k)] * 3 + [(4, z)] * 2 + [(4, h, z)] * 3, strict=True))
        for layer in range(num_layers):
            inputs = hidden_size if layer else input_size
            self._add_cell("", layer, inputs, h, layer_norm, factory)
            self._add_cell("hyper_", layer, h + inputs, k, self.hyper_layer_norm, factory)
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_l{layer}", nn.Parameter(torch.empty(shape, **factory)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The values of `init`."""
        scale = 0.1 / self.embedding_size
        for layer in range(self.num_layers):
            self._reset_cell("", layer, self.layer_norm)
            self._reset_cell("hyper_", layer, self.hyper_layer_norm)
            for name in ("z_h", "z_x"):
                nn.init.zeros_(self._get(f"{name}_weight", layer))
                nn.init.ones_(self._get(f"{name}_bias", layer))
            nn.init.normal_(self._get("z_b_weight", layer), std=0.01)
            nn.init.zeros_(self._get("d_b_weight", layer))
            for name in ("h", "x"):
                nn.init.constant_(self._get(f"d_{name}_weight", layer), scale)
                if self.init == "asymmetric":
                    nn.init.normal_(self._get(f"z_{name}_weight", layer), std=0.01)
                    nn.init.uniform_(self._get(f"d_{name}_weight", layer), 0.5 * scale, 1.5 * scale)

    @classmethod
    @torch.no_grad()
    def from_lstm(cls, lstm: nn.LSTM, hyper_size: int = 128, embedding_size: int = 4, **options: Any) -> HyperLSTM:
        """A HyperLSTM without layer norm, scales at one, that computes what `lstm` computes; ready to be trained on.

        Raises ValueError where `lstm` has projections or two directions. options: HyperLSTM's, without layer norm.
        """
        weight = _check_convertible(lstm)
        new = cls(
            lstm.input_size, lstm.hidden_size, hyper_size, embedding_size, lstm.num_layers, lstm.batch_first,
            lstm.dropout, layer_norm=False, device=weight.device, dtype=weight.dtype, **options,
        )  # fmt: skip
        _copy_weights(new, lstm)
        for layer in range(lstm.num_layers):
            for name in ("z_h", "z_x"):  # z = 1 and D = 1 / Z: d = 1
                nn.init.zeros_(new._get(f"{name}_weight", layer))
                nn.init.ones_(new._get(f"{name}_bias", layer))
            for name in ("d_h_weight", "d_x_weight"):
                nn.init.constant_(new._get(name, layer), 1 / embedding_size)
            nn.init.zeros_(new._get("d_b_weight", layer))
        return new

    def _weights(self, layer: int) -> tuple[Cell, Cell, Scaling]:
        return (
            self._cell("", layer, self.layer_norm),
            self._cell("hyper_", layer, self.hyper_layer_norm),
            Scaling(*(self._get(name, layer) for name in Scaling._fields)),
        )

    def forward(
        self, x: Tensor | PackedSequence, state: Sequence[Tensor] | None = None, return_scales: bool = False
    ) -> Any:
        """(out, state), or (out, state, scales) with return_scales.

        x: [T,B,I], [B,T,I] with batch_first, [T,I], or a PackedSequence, sorted or not. state: the four parts of
        HyperLSTMState, None: zeros. out: H features in the form of x. state: after each sequence's last step. scales:
        d_h, d_x and b, each [L,T,B,4,H] ([L,T,4,H] unbatched), zero at steps past a sequence's end.
        """
        s = Sequences.of(x, self.input_size, self.batch_first)
        sizes = (self.hidden_size,) * 2 + (self.hyper_size,) * 2
        given = s.state(state, HyperLSTMState._fields, self.num_layers, sizes)
        rows, ends, every = self._run(s, given)
        out, final = s.output(rows), HyperLSTMState(*s.final(ends))
        if not return_scales:
            return out, final
        parts = []
        for layer, states in enumerate(every):
            read = states.hyper_h
            if self.options.embedding_from == "previous":
                read = s.previous(states.hyper_h, given[2][layer])
            parts.append([s.padded(part) for part in scales_of(read, self._weights(layer)[2])])
        return out, final, Scales(*(torch.stack(part) for part in zip(*parts, strict=True)))

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, hyper_size={self.hyper_size}, "
            f"embedding_size={self.embedding_size}, num_layers={self.num_layers}, layer_norm={self.layer_norm}"
        )


class HyperLSTMCell(HyperLSTM):
    """One step of a one-layer HyperLSTM: cell(x [B,I], state) -> state, each part [B,size]; without B, unbatched.

    The arguments are HyperLSTM's without num_layers, batch_first and dropout; the parameters are its layer 0, so that
    state_dicts fit both.
    """

    def __init__(
        self, input_size: int, hidden_size: int, hyper_size: int = 128, embedding_size: int = 4, **options: Any
    ):
        for name in ("num_layers", "batch_first", "dropout"):
            if name in options:
                raise TypeError(f"a cell takes no {name}")
        super().__init__(input_size, hidden_size, hyper_size, embedding_size, **options)

    def forward(self, x: Tensor, state: Sequence[Tensor] | None = None) -> HyperLSTMState:  # type: ignore[override]
        """The state after x; state None: zeros."""
        if not isinstance(x, Tensor) or x.dim() not in (1, 2):
            raise ValueError(f"x must be a tensor [B,I] or [I]; got {tuple(x.shape) if isinstance(x, Tensor) else x!r}")
        parts = None if state is None else [part.unsqueeze(0) for part in state]
        _, after = super().forward(x.unsqueeze(0), parts)
        return HyperLSTMState(*(part.squeeze(0) for part in after))


class LayerNormLSTM(_Recurrence):
    """An LSTM whose gates and output are layer-normalised (the paper's baseline); nn.LSTM with layer_norm=False.

        y  = LN(W_h h + W_x x + b)  for y in i, f, g, o     c' = sigmoid(f + forget_bias) * c + sigmoid(i) * Dropout(tanh g)
        h' = sigmoid(o) * tanh(LN(c'))

    LN has eps 1e-3 inside the root. Parameters of layer l, gates in the order i, f, g, o: weight_ih_l{l} [4H,I],
    weight_hh_l{l} [4H,H], bias_l{l} [4H]; with layer_norm ln_weight_l{l} and ln_bias_l{l} [5,H] (i, f, g, o, c). The
    other arguments are HyperLSTM's.
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
        options = Options("current", float(forget_bias), recurrent_dropout)
        super().__init__(input_size, hidden_size, 0, num_layers, batch_first, dropout, layer_norm, False, options)
        for layer in range(num_layers):
            inputs = hidden_size if layer else input_size
            self._add_cell("", layer, inputs, hidden_size, layer_norm, {"device": device, "dtype": dtype})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Orthogonal weights, biases 0, layer norm at 1 and 0."""
        for layer in range(self.num_layers):
            self._reset_cell("", layer, self.layer_norm)

    @classmethod
    @torch.no_grad()
    def from_lstm(cls, lstm: nn.LSTM) -> LayerNormLSTM:
        """A layer without layer norm that computes what `lstm` computes.

        Raises ValueError where `lstm` has projections or two directions.
        """
        weight = _check_convertible(lstm)
        new = cls(
            lstm.input_size, lstm.hidden_size, lstm.num_layers, lstm.batch_first, lstm.dropout, layer_norm=False,
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        _copy_weights(new, lstm)
        return new

    def _weights(self, layer: int) -> tuple[Cell, None, None]:
        return self._cell("", layer, self.layer_norm), None, None

    def forward(
        self, x: Tensor | PackedSequence, state: Sequence[Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, LSTMState]:
        """(out, (h, c)) as HyperLSTM's forward; state: h and c, each [L,B,H]."""
        s = Sequences.of(x, self.input_size, self.batch_first)
        h, c = s.state(state, LSTMState._fields, self.num_layers, (self.hidden_size,) * 2)
        nothing = h.new_empty(*h.shape[:2], 0)
        rows, ends, _ = self._run(s, (h, c, nothing, nothing))
        return s.output(rows), LSTMState(*s.final(ends[:2]))

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, layer_norm={self.layer_norm}"


def _check_convertible(lstm: nn.LSTM) -> Tensor:
    """One of its weights, which have its device and dtype."""
    if not isinstance(lstm, nn.LSTM):
        raise TypeError(f"lstm must be an nn.LSTM; got {type(lstm).__name__}")
    if lstm.bidirectional or lstm.proj_size:
        raise ValueError("lstm must have one direction and no projections")
    return lstm.get_parameter("weight_hh_l0")


def _copy_weights(new: _Recurrence, lstm: nn.LSTM) -> None:
    """Gates have the same order; both biases of nn.LSTM become one."""
    for layer in range(lstm.num_layers):
        new._get("weight_ih", layer).copy_(getattr(lstm, f"weight_ih_l{layer}"))
        new._get("weight_hh", layer).copy_(getattr(lstm, f"weight_hh_l{layer}"))
        bias = new._get("bias", layer)
        bias.zero_()
        if lstm.bias:
            bias.copy_(getattr(lstm, f"bias_ih_l{layer}") + getattr(lstm, f"bias_hh_l{layer}"))
