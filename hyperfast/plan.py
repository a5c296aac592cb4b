"""What a template compiles to: frozen stages and the layout of theta.

Plain data, below everything else: ops, kernels and references read these classes and import nothing of nn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from .plan_gauge import Gauge

# The order is shared with csrc/target_net.h: an activation travels to the kernels as its index.
ACTIVATIONS = (
    "identity", "relu", "leaky_relu", "elu", "tanh", "sigmoid", "gelu", "gelu_tanh", "silu", "cos", "sin",
)  # fmt: skip
_DEFAULT_PARAMETERS = {"leaky_relu": 0.01, "elu": 1.0}


@dataclass(frozen=True)
class Activation:
    """An elementwise function. `parameter` is leaky_relu's negative slope, elu's alpha, else unused."""

    name: str
    parameter: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {self.name!r}")

    @property
    def code(self) -> int:
        return ACTIVATIONS.index(self.name)

    @classmethod
    def of(cls, value: str | Activation) -> Activation:
        """An activation from its name (with PyTorch's default parameter) or from itself."""
        if isinstance(value, Activation):
            return value
        if not isinstance(value, str):
            raise TypeError(f"activation must be a name or an Activation; got {type(value).__name__}")
        return cls(value, _DEFAULT_PARAMETERS.get(value, 0.0))

    def __str__(self) -> str:
        return f"{self.name}({self.parameter:g})" if self.parameter else self.name


IDENTITY = Activation("identity")
# csrc/target_net.h: kLargestPool. Larger windows are a stage of their own.
LARGEST_FUSED_POOL = 9


@dataclass(frozen=True)
class MLP:
    """A run of linear layers, each with its activation: the unit that one kernel computes.

    widths (I, ..., O): L + 1 of them; activations and biases: one per layer. Within a row of theta a layer's
    weight [out, in] comes first, then its bias [out], as in parameters_to_vector.
    """

    widths: tuple[int, ...]
    activations: tuple[Activation, ...]
    biases: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or any(w < 1 for w in self.widths):
            raise ValueError(f"widths must be at least two positive sizes; got {tuple(self.widths)}")
        if not len(self.activations) == len(self.biases) == len(self.widths) - 1:
            raise ValueError(
                f"activations and biases must have one entry per layer, {len(self.widths) - 1}; "
                f"got {len(self.activations)} and {len(self.biases)}"
            )

    def layers(self) -> Iterator[tuple[int, int, Activation, bool]]:
        """(in, out, activation, has a bias), layer by layer."""
        yield from zip(self.widths[:-1], self.widths[1:], self.activations, self.biases, strict=True)

    @property
    def num_weights(self) -> int:
        return sum(i * o + (o if bias else 0) for i, o, _, bias in self.layers())

    @property
    def flops_per_row(self) -> int:
        """FLOPs of one forward row, two per multiply-add of the products."""
        return sum(2 * i * o for i, o, _, _ in self.layers())

    def __str__(self) -> str:
        names = [str(a) for a in self.activations]
        return "-".join(map(str, self.widths)) + " (" + ", ".join(names) + ")"


@dataclass(frozen=True)
class Conv:
    """One convolution with its activation and a pool x pool max-pool (1: none)."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    bias: bool = True
    activation: Activation = IDENTITY
    pool: int = 1
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def has_kernel(self) -> bool:
        """Whether a kernel computes it; dilated and grouped ones run on the reference."""
        return self.dilation == (1, 1) and self.groups == 1

    @property
    def num_weights(self) -> int:
        return math.prod(self.weight_shape) + (self.out_channels if self.bias else 0)

    def conv_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the convolution's output, before pooling."""
        high, wide = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, padding, dilation in zip(
                (height, width), self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return high, wide

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Size of the output for an input of height x width."""
        high, wide = self.conv_size(height, width)
        return high // self.pool, wide // self.pool

    def __str__(self) -> str:
        kernel = "x".join(map(str, self.kernel_size))
        pool = f", max-pool {self.pool}" if self.pool > 1 else ""
        dilation = f", dilation {'x'.join(map(str, self.dilation))}" if self.dilation != (1, 1) else ""
        groups = f", {self.groups} groups" if self.groups > 1 else ""
        return f"{self.in_channels}->{self.out_channels} {kernel}{dilation}{groups} ({self.activation}{pool})"


@dataclass(frozen=True)
class CNN:
    """A run of convolutions: the unit that one kernel computes. theta as for an MLP: weight, then bias."""

    layers: tuple[Conv, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("layers must be at least one convolution; got none")

    @property
    def op(self) -> str:
        """The op that computes it, as hf.doctor() lists it."""
        return "batched_cnn" if all(layer.has_kernel for layer in self.layers) else "batched_cnn_dilated_or_grouped"

    @property
    def num_weights(self) -> int:
        return sum(layer.num_weights for layer in self.layers)

    def out_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of the output for an input of height x width."""
        for layer in self.layers:
            height, width = layer.out_size(height, width)
        return self.layers[-1].out_channels, height, width

    def flops_per_row(self, height: int, width: int) -> int:
        """FLOPs of one image, two per multiply-add; pixels that no pooling window takes are not counted."""
        flops = 0
        for layer in self.layers:
            height, width = layer.out_size(height, width)
            flops += 2 * math.prod(layer.weight_shape) * height * width * layer.pool**2
        return flops

    def __str__(self) -> str:
        return ", ".join(map(str, self.layers))


# ---- stages -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """One step of a plan. `names` are the template's layers that it stands for."""

    names: tuple[str, ...]

    served_by = "torch"  # or the op whose kernels compute the stage

    @property
    def num_weights(self) -> int:
        """Values of theta that the stage reads, contiguous, in the order of the stages."""
        return 0

    def out_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one row (one sample) of the output, for that of the input."""
        return row

    def flops_per_row(self, row: tuple[int, ...]) -> int:
        """FLOPs of one row's products, two per multiply-add."""
        return 0

    def describe(self) -> str:
        raise TypeError(f"{type(self).__name__} does not describe itself")


@dataclass(frozen=True)
class MLPStage(Stage):
    """A run of linear layers and activations, one kernel."""

    mlp: MLP
    served_by = "batched_mlp"

    @property
    def num_weights(self) -> int:
        return self.mlp.num_weights

    def out_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        return (*row[:-1], self.mlp.widths[-1])

    def flops_per_row(self, row: tuple[int, ...]) -> int:
        return self.mlp.flops_per_row * math.prod(row[:-1])

    def describe(self) -> str:
        return f"MLP {self.mlp}"


@dataclass(frozen=True)
class CNNStage(Stage):
    """A run of convolutions, each with its activation and max-pool, one kernel."""

    cnn: CNN

    @property
    def served_by(self) -> str:  # type: ignore[override]
        return self.cnn.op

    @property
    def num_weights(self) -> int:
        return self.cnn.num_weights

    def out_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        return self.cnn.out_shape(*row[-2:])

    def flops_per_row(self, row: tuple[int, ...]) -> int:
        return self.cnn.flops_per_row(*row[-2:])

    def describe(self) -> str:
        return f"CNN {self.cnn}"


@dataclass(frozen=True)
class PoolStage(Stage):
    """Max or average pooling that no convolution's epilogue takes."""

    kind: str  # "max" or "avg"
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def out_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        size = zip(row[-2:], self.kernel_size, self.stride, self.padding, strict=True)
        return (*row[:-2], *((n + 2 * pad - kernel) // stride + 1 for n, kernel, stride, pad in size))

    def describe(self) -> str:
        return f"{self.kind}-pool {'x'.join(map(str, self.kernel_size))}"


@dataclass(frozen=True)
class NormStage(Stage):
    """y = act(gamma * (x - mean) / sqrt(var + eps) + beta); gamma and beta are not part of theta."""

    features: int
    mode: str
    eps: float
    momentum: float
    activation: Activation = IDENTITY

    def describe(self) -> str:
        return f"norm {self.features}, {self.mode} ({self.activation})"


@dataclass(frozen=True)
class ActivationStage(Stage):
    """An activation that follows no layer with weights."""

    activation: Activation

    def describe(self) -> str:
        return f"activation ({self.activation})"


@dataclass(frozen=True)
class FlattenStage(Stage):
    """[..., C, H, W] -> [..., C*H*W]."""

    def out_row(self, row: tuple[int, ...]) -> tuple[int, ...]:
        return (math.prod(row),)

    def describe(self) -> str:
        return "flatten"


@dataclass(frozen=True)
class DropoutStage(Stage):
    """Elementwise dropout, in training only; its masks are never stored."""

    p: float
    served_by = "dropout"

    def describe(self) -> str:
        return f"dropout {self.p:g}"


@dataclass(frozen=True)
class ResidualStage(Stage):
    """y = x + f(x)."""

    stages: tuple[Stage, ...] = field(default=())

    def flops_per_row(self, row: tuple[int, ...]) -> int:
        return sum(stage.flops_per_row(before) for stage, before, _ in _rows(self.stages, row))

    @property
    def num_weights(self) -> int:
        return sum(stage.num_weights for stage in self.stages)

    def describe(self) -> str:
        return "x + f(x)"


# ---- the plan ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One parameter of the template: where it lies in a row of theta."""

    name: str
    shape: tuple[int, ...]
    place: slice
    fan_in: int


@dataclass(frozen=True)
class Plan:
    """The fused stages that will run, the layout of theta, and its gauge. str(plan) is a readable table."""

    stages: tuple[Stage, ...]
    layout: tuple[Entry, ...]
    gauge: Gauge

    @property
    def num_weights(self) -> int:
        return sum(stage.num_weights for stage in self.stages)

    def flops_per_row(self, row: tuple[int, ...]) -> int:
        """FLOPs of one row's products, two per multiply-add, for rows of this shape."""
        return sum(stage.flops_per_row(before) for stage, before, _ in _rows(self.stages, row))

    def largest_row(self, row: tuple[int, ...]) -> int:
        """Values of one row where it is largest between two stages, its input apart."""
        return max((math.prod(after) for _, _, after in _rows(self.stages, row)), default=math.prod(row))

    def leaves(self) -> Iterator[tuple[int, Stage]]:
        """(depth, stage), depth first; a Residual before the stages inside it."""
        yield from _leaves(self.stages, 0)

    def __str__(self) -> str:
        rows = [("layers", "stage", "kernel", "theta")]
        offset = 0
        for depth, stage in self.leaves():
            end = offset + stage.num_weights
            place = f"{offset}:{end}" if stage.num_weights else "-"
            if not isinstance(stage, ResidualStage):
                offset = end
            rows.append((", ".join(stage.names), "  " * depth + stage.describe(), stage.served_by, place))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * w for w in widths))
        return "\n".join([*lines, f"{self.num_weights:,} weights per network", str(self.gauge)])


def _leaves(stages: tuple[Stage, ...], depth: int) -> Iterator[tuple[int, Stage]]:
    for stage in stages:
        yield depth, stage
        if isinstance(stage, ResidualStage):
            yield from _leaves(stage.stages, depth + 1)


def _rows(stages: tuple[Stage, ...], row: tuple[int, ...]) -> Iterator[tuple[Stage, tuple[int, ...], tuple[int, ...]]]:
    """(stage, shape of a row before it, shape after it), in order."""
    for stage in stages:
        after = stage.out_row(row)
        yield stage, row, after
        row = after
