"""batched_linear, batched_mlp and batched_conv2d: B networks with B different sets of weights.

How a call runs: check -> autocast -> backend -> autograd.Function -> raw op of that backend. The raw ops
`hyperfast::batched_mlp_{cpp,triton}` and `..._backward_...` share one signature:

    x [B,N,I] or [N,I], theta [B,P], bias [B,O] or None (else biases lie in theta), widths, activations,
    parameters, biases -> y [B,N,O]
    gy [B,N,O], the same, want_x, want_theta, want_bias -> gx, gtheta, gbias (empty where not wanted)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backends, native
from ..plan import ACTIVATIONS, MLP, Activation
from ..reference import target_net as reference
from .checks import autocast, check_size, check_tensor, check_together

backends.register("batched_mlp", "cpp", "triton")
backends.register("batched_linear", "cpp", "triton")
backends.register("batched_conv2d")
backends.register("batched_pool2d")


# ---- public -----------------------------------------------------------------------------------------


def batched_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | Activation = "identity"
) -> Tensor:
    """B different linear layers at once: y[b, n] = act(weight[b] x[b, n] + bias[b]).

    Args:
        x: [B,N,I], or [N,I] shared by all B layers.
        weight: [B,O,I].
        bias: [B,O] or None.
        activation: a name of hyperfast.plan.ACTIVATIONS, or an Activation.

    Returns:
        [B,N,O] in x's dtype; accumulated in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    check_tensor("x", x, (2, 3), "[B,N,I] or [N,I]")
    check_tensor("weight", weight, (3,), "[B,O,I]")
    networks, out_features, in_features = weight.shape
    if x.dim() == 3:
        check_size("x", x, 0, networks, "weight's first dimension")
    check_size("x", x, -1, in_features, "weight's last dimension")
    if bias is not None:
        check_tensor("bias", bias, (2,), "[B,O]")
        check_size("bias", bias, 0, networks, "weight's first dimension")
        check_size("bias", bias, 1, out_features, "weight's second dimension")
    check_together(x=x, weight=weight, bias=bias)
    mlp = MLP((in_features, out_features), (Activation.of(activation),), (bias is not None,))
    return _run("batched_linear", x, weight.flatten(1), bias, mlp)


