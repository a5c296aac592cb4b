"""HyperRNN over many steps against the cell as it is usually written, a careful one, and that one compiled."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperfast.ops.hyper_lstm_rnn import hyper_rnn
from hyperfast.reference import hyper_lstm_rnn as reference
from hyperfast.reference.hyper_lstm import Scaling
from hyperfast.reference.hyper_lstm_rnn import RNNCell

from .case import Case

STEPS = 100


def cases() -> list[Case]:
    return [
        _case("rnn B=128", 128, STEPS, 50, 1000, 128, 4),
        _case("rnn B=16", 16, STEPS, 50, 1000, 128, 4),
        _case("rnn B=1", 1, STEPS, 50, 1000, 128, 4, backward=False),
    ]


def _case(name: str, batch: int, steps: int, i: int, h: int, k: int, z: int, *, backward: bool = True) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        x, h0, hyper_h0, *parts = reference.make_inputs(steps, batch, i, h, k, z, device=device)
        return x, h0, hyper_h0, *(t for part in parts for t in part)

    products = (h + k) * (h + i) + k * k + 3 * z * (k + h)
    return Case(
        family="hyper_lstm",
        name=name,
        shape={"B": batch, "T": steps, "I": i, "H": h, "K": k, "Z": z},
        inputs=inputs,
        ours=lambda *tensors: hyper_rnn(*_grouped(tensors), "tanh")[0],
        reference=lambda *tensors: reference.hyper_rnn(tensors[0], [batch] * steps, *_grouped(tensors)[1:], "tanh")[0],
        baselines={"eager": eager, "careful": careful, "compile": compiled, "nn.RNN": plain_rnn},
        flops=2 * steps * batch * products,
        bytes=4 * steps * products,  # the weights once a step
        gradient_of=(0, *range(3, 17)) if backward else (),
        compiled=(),
        yardsticks=("nn.RNN",),
    )


def _grouped(tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, RNNCell, RNNCell, Scaling]:
    x, h, hyper_h, *weights = tensors
    return x, h, hyper_h, RNNCell(*weights[:3]), RNNCell(*weights[3:6]), Scaling(*weights[6:])


# ---- baselines: the 17 tensors -> h [R,H] ------------------------------------------------------------


def eager(*tensors: Tensor) -> Tensor:
    """The cell as it is usually written: everything inside the loop."""
    x, h, hyper_h, w, hyper, s = _grouped(tensors)
    outputs = []
    for x_t in x.unflatten(0, (-1, h.shape[0])):
        own = F.linear(torch.cat([h, x_t], 1), hyper.weight_ih) + F.linear(hyper_h, hyper.weight_hh, hyper.bias)
        hyper_h = torch.tanh(own)
        z_h = F.linear(hyper_h, s.z_h_weight[0], s.z_h_bias[0])
        z_x = F.linear(hyper_h, s.z_x_weight[0], s.z_x_bias[0])
        d_h, d_x = F.linear(z_h, s.d_h_weight[0]), F.linear(z_x, s.d_x_weight[0])
        b = F.linear(F.linear(hyper_h, s.z_b_weight[0]), s.d_b_weight[0], w.bias)
        h = torch.tanh(d_h * F.linear(h, w.weight_hh) + d_x * F.linear(x_t, w.weight_ih) + b)
        outputs.append(h)
    return torch.cat(outputs)


def careful(*tensors: Tensor) -> Tensor:
    """All input products before the loop, one product of h for both cells, all embeddings together."""
    return _careful(_careful_step, tensors)


def compiled(*tensors: Tensor) -> Tensor:
    """The careful one's step compiled: the whole loop would take minutes to compile."""
    return _careful(_compiled_step(), tensors)


def _careful(step: Any, tensors: tuple[Tensor, ...]) -> Tensor:
    x, h, hyper_h, w, hyper, s = _grouped(tensors)
    batch, units = h.shape
    inputs = F.linear(x, torch.cat([w.weight_ih, hyper.weight_ih[:, units:]])).unflatten(0, (-1, batch))
    recurrent = torch.cat([w.weight_hh, hyper.weight_ih[:, :units]])
    z_weight = torch.cat([s.z_h_weight, s.z_x_weight, s.z_b_weight]).flatten(0, 1)
    z_bias = torch.cat([s.z_h_bias, s.z_x_bias, torch.zeros_like(s.z_h_bias)]).flatten()
    maps = torch.cat([s.d_h_weight, s.d_x_weight, s.d_b_weight]).mT.contiguous()  # [3,Z,H]
    fixed = (recurrent, hyper.weight_hh, z_weight, z_bias, maps, w.bias, hyper.bias)
    outputs = []
    for inputs_t in inputs:
        h, hyper_h = step(inputs_t, h, hyper_h, *fixed)
        outputs.append(h)
    return torch.cat(outputs)


def _careful_step(inputs, h, hyper_h, recurrent, hyper_recurrent, z_weight, z_bias, maps, bias, hyper_bias):
    units, z = h.shape[1], maps.shape[1]
    products = F.linear(h, recurrent)
    own = F.linear(hyper_h, hyper_recurrent, hyper_bias)
    hyper_h = torch.tanh(products[:, units:] + inputs[:, units:] + own)
    embeddings = F.linear(hyper_h, z_weight, z_bias).unflatten(1, (3, z))
    d_h, d_x, b = torch.bmm(embeddings.transpose(0, 1), maps)  # [3,B,H]
    return torch.tanh(d_h * products[:, :units] + d_x * inputs[:, :units] + b + bias), hyper_h


@cache
def _compiled_step() -> Any:
    return torch.compile(_careful_step)


def plain_rnn(*tensors: Tensor) -> Tensor:
    """nn.RNN's recurrence of this size, a yardstick: no scales, another function."""
    x, h, weights = tensors[0], tensors[1], [*tensors[3:6], torch.zeros_like(tensors[5])]
    rows = x.unflatten(0, (-1, h.shape[0]))
    return torch._VF.rnn_tanh(rows, h.unsqueeze(0), weights, True, 1, 0.0, False, False, False)[0].flatten(0, 1)
