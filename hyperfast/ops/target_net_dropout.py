"""Dropout in generated networks: masks are a function of a seed tensor and the place, never stored.

The raw ops `hyperfast::dropout_{cpp,triton}`: x [S,B,N,H], seed [S] or [1] int64, layer, last, scale -> y [S,B,N,H].
S counts samples of vmap. A feature is kept where its 32-bit random word exceeds `last`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backends, native
from ..reference import target_net_dropout as reference
from .checks import check_tensor

backends.register("dropout", "cpp", "triton")

_WORDS = 1 << 32


def new_seed(device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
    """A fresh seed for dropout(), [1] int64, from `generator` or the device's default one (torch.manual_seed)."""
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=generator)


def dropout(x: Tensor, p: float, seed: Tensor, layer: int = 0) -> Tensor:
    """y[b, n, h] = x[b, n, h] / (1 - p) with probability 1 - p, else 0.

    The mask is a function of (seed, layer, b, n, h) alone: the same in every backend and dtype, for any number of
    threads, and in backward, which computes it again. A feature is dropped where word h mod 4 of Philox4x32-10 with
    key `seed` and counter (h div 4, n, b, layer) is below round(p * 2^32). What is dropped is exactly zero, also
    where x is Inf or NaN.

    Args:
        x: [B,N,...]; h counts the features of a row in their order in memory.
        p: probability of being dropped, from 0 to 1.
        seed: [1] int64 on x's device.
        layer: which of several dropouts under one seed this is, 0 to 2^32 - 1.

    Returns:
        [B,N,...] in x's dtype, also under autocast; the product is taken in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    check_tensor("x", x, tuple(range(2, 10)), "[B,N,...]")
    if not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ValueError(f"p must be a probability from 0 to 1; got {p!r}")
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64:
        raise TypeError(f"seed must be an int64 tensor; got {seed.dtype if isinstance(seed, Tensor) else seed!r}")
    if seed.numel() != 1 or seed.device != x.device:
        raise ValueError(f"seed must have one element on {x.device}; got {tuple(seed.shape)} on {seed.device}")
    if not isinstance(layer, int) or not 0 <= layer < _WORDS:
        raise ValueError(f"layer must be a number from 0 to 2^32 - 1; got {layer!r}")
    networks, rows, *row = x.shape
    features = math.prod(row)
    if max(networks, rows, features) >= _WORDS:
        raise ValueError(f"x must have less than 2^32 networks, rows and features; got {tuple(x.shape)}")
    below = round(p * _WORDS)
    if below == 0:
        return x
    chosen = backends.select("dropout", x.device.type, x.dtype)
    scale = 1 / (1 - p) if p < 1 else 0.0
    y = Dropout.apply(x.reshape(1, networks, rows, features), seed.reshape(1), layer, below - 1, scale, chosen)
    return y.reshape(x.shape)


class Dropout(torch.autograd.Function):
    """apply(x [S,B,N,H], seed [S] or [1], layer, last, scale, backend) -> y. Linear: backward is the same function."""

    @staticmethod
    def forward(x, seed, layer, last, scale, chosen):
        if chosen == "reference":
            return reference.dropout(x, seed, layer, last, scale)
        return getattr(torch.ops.hyperfast, f"dropout_{chosen}")(x, seed, layer, last, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, seed, *ctx.spec = inputs
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx: Any, gy: Tensor):
        (seed,) = ctx.saved_tensors
        return Dropout.apply(gy, seed, *ctx.spec), *(None,) * 5

    @staticmethod
    def vmap(info: Any, in_dims: tuple, x, seed, *spec):
        # Samples under one seed get one mask, as if each had been called alone.
        size = info.batch_size
        x = x.expand(size, *x.shape) if in_dims[0] is None else x.movedim(in_dims[0], 0)
        samples = x.shape[1]
        if in_dims[1] is not None:
            seed = seed.movedim(in_dims[1], 0).expand(size, samples).reshape(-1)
        elif seed.shape[0] > 1:
            seed = seed.repeat(size)
        y = Dropout.apply(x.flatten(0, 1), seed, *spec)
        return y.unflatten(0, (size, samples)), 0


# ---- raw ops ----------------------------------------------------------------------------------------


def _fake(x, seed, layer, last, scale):
    return x.new_empty(x.shape)


def _triton(*args):
    from ..kernels import target_net_dropout as kernels

    with torch.cuda.device_of(args[0]):  # Triton launches on the current device
        return kernels.dropout(*args)


_library = torch.library.Library("hyperfast", "FRAGMENT")
_library.define("dropout_triton(Tensor x, Tensor seed, int layer, int last, float scale) -> Tensor")
for _key in ("CPU", "CUDA", "XPU"):
    _library.impl("dropout_triton", _triton, _key)
for _name in ["dropout_triton"] + ["dropout_cpp"] * (native.WHY_NOT_LOADED is None):
    torch.library.register_fake(f"hyperfast::{_name}", _fake, lib=_library)
    register_flop_formula(getattr(torch.ops.hyperfast, _name))(lambda *_, **__: 0)  # random bits, no products
