"""Which layers of a plan the gauge scales, and why it leaves the others alone. Plain data from plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..plan import (
    Activation,
    ActivationStage,
    CNNStage,
    DropoutStage,
    Entry,
    FlattenStage,
    MLPStage,
    NormStage,
    PoolStage,
    ResidualStage,
    Stage,
)
from ..plan_gauge import Gauge, GaugeLayer

HOMOGENEOUS = ("identity", "relu", "leaky_relu")
"""Activations with f(s x) = s f(x) for every s > 0."""


@dataclass(frozen=True)
class _Weights:
    """A layer with weights. `rows`: it reads rows of planes, so that neither its inputs nor its units are channels.

    `groups`: of its inputs, each read by filters of its own.
    """

    weight: Entry
    bias: Entry | None
    rows: bool = False
    groups: int = 1

    @property
    def name(self) -> str:
        return self.weight.name.removesuffix(".weight")


@dataclass(frozen=True)
class _Between:
    """What lies behind a layer: why scales don't pass through it, and why a shift doesn't; empty: they do."""

    scale: str = ""
    shift: str = ""


def gauge_of(stages: tuple[Stage, ...], layout: tuple[Entry, ...]) -> Gauge:
    """The gauge of a plan with these stages.

    A layer is scaled where a positive factor on one of its filters reaches the next layer's inputs, and nothing
    else, as the same factor: through activations of HOMOGENEOUS, pooling, dropout and Flatten. The last bias is
    shifted where adding one number to it adds one number to every output.
    """
    steps, _ = _steps(stages, iter(layout), planes=False)
    places = [at for at, step in enumerate(steps) if isinstance(step, _Weights)]
    if not places:
        return Gauge((), "there is none")
    layers = []
    for at, following in zip(places, [*places[1:], None], strict=True):
        between = [step for step in steps[at + 1 : following] if isinstance(step, _Between)]
        reader = None if following is None else steps[following]
        layers.append(_layer(steps[at], between, reader))
    last, behind = steps[places[-1]], steps[places[-1] + 1 :]
    no_bias = "" if isinstance(last, _Weights) and last.bias is not None else "the last layer has none"
    why = [no_bias] + [step.shift for step in behind if isinstance(step, _Between)]
    return Gauge(tuple(layers), next(filter(None, why), ""))


def _layer(layer: _Weights | _Between, between: list[_Between], reader: _Weights | _Between | None) -> GaugeLayer:
    assert isinstance(layer, _Weights)  # places are those of layers
    filters, fan_in = layer.weight.shape[0], layer.weight.fan_in
    why = next((step.scale for step in between if step.scale), "")
    if layer.rows:
        why = "it reads rows of planes"
    elif not isinstance(reader, _Weights):
        why = "no layer reads its outputs"
    elif reader.rows:
        why = f"layer {reader.name!r} reads rows of its planes"
    elif reader.groups > 1:
        why = why or f"layer {reader.name!r} reads its outputs in groups"
    elif reader.weight.fan_in % filters:
        why = why or f"layer {reader.name!r} does not fit its outputs"
    bias = -1 if layer.bias is None else layer.bias.place.start
    return GaugeLayer(layer.name, layer.weight.place.start, bias, filters, fan_in, why)


def _steps(stages: tuple[Stage, ...], entries: Iterator[Entry], planes: bool) -> tuple[list[_Weights | _Between], bool]:
    """Layers and what lies between them, in order, and whether values are planes [C,H,W] at the end."""
    steps: list[_Weights | _Between] = []
    for stage in stages:
        match stage:
            case CNNStage():
                for conv in stage.cnn.layers:
                    steps += (_weights(entries, conv.bias, groups=conv.groups), _activation(conv.activation))
                planes = True
            case MLPStage():
                for _, _, activation, bias in stage.mlp.layers():
                    steps += (_weights(entries, bias, rows=planes), _activation(activation))
            case ActivationStage():
                steps.append(_activation(stage.activation))
            case PoolStage():
                padded = stage.kind == "avg" and stage.padding != (0, 0)
                steps.append(_Between(shift=f"{stage.describe()} mixes it with zeros" if padded else ""))
                planes = True
            case FlattenStage():
                planes = False
            case DropoutStage():
                steps.append(_Between(shift=f"{stage.describe()} does not drop it"))
            case ResidualStage():
                taken = _Between(scale=f"the residual connection {stage.names[0]!r} takes its outputs")
                inner, planes = _steps(stage.stages, entries, planes)
                steps += (taken, *inner, taken)
            case NormStage():
                steps.append(_Between(*[f"norm {stage.names[0]!r} does not keep it"] * 2))
            case _:
                steps.append(_Between(*[f"{stage.describe()} does not keep it"] * 2))
    return steps, planes


def _activation(activation: Activation) -> _Between:
    homogeneous = activation.name in HOMOGENEOUS
    return _Between(
        scale="" if homogeneous else f"{activation} is not positively homogeneous",
        shift="" if activation.name == "identity" else f"{activation} does not keep it",
    )


def _weights(entries: Iterator[Entry], has_bias: bool, rows: bool = False, groups: int = 1) -> _Weights:
    weight = next(entries)
    return _Weights(weight, next(entries) if has_bias else None, rows, groups)
