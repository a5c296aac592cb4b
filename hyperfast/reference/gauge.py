"""Gauge fixing of flat weight vectors (Deutsch, section 3.2.2), in plain PyTorch.

A network of positively homogeneous layers, f(s x) = s f(x) for s > 0, computes the same when a filter (all
weights and the bias of one unit or channel) is divided by s and what the next layer reads of it is multiplied by
s. The softmax of its outputs does not change, either, when one number is added to all of them. Two weight
vectors that differ by nothing else are one network; fix_gauge gives both the same representative.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..plan import (
    IDENTITY,
    Activation,
    ActivationStage,
    CNNStage,
    DropoutStage,
    Entry,
    FlattenStage,
    MLPStage,
    Plan,
    PoolStage,
    ResidualStage,
    Stage,
)

HOMOGENEOUS = ("identity", "relu", "leaky_relu")


def fix_gauge(theta: Tensor, plan: Plan, logits: bool = True, eps: float = 1e-12) -> Tensor:
    """theta [B,P] -> [B,P] of the same networks, every filter but the last layer's of norm^2 = n.

    For the layers in order, l = 1 ... L-1, and every filter (w, b) of n = fan-in + 1 elements (fan-in, where the
    layer has no bias):

        s = sqrt((sum w^2 + b^2) / n + eps)     w, b <- w / s, b / s     next layer's columns for it <- s * columns

    so that norm^2 / n falls short of 1 by eps / s^2 (s shrinks from layer to layer: eps must be small beside s^2 of
    the last but one), and a filter of zeros stays one. After a Flatten a channel's columns are a block.
    logits=True also subtracts from the last layer's biases their mean: class probabilities stay, outputs shift.
    Differentiable in theta; theta's floating dtype.

    Raises ValueError that names the layer where the network has no such symmetry: an activation that is not
    positively homogeneous, a norm, a residual connection; with logits=True also where something behind the
    last layer keeps its bias from shifting every output alike.
    """
    if theta.dim() != 2 or theta.shape[1] != plan.num_weights:
        raise ValueError(f"theta must be [B,P] with the plan's P = {plan.num_weights}; got {tuple(theta.shape)}")
    layers = _checked_layers(plan, logits)
    fixed: list[Tensor] = []
    scale: Tensor | None = None  # [B, channels of the layer before]
    for layer in layers:
        weight = theta[:, layer.weight.place].unflatten(1, (layer.weight.shape[0], -1))  # [B, filters, fan-in]
        bias = None if layer.bias is None else theta[:, layer.bias.place]
        if scale is not None:
            weight = (weight.unflatten(2, (scale.shape[1], -1)) * scale[:, None, :, None]).flatten(2)
        if layer is not layers[-1]:
            squares = weight.square().sum(2) if bias is None else weight.square().sum(2) + bias.square()
            count = weight.shape[2] + (bias is not None)
            scale = torch.sqrt(squares / count + eps)
            weight = weight / scale.unsqueeze(2)
            bias = None if bias is None else bias / scale
        elif logits and bias is not None:
            bias = bias - bias.mean(1, keepdim=True)
        fixed.append(weight.flatten(1))
        if bias is not None:
            fixed.append(bias)
    return torch.cat(fixed, 1) if fixed else theta


@dataclass(frozen=True)
class _Layer:
    """A layer with weights, and what runs before the next one."""

    name: str
    weight: Entry
    bias: Entry | None
    activation: Activation


def _checked_layers(plan: Plan, logits: bool) -> list[_Layer]:
    steps = list(_steps(plan))
    places = [at for at, step in enumerate(steps) if isinstance(step, _Layer)]
    if not places:
        return []
    last = places[-1]
    for step in steps[places[0] : last]:
        _check_homogeneous(step)
    final = steps[last]
    if logits and isinstance(final, _Layer) and final.bias is not None:
        if final.activation != IDENTITY:
            raise ValueError(_no_logits(final.name, str(final.activation)))
        for step in steps[last + 1 :]:
            harmless = isinstance(step, (FlattenStage, DropoutStage)) or (
                isinstance(step, PoolStage) and (step.kind == "max" or step.padding == (0, 0))
            )
            if isinstance(step, Stage) and not harmless:
                raise ValueError(_no_logits(final.name, step.describe()))
    return [step for step in steps if isinstance(step, _Layer)]


def _no_logits(name: str, what: str) -> str:
    return (
        f"logits=True needs outputs that the bias of the last layer {name!r} shifts alike, and {what} is behind it; "
        f"pass logits=False"
    )


def _check_homogeneous(step: _Layer | Stage) -> None:
    match step:
        case _Layer() if step.activation.name not in HOMOGENEOUS:
            raise ValueError(_not_homogeneous(step.name, step.activation))
        case ActivationStage() if step.activation.name not in HOMOGENEOUS:
            raise ValueError(_not_homogeneous(step.names[0], step.activation))
        case _Layer() | ActivationStage() | PoolStage() | FlattenStage() | DropoutStage():
            return
    raise ValueError(_no_symmetry(step))


def _no_symmetry(stage: Stage) -> str:
    return f"layer {stage.names[0]!r} ({stage.describe()}) does not keep the scaling symmetry of filters"


def _not_homogeneous(name: str, activation: Activation) -> str:
    return (
        f"layer {name!r} has the activation {activation}, which is not positively homogeneous; "
        f"the gauge is defined for {', '.join(HOMOGENEOUS)}"
    )


def _steps(plan: Plan) -> Iterator[_Layer | Stage]:
    """Layers with weights, and the stages between them, in order."""
    entries = iter(plan.layout)
    planes = False  # whether values are [C,H,W], so that a Linear would not see channels
    for stage in plan.stages:
        match stage:
            case CNNStage():
                for conv in stage.cnn.layers:
                    yield _layer(entries, conv.bias, conv.activation)
                planes = True
            case MLPStage():
                for _, _, activation, bias in stage.mlp.layers():
                    layer = _layer(entries, bias, activation)
                    if planes:
                        raise ValueError(f"layer {layer.name!r} reads rows of images; the gauge needs a Flatten before")
                    yield layer
            case ResidualStage():
                raise ValueError(_no_symmetry(stage))
            case _:
                planes = planes and not isinstance(stage, FlattenStage)
                yield stage


def _layer(entries: Iterator[Entry], has_bias: bool, activation: Activation) -> _Layer:
    weight = next(entries)
    return _Layer(weight.name.removesuffix(".weight"), weight, next(entries) if has_bias else None, activation)
