"""Reads an nn.Sequential and groups its layers into the stages of a Plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from ..plan import (
    CNN,
    IDENTITY,
    LARGEST_FUSED_POOL,
    MLP,
    Activation,
    ActivationStage,
    CNNStage,
    Conv,
    DropoutStage,
    Entry,
    FlattenStage,
    MLPStage,
    NormStage,
    Plan,
    PoolStage,
    ResidualStage,
    Stage,
)
from .gauge_compiler import gauge_of
from .layers import Cos, PerTargetNorm, Residual, Sin

SUPPORTED = (
    "Linear, Conv2d, MaxPool2d, AvgPool2d, Flatten, Dropout, ReLU, LeakyReLU, ELU, Tanh, Sigmoid, GELU, SiLU, "
    "Identity, hf.nn.Cos, hf.nn.Sin, hf.nn.Residual, hf.nn.PerTargetNorm"
)
_PLAIN = {
    nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.Identity: "identity",
    Cos: "cos", Sin: "sin",
}  # fmt: skip

Named = tuple[str, Any]  # a layer's name and the module, whose type the readers below know


def compile_template(template: nn.Sequential) -> Plan:
    """The plan of a template. Raises TypeError or ValueError that names a layer which is not supported."""
    if not isinstance(template, nn.Sequential) or isinstance(template, Residual):
        raise TypeError(f"template must be an nn.Sequential; got {type(template).__name__}")
    layout = _layout(template)
    stages = _stages(list(_flat(template)))
    return Plan(stages, layout, gauge_of(stages, layout))


def activation_of(module: nn.Module) -> Activation | None:
    """The activation that a module is, or None."""
    if type(module) in _PLAIN:
        return Activation(_PLAIN[type(module)])
    if type(module) is nn.LeakyReLU:
        return Activation("leaky_relu", module.negative_slope)
    if type(module) is nn.ELU:
        return Activation("elu", module.alpha)
    if type(module) is nn.GELU:
        return Activation("gelu_tanh" if module.approximate == "tanh" else "gelu")
    return None


def _flat(sequential: nn.Sequential, prefix: str = "") -> Iterator[Named]:
    """Layers in order with their names; plain nested Sequentials are opened, Residuals are not."""
    for name, module in sequential._modules.items():
        if type(module) is nn.Sequential:
            yield from _flat(module, f"{prefix}{name}.")
        else:
            yield prefix + name, module


def _layout(template: nn.Sequential) -> tuple[Entry, ...]:
    owners: dict[int, str] = {}
    entries, offset = [], 0
    for name, module in template.named_modules(remove_duplicate=False):
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        if owners.setdefault(id(module), name) != name:
            raise ValueError(
                f"layers {owners[id(module)]!r} and {name!r} are the same module; tied weights are not supported"
            )
        fan_in = math.prod(module.weight.shape[1:])
        for parameter, value in module.named_parameters(recurse=False):
            size = value.numel()
            shape = tuple(value.shape)
            entries.append(Entry(f"{name}.{parameter}", shape, slice(offset, offset + size), fan_in))
            offset += size
    return tuple(entries)


def _stages(layers: list[Named]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    at = 0
    while at < len(layers):
        read = _READERS.get(type(layers[at][1]), _activation_stage)
        stage, at = read(layers, at)
        if stage is not None:
            stages.append(stage)
    return tuple(stages)


def _following_activation(layers: list[Named], at: int) -> tuple[Activation, int, tuple[str, ...]]:
    """The activation at `at` where there is one, and where to go on."""
    activation = activation_of(layers[at][1]) if at < len(layers) else None
    return (IDENTITY, at, ()) if activation is None else (activation, at + 1, (layers[at][0],))


# Each reader takes the layers and a position and returns one stage and the next position.


def _linear_run(layers: list[Named], at: int) -> tuple[Stage, int]:
    widths, activations, biases = [layers[at][1].in_features], [], []
    names: tuple[str, ...] = ()
    while at < len(layers) and type(layers[at][1]) is nn.Linear:
        name, linear = layers[at]
        if linear.in_features != widths[-1]:
            raise ValueError(f"layer {name!r} takes {linear.in_features} features but gets {widths[-1]}")
        activation, at, more = _following_activation(layers, at + 1)
        widths.append(linear.out_features)
        activations.append(activation)
        biases.append(linear.bias is not None)
        names += (name, *more)
    return MLPStage(names, MLP(tuple(widths), tuple(activations), tuple(biases))), at


def _conv2d_run(layers: list[Named], at: int) -> tuple[Stage, int]:
    convs: list[Conv] = []
    names: tuple[str, ...] = ()
    while at < len(layers) and type(layers[at][1]) is nn.Conv2d:
        name, conv = layers[at]
        if convs and conv.in_channels != convs[-1].out_channels:
            raise ValueError(f"layer {name!r} takes {conv.in_channels} channels but gets {convs[-1].out_channels}")
        bare = Conv(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, _checked_padding(name, conv),
            conv.bias is not None, dilation=conv.dilation, groups=conv.groups,
        )  # fmt: skip
        if convs and bare.has_kernel != convs[-1].has_kernel:  # what has a kernel keeps it
            break
        activation, at, more = _following_activation(layers, at + 1)
        names, pool = (*names, name, *more), 1
        if at < len(layers) and _is_plain_max_pool(layers[at][1]):
            pool = _pair(layers[at][1].kernel_size)[0]
            names, at = (*names, layers[at][0]), at + 1
        convs.append(replace(bare, activation=activation, pool=pool))
    return CNNStage(names, CNN(tuple(convs))), at


def _checked_padding(name: str, conv: nn.Conv2d) -> tuple[int, int]:
    """The padding in pixels of a convolution."""
    if conv.padding_mode != "zeros":
        raise ValueError(
            f"layer {name!r}: Conv2d with padding_mode={conv.padding_mode!r} is not supported, only 'zeros'"
        )
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding == "same":
        high, wide = (d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
        if high % 2 or wide % 2:
            raise ValueError(f"layer {name!r}: padding='same' needs odd kernel sizes; got {conv.kernel_size}")
        return (high // 2, wide // 2)
    return (int(conv.padding[0]), int(conv.padding[1]))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _is_plain_max_pool(module: Any) -> bool:
    """k x k windows side by side: what the convolution's epilogue can take."""
    if type(module) is not nn.MaxPool2d or module.return_indices or module.ceil_mode:
        return False
    k = _pair(module.kernel_size)
    return (
        k[0] == k[1] <= LARGEST_FUSED_POOL
        and _pair(module.stride) == k
        and _pair(module.padding) == (0, 0)
        and _pair(module.dilation) == (1, 1)
    )


