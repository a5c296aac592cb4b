"""Cross-entropy of weighted points under a Gaussian kernel density estimate.

The raw ops, all tensors float32 or float64, points [B,L,2], mu [B,n,2], weight [B,L], sigma [B]:
    hyperfast::kde_{cpp,triton}(points, mu, weight, sigma) -> ce [B], saved [2,B,L]
    hyperfast::kde_backward_{cpp,triton}(g [B], points, mu, weight, sigma, saved, want_points, want_mu, want_weight,
        want_sigma) -> their gradients; [0] where not wanted
csrc/kde.h says what is saved.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backends, native
from ..reference import kde as reference
from .checks import check_size, check_tensor, check_together

backends.register("kde_cross_entropy", "cpp", "triton")


def kde_cross_entropy(points: Tensor, mu: Tensor, weight: Tensor, sigma: float | Tensor) -> Tensor:
    """Cross-entropy of weighted points of the plane under a mixture of n equal Gaussians, for each of B samples.

        ce_b = - sum_l w_bl log( 1/n sum_i N(x_bl; mu_bi, sigma_b^2 I) ),  N(x; mu, sigma^2 I) =
               exp(-|x - mu|^2 / (2 sigma^2)) / (2 pi sigma^2)

    constants included, weights as given (Klocek et al., equation 1, with weights for P(x_l)). Finite however far the
    points are from the centres, as long as squared distances are. A point of weight zero is skipped, whatever its
    coordinates hold; where points or weights have a gradient, only its own weight's is not zero.

    Args:
        points: [L,2], the same for every sample, or [B,L,2].
        mu: [B,n,2], n >= 1, in the units of points.
        weight: [B,L]; any sign.
        sigma: the standard deviation, in the units of points: a positive number, or a tensor [] or [B], whose
            values are not checked.

    Returns:
        [B], nats, float32, or float64 where the inputs are. float16 and bfloat16 are taken as float32, also under
        autocast; gradients come in each input's own type. Differentiable in every tensor, twice.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    check_tensor("mu", mu, (3,), "[B,n,2]")
    check_size("mu", mu, 2, 2, "points of the plane")
    batch = mu.shape[0]
    if mu.shape[1] == 0:
        raise ValueError(f"mu must have at least one centre; got {tuple(mu.shape)}")
    check_tensor("points", points, (2, 3), "[L,2] or [B,L,2]")
    check_size("points", points, points.dim() - 1, 2, "points of the plane")
    if points.dim() == 3:
        check_size("points", points, 0, batch, "mu's number of samples")
    check_tensor("weight", weight, (2,), "[B,L]")
    check_size("weight", weight, 0, batch, "mu's number of samples")
    check_size("weight", weight, 1, points.shape[-2], "the number of points")
    if not isinstance(sigma, Tensor):
        if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 < sigma < math.inf:
            raise ValueError(f"sigma must be a positive number or a tensor; got {sigma!r}")
        sigma = mu.new_full((1,), sigma, dtype=torch.promote_types(mu.dtype, torch.float32)).expand(batch)
    else:
        check_tensor("sigma", sigma, (0, 1), "[] or [B]")
        if sigma.dim() == 1:
            check_size("sigma", sigma, 0, batch, "mu's number of samples")
        check_together(mu=mu, sigma=sigma)
    if max(points.shape[-2], mu.shape[1]) >= 2**30:
        raise ValueError(f"points and mu must have less than 2^30 rows; got {points.shape[-2]} and {mu.shape[1]}")
    check_together(points=points, mu=mu, weight=weight)
    points, mu, weight, sigma = (t if t.dtype == torch.float64 else t.float() for t in (points, mu, weight, sigma))
    points, sigma = points.expand(batch, *points.shape[-2:]), sigma.expand(batch)
    chosen = backends.select("kde_cross_entropy", mu.device.type, mu.dtype)
    if chosen == "reference":
        return reference.kde_cross_entropy(points, mu, weight, sigma)
    return Kde.apply(points, mu, weight, sigma, chosen)[0]


class Kde(torch.autograd.Function):
    """apply(points, mu, weight, sigma, backend) -> (ce, saved)."""

    @staticmethod
    def forward(points, mu, weight, sigma, chosen):
        return getattr(torch.ops.hyperfast, f"kde_{chosen}")(points, mu, weight, sigma)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.chosen = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor):
        wants = tuple(ctx.needs_input_grad[:4])
        found = KdeBackward.apply(g, *ctx.saved_tensors, wants, ctx.chosen)
        return *(t if want else None for t, want in zip(found, wants, strict=True)), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args):
        *tensors, chosen = args
        every = _batched(info.batch_size, in_dims, tensors)
        ce, saved = Kde.apply(*(t.flatten(0, 1) for t in every), chosen)
        samples = every[0].shape[:2]
        return (ce.unflatten(0, samples), saved.unflatten(1, samples)), (0, 1)


