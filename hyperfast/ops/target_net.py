"""batched_linear, batched_mlp, batched_cnn and batched_conv2d: B networks with B different sets of weights.

How a call runs: check -> autocast -> backend -> autograd.Function (batched.py) -> raw op of that backend.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backends, native
from ..plan import CNN, LARGEST_FUSED_POOL, MLP, Activation, Conv
from .batched import BACKWARD_SCHEMA, KINDS, SCHEMA, Batched, decode, encode, evaluate
from .checks import autocast, check_size, check_tensor, check_together

backends.register("batched_mlp", "cpp", "triton")
backends.register("batched_linear", "cpp", "triton")
backends.register("batched_cnn", "cpp", "triton")
backends.register("batched_conv2d", "cpp", "triton")
backends.register("batched_cnn_dilated_or_grouped")  # on the reference


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
    *,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """B different convolutions at once: y[b, n] = maxpool(act(weight[b] * x[b, n] + bias[b])).

    * is the cross-correlation of torch.nn.Conv2d; maxpool's windows are pool x pool, side by side, and pixels past
    the last whole window are dropped, as in torch.nn.MaxPool2d.

    Args:
        x: [B,N,C,H,W], or [N,C,H,W] shared by all B networks.
        weight: [B,O,C/groups,kh,kw].
        bias: [B,O] or None.
        stride, padding: of the convolution, in pixels, (y, x) or one number for both.
        activation: applied before pooling.
        pool: size and stride of a max-pool; 1: none.
        dilation, groups: as in torch.nn.Conv2d. Other than 1 they have no kernel: the reference runs, with a warning.

    Returns:
        [B,N,O,H',W'] in x's dtype; accumulated in float32 (float64 for float64).

    In the C++ kernels' backward a gradient that is exactly zero adds nothing, also where it meets Inf or NaN; on
    the other backends zero times Inf or NaN is NaN.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    check_tensor("x", x, (4, 5), "[B,N,C,H,W] or [N,C,H,W]")
    check_tensor("weight", weight, (5,), "[B,O,C/groups,kh,kw]")
    networks, out_channels, in_channels, *kernel_size = weight.shape
    if not isinstance(groups, int) or groups < 1 or out_channels % groups:
        raise ValueError(f"groups must divide weight's {out_channels} output channels; got {groups!r}")
    in_channels *= groups
    if x.dim() == 5:
        check_size("x", x, 0, networks, "weight's first dimension")
    check_size("x", x, -3, in_channels, "weight's input channels")
    if bias is not None:
        check_tensor("bias", bias, (2,), "[B,O]")
        check_size("bias", bias, 0, networks, "weight's first dimension")
        check_size("bias", bias, 1, out_channels, "weight's output channels")
    check_together(x=x, weight=weight, bias=bias)
    stride, padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
    if not isinstance(pool, int) or pool < 1:
        raise ValueError(f"pool must be at least 1; got {pool!r}")
    fused = pool if pool <= LARGEST_FUSED_POOL else 1
    conv = Conv(
        in_channels, out_channels, (kernel_size[0], kernel_size[1]), stride, padding, bias is not None,
        Activation.of(activation), fused, _pair("dilation", dilation, 1), groups,
    )  # fmt: skip
    _check_image(x, conv)
    cnn = CNN((conv,))
    y = _run("batched_conv2d" if conv.has_kernel else cnn.op, x, weight.flatten(1), bias, cnn)
    if pool == fused:
        return y
    return F.max_pool2d(y.flatten(0, 1), pool).unflatten(0, y.shape[:2])


def run_cnn(x: Tensor, theta: Tensor, cnn: CNN) -> Tensor:
    """B different CNNs at once: h_0 = x[b, n]; h_l = maxpool_l(act_l(W_l * h_{l-1} + c_l)); y[b, n] = h_L.

    x [B,N,C,H,W] or [N,C,H,W]; theta [B,P], read where it lies -> [B,N,O,H',W'] in x's dtype.
    """
    check_tensor("x", x, (4, 5), "[B,N,C,H,W] or [N,C,H,W]")
    check_tensor("theta", theta, (2,), "[B,P]")
    check_size("theta", theta, 1, cnn.num_weights, f"the weights of {cnn}")
    check_size("x", x, -3, cnn.layers[0].in_channels, f"the input channels of {cnn}")
    if x.dim() == 5:
        check_size("x", x, 0, theta.shape[0], "theta's first dimension")
    check_together(x=x, theta=theta)
    _check_image(x, *cnn.layers)
    return _run(cnn.op, x, theta, None, cnn)


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise ValueError(f"{name} must be one or two numbers of at least {least}; got {value!r}")
    return pair


def _check_image(x: Tensor, *convs: Conv) -> None:
    size = (int(x.shape[-2]), int(x.shape[-1]))
    for conv in convs:
        if min(conv.conv_size(*size)) < 1 or min(conv.out_size(*size)) < 1:
            raise ValueError(f"x is too small for the convolution {conv}: it gets {size} of {tuple(x.shape)}")
        padded = [n + 2 * pad for n, pad in zip(size, conv.padding, strict=True)]
        if conv.in_channels * padded[0] * padded[1] >= 2**31:
            raise ValueError(f"x must have less than 2^31 values in a padded image; got {tuple(x.shape)}")
        size = conv.out_size(*size)


