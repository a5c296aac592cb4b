"""HyperRNN (HyperNetworks, equations 5 to 8), one step after the other, in plain PyTorch; shapes as in hyper_lstm.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import hyper_lstm
from .hyper_lstm import Scales, Scaling, scales_of


class RNNCell(NamedTuple):
    """The weights of one RNN cell: input [H,I], recurrent [H,H], bias [H]; generated ones [H,I,Z] and [H,H,Z]."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor


NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


def embeddings_of(hyper: Tensor, w: Scaling) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 6: z_h, z_x and z_b, each [B,Z], from the hyper cell's output [B,K]."""
    z_h = hyper @ w.z_h_weight[0].mT + w.z_h_bias[0]
    z_x = hyper @ w.z_x_weight[0].mT + w.z_x_bias[0]
    return z_h, z_x, hyper @ w.z_b_weight[0].mT


def hyper_rnn_step(
    x: Tensor, h: Tensor, hyper_h: Tensor, w: RNNCell, hyper: RNNCell, scaling: Scaling, nonlinearity: str
) -> tuple[Tensor, Tensor]:
    """x [B,I], h [B,H], hyper_h [B,K] -> the next h and hyper_h.

        hyper_h' = phi(W^_h hyper_h + W^_x [h; x] + b^)
        h'       = phi(d_h * W_h h + d_x * W_x x + b)          equation 8; weights [H,H] and [H,I]
        h'       = phi((W_hz z_h) h + (W_xz z_x) x + b)        equation 5; weights [H,H,Z] and [H,I,Z]

    with d = D z and b = D_b z_b + b0.
    """
    phi = NONLINEARITIES[nonlinearity]
    after = phi(torch.cat([h, x], 1) @ hyper.weight_ih.mT + hyper_h @ hyper.weight_hh.mT + hyper.bias)
    if w.weight_hh.dim() == 3:
        z_h, z_x, z_b = embeddings_of(after, scaling)
        recurrent = torch.einsum("hkz,bz,bk->bh", w.weight_hh, z_h, h)
        inputs = torch.einsum("hiz,bz,bi->bh", w.weight_ih, z_x, x)
        return phi(recurrent + inputs + z_b @ scaling.d_b_weight[0].mT + w.bias), after
    d_h, d_x, b = (s.squeeze(1) for s in Scales(*scales_of(after, scaling)))
    return phi(d_h * (h @ w.weight_hh.mT) + d_x * (x @ w.weight_ih.mT) + b + w.bias), after


def hyper_rnn(
    x: Tensor,
    batch_sizes: Sequence[int],
    h: Tensor,
    hyper_h: Tensor,
    w: RNNCell,
    hyper: RNNCell,
    scaling: Scaling,
    nonlinearity: str,
) -> tuple[Tensor, Tensor]:
    """All steps: x [R,I] -> h [R,H] and hyper_h [R,K] after every step."""
    steps, begin = [], 0
    for n in batch_sizes:
        h, hyper_h = hyper_rnn_step(x[begin : begin + n], h[:n], hyper_h[:n], w, hyper, scaling, nonlinearity)
        begin += n
        steps.append((h, hyper_h))
    if not steps:
        return h[:0] + x.sum(), hyper_h[:0] + x.sum()
    hs, hyper_hs = zip(*steps, strict=True)
    return torch.cat(hs), torch.cat(hyper_hs)


def make_inputs(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    hyper_size: int,
    embedding_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, RNNCell, RNNCell, Scaling]:
    """x [T*B,I], h [B,H], hyper_h [B,K] and the weights of equation 8: of hyper_lstm's inputs the first gate."""
    x, state, w, hyper, scaling = hyper_lstm.make_inputs(
        steps, batch, input_size, hidden_size, hyper_size, embedding_size, dtype=dtype, device=device, seed=seed
    )
    own = RNNCell(w.weight_ih[:hidden_size], w.weight_hh[:hidden_size], w.bias[:hidden_size])
    small = RNNCell(hyper.weight_ih[:hyper_size], hyper.weight_hh[:hyper_size], hyper.bias[:hyper_size])
    return x, state.main.h, state.hyper.h, own, small, Scaling(*(t[:1] for t in scaling))
