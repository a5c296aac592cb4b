"""A target network of rows of numbers as a flat list of steps: what a kernel runs from the first layer to the last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .plan import (
    ACTIVATIONS,
    IDENTITY,
    MLP,
    Activation,
    ActivationStage,
    DropoutStage,
    FlattenStage,
    MLPStage,
    NormStage,
    ResidualStage,
    Stage,
)

# Kinds of step. The order is shared with csrc/coord_grid.h.
LINEAR, ACTIVATE, OPEN, CLOSE = range(4)
_INTS = 5


class Step(NamedTuple):
    """h = act(W h + c), LINEAR; act(h), ACTIVATE; h kept aside, OPEN; act(h + the one kept last), CLOSE.

    inputs, outputs: widths of h before and after. A LINEAR step's W [outputs, inputs] and then c [outputs] lie in a row
    of theta behind those of the steps before it.
    """

    kind: int
    inputs: int
    outputs: int
    activation: Activation = IDENTITY
    bias: bool = False

    @property
    def num_weights(self) -> int:
        return self.outputs * (self.inputs + self.bias) if self.kind == LINEAR else 0


@dataclass(frozen=True)
class Steps:
    """The whole network. Every OPEN has its CLOSE behind it."""

    steps: tuple[Step, ...]

    @property
    def inputs(self) -> int:
        return self.steps[0].inputs

    @property
    def outputs(self) -> int:
        return self.steps[-1].outputs

    @property
    def num_weights(self) -> int:
        return sum(step.num_weights for step in self.steps)

    @property
    def flops_per_row(self) -> int:
        """FLOPs of one forward row, two per multiply-add of the products."""
        return sum(2 * step.inputs * step.outputs for step in self.steps if step.kind == LINEAR)

    def as_mlp(self) -> MLP | None:
        """The same network as a run of linear layers, or None where it is more than that."""
        if any(step.kind != LINEAR for step in self.steps):
            return None
        widths = (self.inputs, *(step.outputs for step in self.steps))
        return MLP(widths, tuple(s.activation for s in self.steps), tuple(s.bias for s in self.steps))

    def encode(self) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """As the two lists that a raw op takes; decode() is its inverse, csrc/ops/coord_grid.cpp reads them."""
        ints = tuple(n for s in self.steps for n in (s.kind, s.inputs, s.outputs, s.activation.code, int(s.bias)))
        return ints, tuple(float(s.activation.parameter) for s in self.steps)

    @classmethod
    def decode(cls, ints: Sequence[int], parameters: Sequence[float]) -> Steps:
        rows = [ints[at : at + _INTS] for at in range(0, len(ints), _INTS)]
        return cls(
            tuple(
                Step(kind, inputs, outputs, Activation(ACTIVATIONS[code], parameter), bool(bias))
                for (kind, inputs, outputs, code, bias), parameter in zip(rows, parameters, strict=True)
            )
        )


def flat(stages: Sequence[Stage], inputs: int) -> Iterator[Step | NormStage]:
    """A plan's stages one after the other, for rows of `inputs` numbers; dropout left out.

    Raises ValueError for a stage that takes no such rows.
    """
    width = inputs
    for stage in stages:
        match stage:
            case MLPStage():
                _check_width(stage, stage.mlp.widths[0], width)
                for layer in stage.mlp.layers():
                    yield Step(LINEAR, *layer)
                width = stage.mlp.widths[-1]
            case NormStage():
                _check_width(stage, stage.features, width)
                yield stage
            case ActivationStage():
                yield Step(ACTIVATE, width, width, stage.activation)
            case ResidualStage():
                yield Step(OPEN, width, width)
                after = width
                for item in flat(stage.stages, width):
                    yield item
                    after = item.features if isinstance(item, NormStage) else item.outputs
                if after != width:
                    raise ValueError(f"net's residual {stage.names[0]!r} adds {after} features to {width}")
                yield Step(CLOSE, width, width)
            case FlattenStage() | DropoutStage():
                pass
            case _:
                raise ValueError(f"net must take rows of numbers; its layers {', '.join(stage.names)} take images")


def inputs_of(stages: Sequence[Stage]) -> int:
    """The numbers in a row that a plan's stages take. Raises ValueError where they take no rows of a fixed width."""
    for stage in stages:
        match stage:
            case MLPStage():
                return stage.mlp.widths[0]
            case NormStage():
                return stage.features
            case ResidualStage():
                return inputs_of(stage.stages)
            case ActivationStage() | DropoutStage():
                pass
            case _:
                break
    raise ValueError("net must take rows of numbers: its first layer with weights must be Linear")


def _check_width(stage: Stage, takes: int, gets: int) -> None:
    if takes != gets:
        raise ValueError(f"layer {stage.names[0]!r} of net takes {takes} inputs but gets {gets}")


def steps_of(stages: Sequence[Stage]) -> Steps:
    """All steps of a plan without norms. Raises ValueError for stages that take no rows of numbers, and for norms."""
    items = list(flat(stages, inputs_of(stages)))
    norms = [item.names[0] for item in items if isinstance(item, NormStage)]
    if norms:
        raise ValueError(f"a norm's statistics are not part of a plan; net has the norms {norms}")
    return Steps(joined(item for item in items if isinstance(item, Step)))


def joined(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The same steps, an activation behind a CLOSE taken into it."""
    result: list[Step] = []
    for step in steps:
        if step.kind == ACTIVATE and result and result[-1].kind == CLOSE and result[-1].activation == IDENTITY:
            result[-1] = result[-1]._replace(activation=step.activation)
        else:
            result.append(step)
    return tuple(result)
