"""What gauge fixing does with each layer of a plan. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# What the gauge does with a layer. The order is shared with csrc/gauge.h.
LEAVE, SCALE, SHIFT = range(3)


class GaugeRow(NamedTuple):
    """A layer as numbers: weight [filters, fan_in] and bias [filters] from these places of a row of theta on.

    bias -1: none. treatment LEAVE; SCALE its filters, and the next layer's columns, of which each filter has a block
    of (next fan_in / filters); SHIFT its bias.
    """

    weight: int
    bias: int
    filters: int
    fan_in: int
    treatment: int


@dataclass(frozen=True)
class GaugeLayer:
    """A layer as the gauge sees it. left_because: why its filters are not scaled; empty: they are."""

    name: str
    weight: int
    bias: int
    filters: int
    fan_in: int
    left_because: str


@dataclass(frozen=True)
class Gauge:
    """What gauge fixing does with each layer. unshifted_because: why the last bias keeps its mean; empty: it does not."""

    layers: tuple[GaugeLayer, ...]
    unshifted_because: str

    def rows(self, logits: bool) -> tuple[GaugeRow, ...]:
        """The layers as numbers; logits: whether the last bias is to lose its mean."""
        rows = [
            GaugeRow(l.weight, l.bias, l.filters, l.fan_in, LEAVE if l.left_because else SCALE) for l in self.layers
        ]
        if logits and not self.unshifted_because:
            rows[-1] = rows[-1]._replace(treatment=SHIFT)
        return tuple(rows)

    def __str__(self) -> str:
        left: dict[str, list[str]] = {}
        for layer in self.layers:
            left.setdefault(layer.left_because, []).append(layer.name)
        scaled = left.pop("", ["none"])
        lines = [f"gauge scales: {', '.join(scaled)}"]
        lines += [f"gauge leaves: {', '.join(names)} ({why})" for why, names in left.items()]
        shifted = "loses its mean" if not self.unshifted_because else f"keeps its mean ({self.unshifted_because})"
        return "\n".join([*lines, f"gauge of logits: the last bias {shifted}"])
