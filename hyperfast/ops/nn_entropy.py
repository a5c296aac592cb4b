"""Nearest-neighbour distances of N long vectors, and the Kozachenko-Leonenko entropy made of them.

The raw ops, for theta [N,D] in float32 or float64:
    hyperfast::nearest_neighbor_{cpp,triton}(theta, start, stop, p) -> distance [stop-start], index [stop-start] int64
    hyperfast::nearest_neighbor_backward_{cpp,triton}(grad [N], theta, distance [N], index [N], start, stop, p)
        -> [stop-start, D], the gradient of sum_i grad_i distance_i with respect to the rows start..stop-1
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backends, native
from ..reference import nn_entropy as reference
from .checks import check_tensor

backends.register("nearest_neighbor", "cpp", "triton")


# start and stop of the raw ops. With the number of rows in their place a traced graph would hold for that number alone.
ALL_ROWS = 0, -1

# ---- public -----------------------------------------------------------------------------------------


def nearest_neighbor(theta: Tensor, p: int = 2) -> tuple[Tensor, Tensor]:
    """Distance from each of N rows to its nearest other row, and that row: d_i = min over j != i of |theta_i - theta_j|_p.

    Distances come from differences, so that near rows far from the origin keep their digits (torch.cdist's default
    loses them). Ties go to the lowest index. Differentiable in theta through both rows of each pair, with the
    neighbours held fixed; the gradient of a pair at distance 0 is zero.

    A row with NaN or Inf is nobody's neighbour while there are finite ones; its own neighbour is the lowest other row,
    at a distance of NaN or Inf, whose gradient does not reach that neighbour.

    Args:
        theta: [N,D], N >= 2. float16 and bfloat16 are taken as float32, also under autocast.
        p: 1, the sum of absolute differences, or 2, the Euclidean norm.

    Returns:
        distance [N], float32 or float64, in the units of theta; index [N] int64.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    _check(theta, p)
    if theta.shape[0] < 2:
        raise ValueError(f"theta must have at least two rows; got {tuple(theta.shape)}")
    theta = as_computed(theta)
    chosen = backends.select("nearest_neighbor", theta.device.type, theta.dtype)
    if chosen == "reference":
        return reference.nearest_neighbor(theta, p)
    return NearestNeighbor.apply(theta, p, chosen)