def _pool2d(layers: list[Named], at: int) -> tuple[Stage, int]:
    name, pool = layers[at]
    kind = "max" if type(pool) is nn.MaxPool2d else "avg"
    plain: dict[str, Any] = {"ceil_mode": False}
    plain |= (
        {"return_indices": False, "dilation": 1}
        if kind == "max"
        else {"count_include_pad": True, "divisor_override": None}
    )
    for option, value in plain.items():
        if getattr(pool, option) != value:
            raise ValueError(f"layer {name!r}: {option}={getattr(pool, option)!r} is not supported, only {value!r}")
    return PoolStage((name,), kind, _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)), at + 1


def _norm(layers: list[Named], at: int) -> tuple[Stage, int]:
    name, norm = layers[at]
    activation, at, more = _following_activation(layers, at + 1)
    return NormStage((name, *more), norm.features, norm.mode, norm.eps, norm.momentum, activation), at


def _flatten(layers: list[Named], at: int) -> tuple[Stage, int]:
    name, flatten = layers[at]
    if (flatten.start_dim, flatten.end_dim) != (1, -1):
        raise ValueError(
            f"layer {name!r}: Flatten({flatten.start_dim}, {flatten.end_dim}) is not supported, only Flatten(1, -1)"
        )
    return FlattenStage((name,)), at + 1


def _dropout(layers: list[Named], at: int) -> tuple[Stage, int]:
    return DropoutStage((layers[at][0],), layers[at][1].p), at + 1


def _residual(layers: list[Named], at: int) -> tuple[Stage, int]:
    name, residual = layers[at]
    inner = list(_flat(residual, f"{name}."))
    return ResidualStage((name,), _stages(inner)), at + 1


def _activation_stage(layers: list[Named], at: int) -> tuple[Stage | None, int]:
    name, module = layers[at]
    activation = activation_of(module)
    if activation is None:
        raise TypeError(f"layer {name!r} is a {type(module).__name__}, which is not supported. Supported: {SUPPORTED}")
    return (None if activation == IDENTITY else ActivationStage((name,), activation)), at + 1


_READERS = {
    nn.Linear: _linear_run,
    nn.Conv2d: _conv2d_run,
    nn.MaxPool2d: _pool2d,
    nn.AvgPool2d: _pool2d,
    PerTargetNorm: _norm,
    nn.Flatten: _flatten,
    nn.Dropout: _dropout,
    Residual: _residual,
}
