"""HyperLSTM over many steps against the cell as it is usually written, a careful one, and that one compiled."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperfast.ops.hyper_lstm import hyper_lstm
from hyperfast.reference import hyper_lstm as reference
from hyperfast.reference.hyper_lstm import LAYER_NORM_EPSILON, Cell, HyperState, LSTMState, Options, Scaling

from . import hyper_lstm_rnn
from .case import Case, Implementation

OPTIONS = Options(forget_bias=1.0)
STEPS = 100


def cases(device: str = "cpu") -> list[Case]:
    return [
        _case("ptb B=128", 128, STEPS, 50, 1000, 128, 4),
        _case("ptb B=16", 16, STEPS, 50, 1000, 128, 4),
        _case("ptb B=1", 1, STEPS, 50, 1000, 128, 4, backward=False),
        _case("ptb B=1, bfloat16 weights", 1, STEPS, 50, 1000, 128, 4, backward=False, weights=torch.bfloat16),
        # Not 128 sequences: eager's gradient in float64, which the gate takes, would need more than 15 GB.
        _case("enwik8 B=16", 16, 250, 205, 1800, 256, 64, long=True),
        _case("enwik8 H=2048, B=16", 16, 250, 205, 2048, 512, 64, long=True),
        *hyper_lstm_rnn.cases(),
        *(plain_cases() if device == "cuda" else ()),
    ]


def _case(
    name: str, batch: int, steps: int, i: int, h: int, k: int, z: int, *,
    backward: bool = True, weights: torch.dtype = torch.float32, long: bool = False,
) -> Case:  # fmt: skip
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        x, state, *parts = reference.make_inputs(steps, batch, i, h, k, z, device=device)
        low = [t.to(weights) for part in parts for t in part]
        return x, *state.main, *state.hyper, *low

    wide = weights == torch.float32
    products = 4 * (h + k) * (h + i) + 4 * k * k + 12 * z * (k + h)
    baselines: dict[str, Implementation] = {
        "eager": eager if wide else _in_float32(eager),
        "careful": careful if wide else _in_float32(careful),
        "compile": compiled if wide else _in_float32(compiled),
        "nn.LSTM": plain_lstm if wide else _in_float32(plain_lstm),
    }
    return Case(
        family="hyper_lstm",
        name=name,
        shape={"B": batch, "T": steps, "I": i, "H": h, "K": k, "Z": z, "weights": str(weights).removeprefix("torch.")},
        inputs=inputs,
        ours=lambda *tensors: hyper_lstm(*_grouped(tensors), OPTIONS).h,
        reference=lambda *tensors: reference.hyper_lstm(tensors[0], [batch] * steps, *_grouped(tensors)[1:], OPTIONS).h,
        baselines=baselines,
        flops=2 * steps * batch * products,
        bytes=steps * weights.itemsize * products,  # the weights once a step
        gradient_of=(0, *range(5, 23)) if backward else (),
        compiled=(),
        yardsticks=("nn.LSTM",),
        long=long,
    )


def plain_cases() -> list[Case]:
    """Without a hyper cell and layer norm, against cuDNN, which has kernels of its own for H up to 1024."""
    types = torch.float32, torch.bfloat16, torch.float16
    return [
        _plain(f"lstm H={h}, {str(t).removeprefix('torch.')}", 128, STEPS, 50, h, t)
        for h in (1000, 1024)
        for t in types
    ]


def _plain(name: str, batch: int, steps: int, i: int, h: int, dtype: torch.dtype) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        x, state, w, *_ = reference.make_inputs(steps, batch, i, h, 1, 1, layer_norm=False, device=device)
        return tuple(t.to(dtype) for t in (x, *state.main, *w[:3]))

    def state_of(h: Tensor, c: Tensor) -> HyperState:
        none = h.new_empty(batch, 0)
        return HyperState(LSTMState(h, c), LSTMState(none, none))

    def exact(x: Tensor, h: Tensor, c: Tensor, *w: Tensor) -> Tensor:
        return reference.hyper_lstm(x, [batch] * steps, state_of(h, c), Cell(*w), None, None, Options()).h

    products = 4 * h * (h + i)
    return Case(
        family="hyper_lstm",
        name=name,
        shape={"B": batch, "T": steps, "I": i, "H": h},
        inputs=inputs,
        ours=lambda x, h, c, *w: hyper_lstm(x, state_of(h, c), Cell(*w)).h,
        reference=exact,
        baselines={"eager": _torch_lstm},
        flops=2 * steps * batch * products,
        bytes=steps * dtype.itemsize * products,
        gradient_of=(0, 3, 4, 5),
        dtype=dtype,
        compiled=(),
    )


def _grouped(tensors: tuple[Tensor, ...]) -> tuple[Tensor, HyperState, Cell, Cell, Scaling]:
    x, h, c, hyper_h, hyper_c, *weights = tensors
    state = HyperState(LSTMState(h, c), LSTMState(hyper_h, hyper_c))
    return x, state, Cell(*weights[:5]), Cell(*weights[5:10]), Scaling(*weights[10:])


def _in_float32(run: Any) -> Implementation:
    """Of a baseline that has no mixed types: on float32 copies, which it makes before the clock starts."""
    copies: dict[int, tuple[Tensor, Tensor]] = {}  # of an id: the tensor, which so keeps its id, and its copy

    def converted(*tensors: Tensor) -> Tensor:
        for t in tensors:
            if id(t) not in copies:
                copies[id(t)] = t, t.to(tensors[0].dtype)
        return run(*(copies[id(t)][1] for t in tensors))

    return converted


# ---- baselines: the 23 tensors -> h [R,H] ------------------------------------------------------------


def eager(*tensors: Tensor) -> Tensor:
    """The cell as it is usually written: gate by gate, everything inside the loop."""
    x, state, w, hyper, scaling = _grouped(tensors)
    (h, c), (hyper_h, hyper_c) = state
    units, outputs = h.shape[1], []
    for x_t in x.unflatten(0, (-1, h.shape[0])):
        gates = F.linear(torch.cat([h, x_t], 1), hyper.weight_ih) + F.linear(hyper_h, hyper.weight_hh, hyper.bias)
        hyper_h, hyper_c = _cell(list(gates.chunk(4, 1)), hyper_c, hyper)
        hh, xh, gates = F.linear(h, w.weight_hh), F.linear(x_t, w.weight_ih), []
        for g in range(4):
            z_h = F.linear(hyper_h, scaling.z_h_weight[g], scaling.z_h_bias[g])
            z_x = F.linear(hyper_h, scaling.z_x_weight[g], scaling.z_x_bias[g])
            z_b = F.linear(hyper_h, scaling.z_b_weight[g])
            d_h, d_x = F.linear(z_h, scaling.d_h_weight[g]), F.linear(z_x, scaling.d_x_weight[g])
            beta = F.linear(z_b, scaling.d_b_weight[g], w.bias[g * units : (g + 1) * units])
            own = slice(g * units, (g + 1) * units)
            gates.append(d_h * hh[:, own] + d_x * xh[:, own] + beta)
        h, c = _cell(gates, c, w)
        outputs.append(h)
    return torch.cat(outputs)


def _cell(gates: list[Tensor], c: Tensor, w: Cell) -> tuple[Tensor, Tensor]:
    i, f, g, o = (_layer_norm(gate, w, k) for k, gate in enumerate(gates))
    c = torch.sigmoid(f + OPTIONS.forget_bias) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(_layer_norm(c, w, 4)), c


def _layer_norm(x: Tensor, w: Cell, k: int) -> Tensor:
    weight, bias = (None, None) if w.ln_weight is None or w.ln_bias is None else (w.ln_weight[k], w.ln_bias[k])
    return F.layer_norm(x, x.shape[-1:], weight, bias, LAYER_NORM_EPSILON)


def careful(*tensors: Tensor) -> Tensor:
    """All input products before the loop, one product of h for both cells, all gates together."""
    return _careful(_careful_step, tensors)


def compiled(*tensors: Tensor) -> Tensor:
    """The careful one's step compiled: the whole loop would take minutes to compile."""
    return _careful(_compiled_step(), tensors)


