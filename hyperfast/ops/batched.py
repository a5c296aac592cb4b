"""The autograd of batched networks, for MLPs and CNNs alike: B networks with B different flat weight vectors.

The raw ops `hyperfast::batched_{mlp,cnn}_{cpp,triton}` and `..._backward_...` share one signature:

    x [B,N,*row] or [N,*row], theta [B,P], bias [B,O] or None (else biases lie in theta), layers, parameters, save
        -> y [B,N,*out], saved
    gy [B,N,*out], x, theta, bias, saved, layers, parameters, want_x, want_theta, want_bias
        -> gx, gtheta, gbias (empty where not wanted)

`layers` and `parameters` are a network as numbers; encode() and decode() are inverse to each other. `saved` is a
kernel's own: with `save`, what its backward need not recompute; a backward takes an empty one as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..plan import ACTIVATIONS, CNN, MLP, Activation, Conv
from ..reference import target_net as reference

SCHEMA = "(Tensor x, Tensor theta, Tensor? bias, int[] layers, float[] parameters, bool save) -> (Tensor, Tensor)"
BACKWARD_SCHEMA = (
    "(Tensor gy, Tensor x, Tensor theta, Tensor? bias, Tensor saved, int[] layers, float[] parameters, bool want_x, "
    "bool want_theta, bool want_bias) -> (Tensor, Tensor, Tensor)"
)
KINDS = {"mlp": 1, "cnn": 3}
"""Kinds of network, and the dimensions of one row of their input."""

_MLP_INTS, _CONV_INTS = 4, 11


def encode(net: MLP | CNN) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """A network as the two lists that a raw op takes; csrc/ops/target_net.cpp reads them."""
    layers: list[int] = []
    if isinstance(net, MLP):
        for i, o, activation, bias in net.layers():
            layers += (i, o, activation.code, int(bias))
        return tuple(layers), tuple(float(a.parameter) for a in net.activations)
    for c in net.layers:
        layers += (c.in_channels, c.out_channels, *c.kernel_size, *c.stride, *c.padding, c.pool)
        layers += (c.activation.code, int(c.bias))
    return tuple(layers), tuple(float(c.activation.parameter) for c in net.layers)


def decode(kind: str, layers: Sequence[int], parameters: Sequence[float]) -> MLP | CNN:
    """The network that encode() wrote down."""
    if kind == "mlp":
        rows = [layers[at : at + _MLP_INTS] for at in range(0, len(layers), _MLP_INTS)]
        activations = tuple(Activation(ACTIVATIONS[r[2]], p) for r, p in zip(rows, parameters, strict=True))
        return MLP((rows[0][0], *(r[1] for r in rows)), activations, tuple(bool(r[3]) for r in rows))
    rows = [layers[at : at + _CONV_INTS] for at in range(0, len(layers), _CONV_INTS)]
    return CNN(
        tuple(
            Conv(
                r[0], r[1], (r[2], r[3]), (r[4], r[5]), (r[6], r[7]), bool(r[10]),
                Activation(ACTIVATIONS[r[9]], p), r[8],
            )
            for r, p in zip(rows, parameters, strict=True)
        )
    )  # fmt: skip


def evaluate(x: Tensor, theta: Tensor, bias: Tensor | None, net: MLP | CNN) -> Tensor:
    """The reference of either kind."""
    run: Any = reference.batched_mlp if isinstance(net, MLP) else reference.batched_cnn
    return run(x, theta, bias, net)


class Batched(torch.autograd.Function):
    """apply(x, theta, bias, layers, parameters, kind, backend, save) -> (y, saved)."""

    @staticmethod
    def forward(x, theta, bias, layers, parameters, kind, chosen, save):
        op = getattr(torch.ops.hyperfast, f"batched_{kind}_{chosen}")
        return op(x, theta, bias, layers, parameters, save)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        x, theta, bias, *spec, _ = inputs
        ctx.spec = spec
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, theta, bias, output[1])

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Tensor):
        x, theta, bias, saved = ctx.saved_tensors
        wants = tuple(ctx.needs_input_grad[:3])
        gradients = BatchedBackward.apply(gy, x, theta, bias, saved, *ctx.spec, *wants)
        return *(g if want else None for g, want in zip(gradients, wants, strict=True)), *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x, theta, bias, *spec):
        size = info.batch_size
        x_dim, theta_dim, bias_dim = in_dims[:3]
        spec = (*spec[:-1], False)  # a sample's part of `saved` would not be a tensor of its own
        row = KINDS[spec[2]]
        if theta_dim is None and bias_dim is None:  # more rows for the same networks
            x = x.movedim(x_dim, -row - 2)
            y, saved = Batched.apply(x.flatten(-row - 2, -row - 1), theta, bias, *spec)
            return (y.unflatten(1, (size, y.shape[1] // size)), saved), (1, None)
        theta = _leading(theta, theta_dim, size)
        networks = theta.shape[1]
        if x_dim is not None or x.dim() == row + 2:
            x = _leading(x, x_dim, size)
            x = x if x.dim() == row + 3 else x.unsqueeze(1).expand(size, networks, *x.shape[1:])
            x = x.flatten(0, 1)
        bias = None if bias is None else _leading(bias, bias_dim, size).flatten(0, 1)
        y, saved = Batched.apply(x, theta.flatten(0, 1), bias, *spec)
        return (y.unflatten(0, (size, networks)), saved), (0, None)


class BatchedBackward(torch.autograd.Function):
    """Gradients of Batched, themselves differentiable: fused forward, the reference behind it."""

    @staticmethod
    def forward(gy, x, theta, bias, saved, layers, parameters, kind, chosen, want_x, want_theta, want_bias):
        op = getattr(torch.ops.hyperfast, f"batched_{kind}_backward_{chosen}")
        return op(gy, x, theta, bias, saved, layers, parameters, want_x, want_theta, want_bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        gy, x, theta, bias, _, *spec = inputs
        ctx.save_for_backward(gy, x, theta, bias)
        ctx.net, ctx.wants = decode(spec[2], *spec[:2]), spec[4:]

    @staticmethod
    def backward(ctx: Any, *gg: Tensor):
        gy, x, theta, bias = ctx.saved_tensors
        inputs = (x, theta) if bias is None else (x, theta, bias)
        wanted = [i for i in range(len(inputs)) if ctx.wants[i]]

        def forward(x: Tensor, theta: Tensor, bias: Tensor | None = None) -> Tensor:
            return evaluate(x, theta, bias, ctx.net)

        def gradients(gy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            _, pullback = torch.func.vjp(forward, *inputs)[:2]
            every = pullback(gy)
            return tuple(every[i] for i in wanted)

        _, pullback = torch.func.vjp(gradients, gy, *inputs)[:2]
        result = list(pullback(tuple(gg[i] for i in wanted)))
        result += [None] * (4 - len(result))
        return *result, *(None,) * 8

    @staticmethod
    def vmap(info: Any, in_dims: tuple, gy, x, theta, bias, saved, *spec):
        # A gradient per sample: every operand gets the sample dimension, and a shared x a gx per network.
        size = info.batch_size
        gy, x, theta, bias = (
            None if t is None else _leading(t, dim, size)
            for t, dim in zip((gy, x, theta, bias), in_dims[:4], strict=True)
        )
        networks = theta.shape[1]
        shared = x.dim() == KINDS[spec[2]] + 2
        if shared:
            x = x.unsqueeze(1).expand(size, networks, *x.shape[1:])
        folded = (None if t is None else t.flatten(0, 1) for t in (gy, x, theta, bias))
        nothing = saved.new_empty(0)  # of another batch, where there is any: recomputed
        gx, gtheta, gbias = (
            g.unflatten(0, (size, g.shape[0] // size)) for g in BatchedBackward.apply(*folded, nothing, *spec)
        )
        if shared and spec[4]:
            gx = gx.sum(1)
        return (gx, gtheta, gbias), (0, 0, 0)


def _leading(t: Tensor, dim: int | None, size: int) -> Tensor:
    """t with the vmapped dimension first, expanded where it has none."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
