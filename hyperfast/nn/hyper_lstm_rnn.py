"""HyperRNN: the recurrence that HyperLSTM grew from (HyperNetworks, equations 5 to 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..ops.hyper_lstm_rnn import hyper_rnn
from ..reference.hyper_lstm import Scaling
from ..reference.hyper_lstm_rnn import NONLINEARITIES, RNNCell
from .hyper_lstm import check_positive, orthogonal_
from .hyper_lstm_sequences import Sequences


class HyperRNNState(NamedTuple):
    """h [1,B,H] and hyper_h [1,B,K]; without B for unbatched input."""

    h: Tensor
    hyper_h: Tensor


class HyperRNN(nn.Module):
    """An RNN whose weights a smaller RNN changes at every step.

        hyper_h' = phi(W^_h hyper_h + W^_x [h; x] + b^)        z = Z hyper_h' (+ bias)
        h'       = phi(d_h * (W_h h) + d_x * (W_x x) + D_b z_b + b0),  d = D z       scaling="rows", equation 8
        h'       = phi(<W_hz, z_h> h + <W_xz, z_x> x + D_b z_b + b0)                 scaling="matrix", equation 5

    Args:
        input_size, hidden_size, hyper_size, embedding_size: I, H, K, Z.
        nonlinearity: phi, "tanh" or "relu".
        batch_first: as in nn.RNN.
        scaling: "rows", or "matrix", whose weights are Z times as many and which runs on the PyTorch reference: a first
            call says so (HyperfastFallbackWarning).

    Parameters: weight_ih_l0 [H,I], weight_hh_l0 [H,H] (matrix: [H,I,Z], [H,H,Z]), bias_l0 [H]; hyper_weight_ih_l0
    [K,H+I] (columns h, then x), hyper_weight_hh_l0 [K,K], hyper_bias_l0 [K]; z_h_weight_l0, z_x_weight_l0, z_b_weight_l0
    [1,Z,K]; z_h_bias_l0, z_x_bias_l0 [1,Z]; d_h_weight_l0, d_x_weight_l0 (rows only) and d_b_weight_l0 [1,H,Z]. They
    start as HyperLSTM's do; generated matrices at orthogonal ones over Z.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        hyper_size: int = 32,
        embedding_size: int = 4,
        nonlinearity: str = "tanh",
        batch_first: bool = False,
        scaling: str = "rows",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "hyper_size": hyper_size,
                 "embedding_size": embedding_size}  # fmt: skip
        for name, value in sizes.items():
            check_positive(name, value)
        if nonlinearity not in NONLINEARITIES:
            raise ValueError(f"nonlinearity must be one of {', '.join(NONLINEARITIES)}; got {nonlinearity!r}")
        if scaling not in ("rows", "matrix"):
            raise ValueError(f"scaling must be 'rows' or 'matrix'; got {scaling!r}")
        self.input_size, self.hidden_size, self.hyper_size = input_size, hidden_size, hyper_size
        self.embedding_size, self.nonlinearity = embedding_size, nonlinearity
        self.batch_first, self.scaling = batch_first, scaling
        i, h, k, z = input_size, hidden_size, hyper_size, embedding_size
        generated = (z,) if scaling == "matrix" else ()
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (h, i, *generated), "weight_hh": (h, h, *generated), "bias": (h,),
            "hyper_weight_ih": (k, h + i), "hyper_weight_hh": (k, k), "hyper_bias": (k,),
            "z_h_weight": (1, z, k), "z_x_weight": (1, z, k), "z_b_weight": (1, z, k),
            "z_h_bias": (1, z), "z_x_bias": (1, z), "d_b_weight": (1, h, z),
        }  # fmt: skip
        if scaling == "rows":
            shapes |= {"d_h_weight": (1, h, z), "d_x_weight": (1, h, z)}
        for name, shape in shapes.items():
            self.register_parameter(f"{name}_l0", nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Orthogonal weights, biases 0, z at 1 and d at 0.1, as appendix A.2.3 has them for HyperLSTM."""
        for name, p in self.named_parameters():
            if name.startswith(("weight_", "hyper_weight_")):
                matrix = torch.empty(p.shape[:2], device=p.device, dtype=p.dtype)
                orthogonal_(matrix)
                p.copy_(matrix if p.dim() == 2 else (matrix / self.embedding_size).unsqueeze(2).expand_as(p))
            elif name.startswith("z_b"):
                nn.init.normal_(p, std=0.01)
            else:
                constants = {"z_h_bias": 1.0, "z_x_bias": 1.0, "d_h_weight": 0.1, "d_x_weight": 0.1}
                value = constants.get(name.removesuffix("_l0"), 0.0)
                nn.init.constant_(p, value / self.embedding_size if name.startswith("d_") else value)

    def forward(
        self, x: Tensor | PackedSequence, state: Sequence[Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, HyperRNNState]:
        """x: [T,B,I], [B,T,I] with batch_first, [T,I], or a PackedSequence; state: (h, hyper_h), None: zeros.

        Returns out, H features in the form of x, and the state after each sequence's last step.
        """
        s = Sequences.of(x, self.input_size, self.batch_first)
        h, hyper_h = s.state(state, HyperRNNState._fields, 1, (self.hidden_size, self.hyper_size))
        weights = {name.removesuffix("_l0"): p for name, p in self.named_parameters()}
        nothing = s.rows.new_empty(0)
        w, hyper = (RNNCell(*[weights[prefix + name] for name in RNNCell._fields]) for prefix in ("", "hyper_"))
        scaling = Scaling(*[weights.get(name, nothing) for name in Scaling._fields])
        rows, hyper_rows = hyper_rnn(
            s.rows, h[0], hyper_h[0], w, hyper, scaling, self.nonlinearity, s.batch_sizes
        )  # fmt: skip
        ends = [s.last(rows, h[0]).unsqueeze(0), s.last(hyper_rows, hyper_h[0]).unsqueeze(0)]
        return s.output(rows), HyperRNNState(*s.final(ends))

    def extra_repr(self) -> str:
        """The sizes."""
        return (
            f"{self.input_size}, {self.hidden_size}, hyper_size={self.hyper_size}, "
            f"embedding_size={self.embedding_size}, nonlinearity={self.nonlinearity!r}, scaling={self.scaling!r}"
        )
