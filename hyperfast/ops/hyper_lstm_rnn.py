"""HyperRNN over all time steps. No kernel serves it yet: the paper reports no HyperRNN, and the reference is honest."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends
from ..reference import hyper_lstm_rnn as reference
from ..reference.hyper_lstm import Scaling
from ..reference.hyper_lstm_rnn import RNNCell
from .checks import autocast
from .hyper_lstm import steps_of

backends.register("hyper_rnn")


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
    """Equations 5 to 8 over all steps, see the reference's hyper_rnn_step: h [R,H] and hyper_h [R,K] after each.

    x [R,I]: rows of all steps, one step after the other; batch_sizes [T] int64 on the CPU, None: B rows each.
    """
    tensors = autocast(x.device.type, x, h, hyper_h, *w, *hyper, *scaling)
    backends.select("hyper_rnn", x.device.type, *{t.dtype for t in tensors})
    sizes = steps_of(x.shape[0], h.shape[0], torch.empty(0) if batch_sizes is None else batch_sizes)
    x, h, hyper_h, *weights = tensors
    return reference.hyper_rnn(
        x, sizes, h, hyper_h, RNNCell(*weights[:3]), RNNCell(*weights[3:6]), Scaling(*weights[6:]), nonlinearity
    )
