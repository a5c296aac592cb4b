"""B networks with B different weight vectors, in plain PyTorch. Readability, not speed, is the goal."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..plan import CNN, MLP, Activation, Conv


def activate(activation: Activation, h: Tensor) -> Tensor:
    """act(h), elementwise."""
    match activation.name:
        case "identity":
            return h
        case "relu":
            return F.relu(h)
        case "leaky_relu":
            return F.leaky_relu(h, activation.parameter)
        case "elu":
            return F.elu(h, activation.parameter)
        case "tanh":
            return torch.tanh(h)
        case "sigmoid":
            return torch.sigmoid(h)
        case "gelu":
            return F.gelu(h)
        case "gelu_tanh":
            return F.gelu(h, approximate="tanh")
        case "silu":
            return F.silu(h)
        case "cos":
            return torch.cos(h)
        case "sin":
            return torch.sin(h)
    raise ValueError(f"unknown activation {activation.name!r}")


def batched_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """y[b, n] = act(weight[b] x[b, n] + bias[b]).

    x [B,N,I], or [N,I] shared by all networks; weight [B,O,I]; bias [B,O] or None -> [B,N,O] in x's dtype.
    """
    compute = torch.promote_types(x.dtype, weight.dtype)
    h = torch.einsum("...ni,boi->bno" if x.dim() == 2 else "bni,boi->bno", x.to(compute), weight.to(compute))
    if bias is not None:
        h = h + bias.to(compute).unsqueeze(1)
    return activate(activation, h).to(x.dtype)


def batched_mlp(x: Tensor, theta: Tensor, bias: Tensor | None, mlp: MLP) -> Tensor:
    """h_0 = x; h_l = act_l(W_l h_{l-1} + c_l); y = h_L, with W_l, c_l from each row of theta in turn.

    x [B,N,I] or [N,I]; theta [B,P]; bias [B,O] replaces the bias in theta of an MLP of one layer -> [B,N,O].
    """
    networks = theta.shape[0]
    h, offset = x, 0
    for in_features, out_features, activation, has_bias in mlp.layers():
        end = offset + in_features * out_features
        weight = theta[:, offset:end].reshape(networks, out_features, in_features)
        offset, layer_bias = end, bias
        if has_bias and bias is None:
            offset += out_features
            layer_bias = theta[:, end:offset]
        h = batched_linear(h, weight, layer_bias, activation)
    return h


def batched_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, conv: Conv) -> Tensor:
    """y[b, n] = maxpool(act(weight[b] * x[b, n] + bias[b])): one convolution with groups of its own for each network.

    x [B,N,C,H,W], or [N,C,H,W] shared; weight [B,O,C/groups,kh,kw]; bias [B,O] or None -> [B,N,O,H',W'].
    """
    networks, out_channels = weight.shape[:2]
    if x.dim() == 4:
        x = x.expand(networks, *x.shape)
    rows, channels = x.shape[1:3]
    compute = torch.promote_types(x.dtype, weight.dtype)
    grouped = x.transpose(0, 1).reshape(rows, networks * channels, *x.shape[3:]).to(compute)
    if networks == 0:  # F.conv2d needs a group
        size = conv.out_size(x.shape[-2], x.shape[-1])
        return (x.sum() + weight.sum()).to(x.dtype) * x.new_zeros(0, rows, out_channels, *size)
    h = F.conv2d(
        grouped,
        weight.flatten(0, 1).to(compute),
        None if bias is None else bias.flatten().to(compute),
        conv.stride,
        conv.padding,
        conv.dilation,
        networks * conv.groups,
    )
    h = activate(conv.activation, h)
    if conv.pool > 1:
        h = F.max_pool2d(h, conv.pool)
    return h.unflatten(1, (networks, out_channels)).transpose(0, 1).to(x.dtype)


def batched_cnn(x: Tensor, theta: Tensor, bias: Tensor | None, cnn: CNN) -> Tensor:
    """h_0 = x; h_l = maxpool_l(act_l(W_l * h_{l-1} + c_l)); y = h_L, with W_l, c_l from each row of theta in turn.

    x [B,N,C,H,W] or [N,C,H,W]; theta [B,P]; bias [B,O] replaces the bias in theta of a single layer -> [B,N,O,H',W'].
    """
    h, offset = x, 0
    for conv in cnn.layers:
        end = offset + math.prod(conv.weight_shape)
        weight = theta[:, offset:end].unflatten(1, conv.weight_shape)
        offset, layer_bias = end, bias
        if conv.bias and bias is None:
            offset += conv.out_channels
            layer_bias = theta[:, end:offset]
        h = batched_conv2d(h, weight, layer_bias, conv)
    return h


def normalize(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """gamma * (x - mean) / sqrt(var + eps) + beta over the last dimension; statistics broadcast against x."""
    scale = gamma * torch.rsqrt(var + eps)
    return (x * scale + (beta - mean * scale)).to(x.dtype)


def make_inputs(
    mlp: MLP,
    networks: int,
    rows: int,
    *,
    shared: bool = False,
    dtype: torch.dtype = torch.float32,
    theta_dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """x [B,N,I] (or [N,I]) in [-1, 1] and theta [B,P] at the scale of PyTorch's initialisation.

    Drawn in float64 and then rounded, so that every dtype and device sees the same numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, mlp.widths[0]) if shared else (networks, rows, mlp.widths[0])
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    pieces = []
    for in_features, out_features, _, has_bias in mlp.layers():
        count = out_features * (in_features + has_bias)
        uniform = torch.rand(networks, count, generator=generator, dtype=torch.float64) * 2 - 1
        pieces.append(uniform * (3 / in_features) ** 0.5)
    return x.to(device, dtype), torch.cat(pieces, 1).to(device, theta_dtype or dtype)


def make_images(
    cnn: CNN,
    networks: int,
    rows: int,
    size: tuple[int, int],
    *,
    shared: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """x [B,N,C,H,W] (or [N,C,H,W]) in [-1, 1] and theta [B,P], as make_inputs."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, cnn.layers[0].in_channels, *size)
    x = torch.rand(shape if shared else (networks, *shape), generator=generator, dtype=torch.float64) * 2 - 1
    pieces = []
    for conv in cnn.layers:
        uniform = torch.rand(networks, conv.num_weights, generator=generator, dtype=torch.float64) * 2 - 1
        pieces.append(uniform * (3 / math.prod(conv.weight_shape[1:])) ** 0.5)
    return x.to(device, dtype), torch.cat(pieces, 1).to(device, dtype)