def _careful(step: Any, tensors: tuple[Tensor, ...]) -> Tensor:
    x, state, w, hyper, s = _grouped(tensors)
    (h, c), (hyper_h, hyper_c) = state
    batch, units = h.shape
    inputs = F.linear(x, torch.cat([w.weight_ih, hyper.weight_ih[:, units:]])).unflatten(0, (-1, batch))
    recurrent = torch.cat([w.weight_hh, hyper.weight_ih[:, :units]])
    z_weight = torch.cat([s.z_h_weight, s.z_x_weight, s.z_b_weight]).flatten(0, 1)
    z_bias = torch.cat([s.z_h_bias, s.z_x_bias, torch.zeros_like(s.z_h_bias)]).flatten()
    maps = torch.cat([s.d_h_weight, s.d_x_weight, s.d_b_weight]).mT.contiguous()  # [12,Z,H]
    fixed = (recurrent, hyper.weight_hh, z_weight, z_bias, maps, *w[2:], *hyper[2:])
    outputs = []
    for inputs_t in inputs:
        h, c, hyper_h, hyper_c = step(inputs_t, h, c, hyper_h, hyper_c, *fixed)
        outputs.append(h)
    return torch.cat(outputs)


def _careful_step(
    inputs, h, c, hyper_h, hyper_c, recurrent, hyper_recurrent, z_weight, z_bias, maps, bias, ln_w, ln_b,
    hyper_bias, hyper_ln_w, hyper_ln_b,
):  # fmt: skip
    units, k, z = h.shape[1], hyper_h.shape[1], maps.shape[1]
    products = F.linear(h, recurrent)
    own = F.linear(hyper_h, hyper_recurrent, hyper_bias)
    hyper_gates = (products[:, 4 * units :] + inputs[:, 4 * units :] + own).unflatten(1, (4, k))
    hyper_h, hyper_c = _careful_cell(hyper_gates, hyper_c, hyper_ln_w, hyper_ln_b)
    embeddings = F.linear(hyper_h, z_weight, z_bias).unflatten(1, (12, z))
    scales = torch.bmm(embeddings.transpose(0, 1), maps).transpose(0, 1)  # [B,12,H]
    gates = scales[:, :4] * products[:, : 4 * units].unflatten(1, (4, units))
    gates = gates + scales[:, 4:8] * inputs[:, : 4 * units].unflatten(1, (4, units)) + scales[:, 8:] + bias.view(4, -1)
    h, c = _careful_cell(gates, c, ln_w, ln_b)
    return h, c, hyper_h, hyper_c