def _run(op: str, x: Tensor, theta: Tensor, bias: Tensor | None, net: MLP | CNN) -> Tensor:
    device = x.device.type
    x, theta, bias = autocast(device, x, theta, bias)
    chosen = backends.select(op, device, x.dtype, theta.dtype)
    if chosen == "reference":
        return evaluate(x, theta, bias, net)
    kind = "mlp" if isinstance(net, MLP) else "cnn"
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, theta, bias))
    return Batched.apply(x, theta, bias, *encode(net), kind, chosen, save)[0]


# ---- raw ops ----------------------------------------------------------------------------------------

_library = torch.library.Library("hyperfast", "FRAGMENT")


def _out_row(kind: str, x: Tensor, layers, parameters) -> tuple[int, ...]:
    net = decode(kind, layers, parameters)
    return (net.widths[-1],) if isinstance(net, MLP) else net.out_shape(*x.shape[-2:])


def _flops_per_row(kind: str, shape: Sequence[int], layers, parameters) -> int:
    net = decode(kind, layers, parameters)
    return net.flops_per_row if isinstance(net, MLP) else net.flops_per_row(*shape[-2:])


def _register(kind: str, backend: str) -> None:
    """Fakes and FLOP formulas of a kind's two raw ops."""
    row = KINDS[kind]

    def fake(x, theta, bias, layers, parameters, save):
        batch, out = (theta.shape[0], x.shape[-row - 1]), _out_row(kind, x, layers, parameters)
        saves = save and (kind, backend) == ("cnn", "cpp")  # a slope and the winner's index for every output
        slope = 8 if x.dtype == torch.float64 else 4
        saved = x.new_empty((*batch, math.prod(out) * (slope + 1)) if saves else (0,), dtype=torch.uint8)
        return x.new_empty((*batch, *out)), saved

    def fake_backward(gy, x, theta, bias, saved, layers, parameters, want_x, want_theta, want_bias):
        weights = want_theta or want_bias
        gtheta = theta.new_empty((theta.shape[0] if weights else 0, theta.shape[1]))
        if bias is None:
            gbias = theta.new_empty((0, 0))
        else:
            gbias = bias.new_empty((bias.shape[0] if weights else 0, bias.shape[1]))
        return x.new_empty(tuple(x.shape) if want_x else (0,)), gtheta, gbias

    def flops(x, theta, bias, layers, parameters, *_, **__) -> int:
        return theta[0] * x[-row - 1] * _flops_per_row(kind, x, layers, parameters)

    def flops_backward(gy, x, theta, bias, saved, layers, parameters, want_x, want_theta, want_bias, **_) -> int:
        """Recomputation and the two products, without the first layer's to x where that is not wanted."""
        forward = flops(x, theta, bias, layers, parameters)
        ints = len(layers) // len(parameters)
        first = theta[0] * x[-row - 1] * _flops_per_row(kind, x, layers[:ints], parameters[:1])
        return forward + (forward if want_x else forward - first) + (forward if want_theta or want_bias else 0)

    for name, fake_of, flops_of in (
        (f"batched_{kind}_{backend}", fake, flops),
        (f"batched_{kind}_backward_{backend}", fake_backward, flops_backward),
    ):
        torch.library.register_fake(f"hyperfast::{name}", fake_of, lib=_library)
        register_flop_formula(getattr(torch.ops.hyperfast, name))(flops_of)


def _launcher(name: str) -> Any:
    """A launcher of Triton kernels by its name, imported where it is called: Triton may be missing."""
    from ..kernels import target_net, target_net_cnn, target_net_cnn_backward

    modules = {"batched_cnn": target_net_cnn, "batched_cnn_backward": target_net_cnn_backward}
    return getattr(modules.get(name, target_net), name)


def _define_triton(kind: str) -> None:
    def forward(x, theta, bias, layers, parameters, save):
        run = _launcher(f"batched_{kind}")
        with torch.cuda.device_of(x):  # Triton launches on the current device
            return run(x, theta, bias, decode(kind, layers, parameters)), x.new_empty(0, dtype=torch.uint8)

    def backward(gy, x, theta, bias, saved, layers, parameters, *wants):
        run = _launcher(f"batched_{kind}_backward")
        with torch.cuda.device_of(x):
            return run(gy, x, theta, bias, decode(kind, layers, parameters), *wants)

    _library.define(f"batched_{kind}_triton" + SCHEMA)
    _library.define(f"batched_{kind}_backward_triton" + BACKWARD_SCHEMA)
    for key in ("CPU", "CUDA", "XPU"):
        _library.impl(f"batched_{kind}_triton", forward, key)
        _library.impl(f"batched_{kind}_backward_triton", backward, key)


for _kind in KINDS:
    if native.WHY_NOT_LOADED is None:
        _register(_kind, "cpp")
    _define_triton(_kind)
    _register(_kind, "triton")