class KdeBackward(torch.autograd.Function):
    """Gradients of Kde, themselves differentiable: fused forward, the reference behind it.

    apply(g, points, mu, weight, sigma, saved, wants, backend) -> gradients of the four; [0] where not wanted.
    """

    @staticmethod
    def forward(g, points, mu, weight, sigma, saved, wants, chosen):
        op = getattr(torch.ops.hyperfast, f"kde_backward_{chosen}")
        return op(g, points, mu, weight, sigma, saved, *wants)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        *tensors, _, ctx.wants, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *gg: Tensor):
        g, *inner = ctx.saved_tensors

        def gradients(g: Tensor, *inner: Tensor) -> tuple[Tensor, ...]:
            _, pullback = torch.func.vjp(reference.kde_cross_entropy, *inner)[:2]
            return tuple(t for t, want in zip(pullback(g), ctx.wants, strict=True) if want)

        _, pullback = torch.func.vjp(gradients, g, *inner)[:2]
        return *pullback(tuple(t for t, want in zip(gg, ctx.wants, strict=True) if want)), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args):
        *tensors, saved, wants, chosen = args
        every = _batched(info.batch_size, in_dims, tensors)
        samples = every[0].shape[:2]
        if in_dims[5] is None:
            saved = saved.unsqueeze(1).expand(-1, info.batch_size, -1, -1)
        else:
            saved = saved.movedim(in_dims[5], 1)
        found = KdeBackward.apply(*(t.flatten(0, 1) for t in every), saved.flatten(1, 2), wants, chosen)
        shaped = [
            t.unflatten(0, samples) if want else t.new_empty(info.batch_size, 0)
            for t, want in zip(found, wants, strict=True)
        ]
        return tuple(shaped), (0,) * 4


def _batched(size: int, in_dims: tuple, tensors: list[Tensor]) -> list[Tensor]:
    """Each with the mapped dimension first."""
    return [
        t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims[: len(tensors)], strict=True)
    ]


# ---- raw ops ----------------------------------------------------------------------------------------


def _fake(points, mu, weight, sigma):
    return mu.new_empty(mu.shape[0]), mu.new_empty((2, *weight.shape))


def _fake_backward(g, points, mu, weight, sigma, saved, *wants):
    tensors = (points, mu, weight, sigma)
    return tuple(mu.new_empty(t.shape if want else (0,)) for t, want in zip(tensors, wants, strict=True))


def _flops(points, mu, *_, **__) -> int:
    """Of a pair of point and centre: a squared distance (5) twice, a scaled exponential (3), and the sum."""
    return 14 * points[0] * points[1] * mu[1]


def _flops_backward(g, points, mu, weight, sigma, saved, want_points, want_mu, want_weight, want_sigma, **__) -> int:
    """A squared distance and a scaled exponential (8); 5 for the centres; 10 for the moments of the points."""
    pairs = points[0] * points[1] * mu[1]
    if not (want_points or want_mu or want_sigma):
        return 0
    return pairs * (8 + 5 * want_mu + 10 * (want_points or want_sigma))


def _triton(points, mu, weight, sigma):
    from ..kernels import kde as kernels

    with torch.cuda.device_of(mu):  # Triton launches on the current device
        return kernels.kde(points, mu, weight, sigma)


def _triton_backward(g, points, mu, weight, sigma, saved, *wants):
    from ..kernels import kde as kernels

    with torch.cuda.device_of(mu):
        return kernels.kde_backward(g, points, mu, weight, sigma, saved, *wants)


_library = torch.library.Library("hyperfast", "FRAGMENT")
_library.define("kde_triton(Tensor points, Tensor mu, Tensor weight, Tensor sigma) -> (Tensor, Tensor)")
_library.define(
    "kde_backward_triton(Tensor g, Tensor points, Tensor mu, Tensor weight, Tensor sigma, Tensor saved, "
    "bool want_points, bool want_mu, bool want_weight, bool want_sigma) -> (Tensor, Tensor, Tensor, Tensor)"
)
for _key in ("CPU", "CUDA", "XPU"):
    _library.impl("kde_triton", _triton, _key)
    _library.impl("kde_backward_triton", _triton_backward, _key)
for _backend in ["triton"] + ["cpp"] * (native.WHY_NOT_LOADED is None):
    for _name, _fake_of, _flops_of in (
        (f"kde_{_backend}", _fake, _flops),
        (f"kde_backward_{_backend}", _fake_backward, _flops_backward),
    ):
        torch.library.register_fake(f"hyperfast::{_name}", _fake_of, lib=_library)
        register_flop_formula(getattr(torch.ops.hyperfast, _name))(_flops_of)