def _careful_cell(gates: Tensor, c: Tensor, ln_w: Tensor, ln_b: Tensor) -> tuple[Tensor, Tensor]:
    gates = F.layer_norm(gates, gates.shape[-1:], eps=LAYER_NORM_EPSILON) * ln_w[:4] + ln_b[:4]
    i, f, g, o = gates.unbind(1)
    c = torch.sigmoid(f + OPTIONS.forget_bias) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(F.layer_norm(c, c.shape[-1:], ln_w[4], ln_b[4], LAYER_NORM_EPSILON)), c


@cache
def _compiled_step() -> Any:
    return torch.compile(_careful_step)


def plain_lstm(*tensors: Tensor) -> Tensor:
    """nn.LSTM's recurrence of this size, a yardstick: no scales, no layer norm, another function."""
    return _torch_lstm(*tensors[:3], *tensors[5:8])


def _torch_lstm(x: Tensor, h: Tensor, c: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> Tensor:
    rows, state = x.unflatten(0, (-1, h.shape[0])), (h.unsqueeze(0), c.unsqueeze(0))
    weights = [weight_ih, weight_hh, bias, torch.zeros_like(bias)]
    return torch._VF.lstm(rows, state, weights, True, 1, 0.0, False, False, False)[0].flatten(0, 1)
