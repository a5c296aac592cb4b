"""HyperRNN over all time steps: the recurrence of hyper_lstm.py with cells of one gate, on the same raw ops."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends
from ..reference import hyper_lstm_rnn as reference
from ..reference.hyper_lstm import Options, Scaling
from ..reference.hyper_lstm_rnn import RNNCell
from .checks import autocast
from .hyper_lstm import run, steps_of

backends.register("hyper_rnn", "cpp", "triton")
# Equation 5: each sequence has matrices of its own at each step, so that no weights are shared and nothing is packed.
backends.register("hyper_rnn_matrix")


def hyper_rnn(
    x: Tensor,
    h: Tensor,
    hyper_h: Tensor,
    w: RNNCell,
    hyper: RNNCell,
    scaling: Scaling,
    nonlinearity: str,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """An RNN, the rows of whose weights a smaller RNN scales at every step (HyperNetworks, equation 8):

        hyper_h' = phi(W^_h hyper_h + W^_x [h; x] + b^)        z = Z hyper_h' (+ bias)
        h'       = phi(d_h * (W_h h) + d_x * (W_x x) + D_b z_b + b0),  d = D z

    Args:
        x: [R,I]: rows of all steps, one step after the other; [T,B,I].flatten(0, 1) where all sequences are as long.
        h, hyper_h: [B,H] and [B,K].
        w, hyper: the cells' weights. Generated ones [H,I,Z] and [H,H,Z] in w: equation 5, on the reference alone.
        scaling: the maps, of one gate.
        nonlinearity: phi, "tanh" or "relu".
        batch_sizes: [T] int64 on the CPU, rows of each step, never more than before, at first B; None: B each.

    Returns:
        h [R,H] and hyper_h [R,K] after each step, in x's dtype. All differentiable, twice.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    if w.weight_hh.dim() == 3:
        return _matrix(x, h, hyper_h, w, hyper, scaling, nonlinearity, batch_sizes)
    if nonlinearity not in reference.NONLINEARITIES:
        raise ValueError(f"nonlinearity must be one of {', '.join(reference.NONLINEARITIES)}; got {nonlinearity!r}")
    c, hyper_c = (x.new_empty(h.shape[0], 0) for _ in range(2))
    tensors = (x, h, c, hyper_h, hyper_c, *w, None, None, *hyper, None, None, *scaling)
    out = run("hyper_rnn", tensors, Options(cell=nonlinearity), batch_sizes, None)
    return out.h, out.hyper_h


def _matrix(
    x: Tensor, h: Tensor, hyper_h: Tensor, w: RNNCell, hyper: RNNCell, scaling: Scaling, nonlinearity: str,
    batch_sizes: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tensors = autocast(x.device.type, x, h, hyper_h, *w, *hyper, *scaling)
    backends.select("hyper_rnn_matrix", x.device.type, *{t.dtype for t in tensors})
    sizes = steps_of(x.shape[0], h.shape[0], torch.empty(0) if batch_sizes is None else batch_sizes)
    x, h, hyper_h, *weights = tensors
    return reference.hyper_rnn(
        x, sizes, h, hyper_h, RNNCell(*weights[:3]), RNNCell(*weights[3:6]), Scaling(*weights[6:]), nonlinearity
    )