def batched_mlp(
    x: Tensor,
    theta: Tensor,
    widths: Sequence[int],
    activation: str | Activation,
    output_activation: str | Activation = "identity",
) -> Tensor:
    """B different multi-layer perceptrons at once, all layers in one kernel.

    h_0 = x[b, n];  h_l = act(W_l h_{l-1} + c_l);  y[b, n] = h_L, where row b of theta holds W_1 [out,in], c_1,
    W_2, c_2, ... as parameters_to_vector lays them out.

    Args:
        x: [B,N,I], or [N,I] shared by all B networks.
        theta: [B,P]; read where it lies, in its own dtype.
        widths: (I, ..., O), at least two.
        activation: of every layer but the last.
        output_activation: of the last layer.

    Returns:
        [B,N,O] in x's dtype; accumulated in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    depth = len(widths) - 1
    hidden, last = Activation.of(activation), Activation.of(output_activation)
    activations = (hidden,) * max(depth - 1, 0) + (last,)
    return run_mlp(x, theta, MLP(tuple(map(int, widths)), activations, (True,) * max(depth, 1)))


def run_mlp(x: Tensor, theta: Tensor, mlp: MLP) -> Tensor:
    """batched_mlp for any MLP: x [B,N,I] or [N,I], theta [B,P] -> [B,N,O]."""
    check_tensor("x", x, (2, 3), "[B,N,I] or [N,I]")
    check_tensor("theta", theta, (2,), "[B,P]")
    check_size("theta", theta, 1, mlp.num_weights, f"the weights of {mlp}")
    check_size("x", x, -1, mlp.widths[0], f"the input of {mlp}")
    if x.dim() == 3:
        check_size("x", x, 0, theta.shape[0], "theta's first dimension")
    check_together(x=x, theta=theta)
    return _run("batched_mlp", x, theta, None, mlp)


def batched_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    activation: str | Activation = "identity",
    pool: int = 1,
) -> Tensor:
    """B different convolutions at once: y[b, n] = maxpool(act(weight[b] * x[b, n] + bias[b])).

    Args:
        x: [B,N,C,H,W], or [N,C,H,W] shared by all B networks.
        weight: [B,O,C,kh,kw].
        bias: [B,O] or None.
        stride, padding: of the convolution, in pixels.
        activation: applied before pooling.
        pool: size and stride of a max-pool; 1: none.

    Returns:
        [B,N,O,H',W'] in x's dtype.

    No kernel serves it yet: the reference runs, with HyperfastFallbackWarning.
    """
    check_tensor("x", x, (4, 5), "[B,N,C,H,W] or [N,C,H,W]")
    check_tensor("weight", weight, (5,), "[B,O,C,kh,kw]")
    if x.dim() == 5:
        check_size("x", x, 0, weight.shape[0], "weight's first dimension")
    check_size("x", x, -3, weight.shape[2], "weight's input channels")
    if bias is not None:
        check_tensor("bias", bias, (2,), "[B,O]")
        check_size("bias", bias, 0, weight.shape[0], "weight's first dimension")
        check_size("bias", bias, 1, weight.shape[1], "weight's output channels")
    if pool < 1:
        raise ValueError(f"pool must be at least 1; got {pool}")
    check_together(x=x, weight=weight, bias=bias)
    device = x.device.type
    x, weight, bias = autocast(device, x, weight, bias)
    backends.select("batched_conv2d", device, x.dtype, weight.dtype)
    return reference.batched_conv2d(x, weight, bias, _pair(stride), _pair(padding), Activation.of(activation), pool)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _run(op: str, x: Tensor, theta: Tensor, bias: Tensor | None, mlp: MLP) -> Tensor:
    device = x.device.type
    x, theta, bias = autocast(device, x, theta, bias)
    chosen = backends.select(op, device, x.dtype, theta.dtype)
    if chosen == "reference":
        return reference.batched_mlp(x, theta, bias, mlp)
    return _BatchedMLP.apply(x, theta, bias, *_encoded(mlp), chosen)


# ---- raw ops ----------------------------------------------------------------------------------------

Encoded = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], tuple[int, ...]]

SCHEMA = "(Tensor x, Tensor theta, Tensor? bias, int[] widths, int[] activations, float[] parameters, int[] biases) -> Tensor"
BACKWARD_SCHEMA = (
    "(Tensor gy, Tensor x, Tensor theta, Tensor? bias, int[] widths, int[] activations, float[] parameters, "
    "int[] biases, bool want_x, bool want_theta, bool want_bias) -> (Tensor, Tensor, Tensor)"
)


def _encoded(mlp: MLP) -> Encoded:
    """An MLP as the lists that a raw op takes; _decoded() is its inverse."""
    return (
        mlp.widths,
        tuple(a.code for a in mlp.activations),
        tuple(float(a.parameter) for a in mlp.activations),
        tuple(int(b) for b in mlp.biases),
    )


def _decoded(
    widths: Sequence[int], activations: Sequence[int], parameters: Sequence[float], biases: Sequence[int]
) -> MLP:
    named = tuple(Activation(ACTIVATIONS[a], p) for a, p in zip(activations, parameters, strict=True))
    return MLP(tuple(widths), named, tuple(bool(b) for b in biases))


def _fake(x, theta, bias, widths, activations, parameters, biases):
    return x.new_empty((theta.shape[0], x.shape[-2], widths[-1]))


def _fake_backward(gy, x, theta, bias, widths, activations, parameters, biases, want_x, want_theta, want_bias):
    weights = want_theta or want_bias
    gtheta = theta.new_empty((theta.shape[0] if weights else 0, theta.shape[1]))
    if bias is None:
        gbias = theta.new_empty((0, 0))
    else:
        gbias = bias.new_empty((bias.shape[0] if weights else 0, bias.shape[1]))
    return x.new_empty(tuple(x.shape) if want_x else (0,)), gtheta, gbias


def _flops(x, theta, bias, widths, *_, **__) -> int:
    rows = theta[0] * x[-2]
    return sum(2 * rows * i * o for i, o in pairwise(widths))


def _flops_backward(
    gy, x, theta, bias, widths, activations, parameters, biases, want_x, want_theta, want_bias, **_
) -> int:
    forward = _flops(x, theta, bias, widths)
    first = 2 * theta[0] * x[-2] * widths[0] * widths[1]
    to_inputs = forward if want_x else forward - first
    return forward + to_inputs + (forward if want_theta or want_bias else 0)


_library = torch.library.Library("hyperfast", "FRAGMENT")


def _triton_forward(*args):
    from ..kernels import target_net as kernels

    with torch.cuda.device_of(args[0]):  # Triton launches on the current device
        return kernels.batched_mlp(*args[:3], _decoded(*args[3:7]))


def _triton_backward(*args):
    from ..kernels import target_net as kernels

    with torch.cuda.device_of(args[0]):
        return kernels.batched_mlp_backward(*args[:4], _decoded(*args[4:8]), *args[8:])


def _register(backend: str) -> None:
    for name, fake, flops in (
        (f"batched_mlp_{backend}", _fake, _flops),
        (f"batched_mlp_backward_{backend}", _fake_backward, _flops_backward),
    ):
        torch.library.register_fake(f"hyperfast::{name}", fake, lib=_library)
        register_flop_formula(getattr(torch.ops.hyperfast, name))(flops)


if native.WHY_NOT_LOADED is None:
    _register("cpp")
_library.define("batched_mlp_triton" + SCHEMA)
_library.define("batched_mlp_backward_triton" + BACKWARD_SCHEMA)
for _key in ("CPU", "CUDA", "XPU"):
    _library.impl("batched_mlp_triton", _triton_forward, _key)
    _library.impl("batched_mlp_backward_triton", _triton_backward, _key)
_register("triton")


# ---- autograd ---------------------------------------------------------------------------------------


class _BatchedMLP(torch.autograd.Function):
    @staticmethod
    def forward(x, theta, bias, widths, activations, parameters, biases, chosen):
        op = getattr(torch.ops.hyperfast, f"batched_mlp_{chosen}")
        return op(x, theta, bias, widths, activations, parameters, biases)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, theta, bias, *ctx.spec = inputs
        ctx.save_for_backward(x, theta, bias)

    @staticmethod
    def backward(ctx: Any, gy: Tensor):
        x, theta, bias = ctx.saved_tensors
        wants = tuple(ctx.needs_input_grad[:3])
        gradients = _BatchedMLPBackward.apply(gy, x, theta, bias, *ctx.spec, *wants)
        return *(g if want else None for g, want in zip(gradients, wants, strict=True)), *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x, theta, bias, *spec):
        size = info.batch_size
        x_dim, theta_dim, bias_dim = in_dims[:3]
        if theta_dim is None and bias_dim is None:  # more rows for the same networks
            x = x.movedim(x_dim, -3)
            y = _BatchedMLP.apply(x.flatten(-3, -2), theta, bias, *spec)
            return y.unflatten(1, (size, y.shape[1] // size)), 1
        theta = _leading(theta, theta_dim, size)
        networks = theta.shape[1]
        if x_dim is not None or x.dim() == 3:
            x = _leading(x, x_dim, size)
            x = x if x.dim() == 4 else x.unsqueeze(1).expand(size, networks, *x.shape[1:])
            x = x.flatten(0, 1)
        bias = None if bias is None else _leading(bias, bias_dim, size).flatten(0, 1)
        y = _BatchedMLP.apply(x, theta.flatten(0, 1), bias, *spec)
        return y.unflatten(0, (size, networks)), 0


class _BatchedMLPBackward(torch.autograd.Function):
    """Gradients of _BatchedMLP, themselves differentiable: fused forward, the reference behind it."""

    @staticmethod
    def forward(gy, x, theta, bias, widths, activations, parameters, biases, chosen, want_x, want_theta, want_bias):
        op = getattr(torch.ops.hyperfast, f"batched_mlp_backward_{chosen}")
        return op(gy, x, theta, bias, widths, activations, parameters, biases, want_x, want_theta, want_bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        gy, x, theta, bias, *spec = inputs
        ctx.save_for_backward(gy, x, theta, bias)
        ctx.mlp, ctx.wants = _decoded(*spec[:4]), spec[5:]

    @staticmethod
    def backward(ctx: Any, *gg: Tensor):
        gy, x, theta, bias = ctx.saved_tensors
        inputs = (x, theta) if bias is None else (x, theta, bias)
        wanted = [i for i in range(len(inputs)) if ctx.wants[i]]

        def forward(x: Tensor, theta: Tensor, bias: Tensor | None = None) -> Tensor:
            return reference.batched_mlp(x, theta, bias, ctx.mlp)

        def gradients(gy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
            _, pullback = torch.func.vjp(forward, *inputs)[:2]
            every = pullback(gy)
            return tuple(every[i] for i in wanted)

        _, pullback = torch.func.vjp(gradients, gy, *inputs)[:2]
        result = list(pullback(tuple(gg[i] for i in wanted)))
        result += [None] * (4 - len(result))
        return *result, *(None,) * 8

    @staticmethod
    def vmap(info: Any, in_dims: tuple, gy, x, theta, bias, *spec):
        # A gradient per sample: every operand gets the sample dimension, and a shared x a gx per network.
        size = info.batch_size
        gy, x, theta, bias = (
            None if t is None else _leading(t, dim, size)
            for t, dim in zip((gy, x, theta, bias), in_dims[:4], strict=True)
        )
        networks = theta.shape[1]
        shared = x.dim() == 3
        if shared:
            x = x.unsqueeze(1).expand(size, networks, *x.shape[1:])
        folded = (None if t is None else t.flatten(0, 1) for t in (gy, x, theta, bias))
        gx, gtheta, gbias = (
            g.unflatten(0, (size, g.shape[0] // size)) for g in _BatchedMLPBackward.apply(*folded, *spec)
        )
        if shared and spec[5]:
            gx = gx.sum(1)
        return (gx, gtheta, gbias), (0, 0, 0)


def _leading(t: Tensor, dim: int | None, size: int) -> Tensor:
    """t with the vmapped dimension first, expanded where it has none."""
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