def nn_entropy(theta: Tensor, dim: float | None = None, p: int = 2, eps: float = 1e-8, group: Any = None) -> Tensor:
    """The entropy of the distribution that N rows were drawn from, by their nearest neighbours.

    h = psi(N) + dim/N * sum_i log(d_i + eps), in nats and up to a constant; psi is the digamma function, d_i the
    distance to the nearest other row (Kozachenko and Leonenko; Deutsch, appendix A.5).

    Args:
        theta: [N,D], N >= 2. float16 and bfloat16 are taken as float32, also under autocast.
        dim: dimension of the set that the rows lie on; None: D. A generator's rows lie on one of its noise's dimension.
        p: 1, the sum of absolute differences, or 2, the Euclidean norm.
        eps: added to each distance, in the units of theta, so that equal rows have a finite entropy.
        group: a torch.distributed process group, or a DeviceMesh of one dimension: theta is this rank's part of the
            rows, any number of them, and neighbours are sought among all ranks'. Every rank gets the same value, that
            of all rows, and its gradient with respect to its own rows. Averaging gradients over ranks, as
            DistributedDataParallel does, divides that by the number of ranks: multiply the value by it there. Called
            by every rank of the group. Double backward is of the sum of the ranks' losses, and called by every rank.

    Returns:
        h, a scalar, float32 or float64.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    _check(theta, p)
    if dim is not None and (not isinstance(dim, (int, float)) or not 0 < dim < math.inf):
        raise ValueError(f"dim must be None or a positive number; got {dim!r}")
    if not isinstance(eps, (int, float)) or not 0 <= eps < math.inf:
        raise ValueError(f"eps must be a number of at least 0; got {eps!r}")
    if group is None:
        distance, _ = nearest_neighbor(theta, p)
    else:
        from .nn_entropy_group import distances_in_group

        distance = distances_in_group(as_computed(theta), p, group)
    return reference.entropy_of(distance, theta.shape[1], dim, eps)


def _check(theta: Tensor, p: int) -> None:
    check_tensor("theta", theta, (2,), "[N,D]")
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2; got {p!r}")


def as_computed(theta: Tensor) -> Tensor:
    """float32, or float64 where it came so."""
    return theta if theta.dtype == torch.float64 else theta.float()


class NearestNeighbor(torch.autograd.Function):
    """apply(theta [N,D], p, backend) -> (distance [N], index [N])."""

    @staticmethod
    def forward(theta, p, chosen):
        return getattr(torch.ops.hyperfast, f"nearest_neighbor_{chosen}")(theta, *ALL_ROWS, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        theta, *ctx.spec = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(theta, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor):
        return NearestNeighborBackward.apply(grad, *ctx.saved_tensors, *ctx.spec), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, theta, *spec):
        samples = [NearestNeighbor.apply(t, *spec) for t in theta.unbind(in_dims[0])]
        return tuple(map(torch.stack, zip(*samples, strict=True))), (0, 0)


class NearestNeighborBackward(torch.autograd.Function):
    """apply(grad, theta, distance, index, p, backend) -> [N,D], itself differentiable in grad and theta."""

    @staticmethod
    def forward(grad, theta, distance, index, p, chosen):
        op = getattr(torch.ops.hyperfast, f"nearest_neighbor_backward_{chosen}")
        return op(grad, theta, distance, index, *ALL_ROWS, p)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        *tensors, ctx.p, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gg: Tensor):
        grad, theta, distance, index = ctx.saved_tensors

        def gradient(grad: Tensor, theta: Tensor) -> Tensor:
            return reference.nearest_neighbor_backward(grad, theta, distance, index, 0, theta.shape[0], ctx.p)

        _, pullback = torch.func.vjp(gradient, grad, theta)[:2]
        return *pullback(gg), *(None,) * 4

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments):
        tensors, spec = arguments[:4], arguments[4:]
        size = info.batch_size
        samples = zip(
            *((t,) * size if dim is None else t.unbind(dim) for t, dim in zip(tensors, in_dims[:4], strict=True)),
            strict=True,
        )
        return torch.stack([NearestNeighborBackward.apply(*sample, *spec) for sample in samples]), 0


# ---- raw ops ----------------------------------------------------------------------------------------


def _rows(n: int, start: int, stop: int) -> int:
    return (n if stop < 0 else stop) - start


def _fake(theta, start, stop, p):
    rows = _rows(theta.shape[0], start, stop)
    return theta.new_empty((rows,)), theta.new_empty((rows,), dtype=torch.int64)


def _fake_backward(grad, theta, distance, index, start, stop, p):
    return theta.new_empty((_rows(theta.shape[0], start, stop), theta.shape[1]))


def _flops(theta, start, stop, p, **_) -> int:
    """Two for each feature of each pair that has one of these rows, each pair once."""
    rows, own = theta[0], _rows(theta[0], start, stop)
    return 2 * theta[1] * (own * (rows - own) + own * (own - 1) // 2)


def _flops_backward(grad, theta, distance, index, start, stop, p, **_) -> int:
    """A difference scaled and added, for both rows of a pair."""
    return 4 * _rows(theta[0], start, stop) * theta[1]


def _triton(name: str):
    def run(*args):
        from ..kernels import nn_entropy as kernels

        with torch.cuda.device_of(args[0]):  # Triton launches on the current device
            return getattr(kernels, name)(*args)

    return run


SCHEMAS = {
    "nearest_neighbor": "(Tensor theta, int start, int stop, int p) -> (Tensor, Tensor)",
    "nearest_neighbor_backward": (
        "(Tensor grad, Tensor theta, Tensor distance, Tensor index, int start, int stop, int p) -> Tensor"
    ),
}
_FAKES: dict[str, tuple[Any, Any]] = {
    "nearest_neighbor": (_fake, _flops),
    "nearest_neighbor_backward": (_fake_backward, _flops_backward),
}
_library = torch.library.Library("hyperfast", "FRAGMENT")
for _op, (_fake_of, _flops_of) in _FAKES.items():
    _library.define(f"{_op}_triton" + SCHEMAS[_op])
    for _key in ("CPU", "CUDA", "XPU"):
        _library.impl(f"{_op}_triton", _triton(_op), _key)
    for _name in [f"{_op}_triton"] + [f"{_op}_cpp"] * (native.WHY_NOT_LOADED is None):
        torch.library.register_fake(f"hyperfast::{_name}", _fake_of, lib=_library)
        register_flop_formula(getattr(torch.ops.hyperfast, _name))(_flops_of)
