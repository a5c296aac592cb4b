"""Gauge fixing of flat weight vectors: one representative for all weights that are the same network.

The raw ops, for theta [B,P] and the rows of a plan's gauge, five numbers a layer:

    gauge_{cpp,triton}(theta, rows) -> fixed [B,P], scales [B,F]          F: filters of all layers
    gauge_backward_{cpp,triton}(gy [B,P], theta, scales, rows) -> gtheta [B,P]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backends, native
from ..plan import Plan
from ..plan_gauge import GaugeRow
from ..reference import gauge as reference
from .checks import check_size, check_tensor, float32_under_autocast

backends.register("fix_gauge", "cpp", "triton")

_INTS = len(GaugeRow._fields)


def fix_gauge(theta: Tensor, net: Any, logits: bool = True) -> Tensor:
    """The same networks by weights whose filters have a fixed norm (Deutsch, section 3.2.2).

    For the layers in order and every filter (w [fan_in], b) of n = fan_in + 1 elements (fan_in without a bias):

        s = sqrt((sum w^2 + b^2) / n)      w, b <- w / s, b / s      the next layer's columns for it <- s * columns

    wherever everything between the two layers is positively homogeneous (ReLU, LeakyReLU, identity, pooling,
    dropout, Flatten); other layers, and the last, are left alone, and str(net.plan) says which and why. A filter
    of zeros (mean square up to 1e-30) keeps its values, and its gradient is finite. With logits, the last bias also
    loses its mean, which no softmax of the outputs sees, where that adds the same number to every output.

    Args:
        theta: [B,P].
        net: TargetNet with these weights.
        logits: whether the outputs are logits. False: outputs unchanged; True: class probabilities unchanged.

    Returns:
        [B,P] in theta's dtype, computed in float32 (float64 for float64). Under autocast in float32.
        Differentiable in theta, twice.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """
    plan = getattr(net, "plan", None)
    if not isinstance(plan, Plan):
        raise TypeError(f"net must be an hf.nn.TargetNet; got {type(net).__name__}")
    if not isinstance(logits, bool):
        raise TypeError(f"logits must be True or False; got {logits!r}")
    check_tensor("theta", theta, (2,), "[B,P]")
    check_size("theta", theta, 1, plan.num_weights, "net's number of weights")
    if plan.num_weights >= 2**31:
        raise ValueError(f"net must have less than 2^31 weights; got {plan.num_weights}")
    theta = float32_under_autocast(theta)
    rows = plan.gauge.rows(logits)
    chosen = backends.select("fix_gauge", theta.device.type, theta.dtype)
    if chosen == "reference" or not rows:
        return reference.gauge(theta, rows)
    return FixGauge.apply(theta, tuple(number for row in rows for number in row), chosen)[0]


def _decoded(rows: Sequence[int]) -> tuple[GaugeRow, ...]:
    return tuple(GaugeRow(*rows[at : at + _INTS]) for at in range(0, len(rows), _INTS))


class FixGauge(torch.autograd.Function):
    """apply(theta, rows, backend) -> (fixed, scales)."""

    @staticmethod
    def forward(theta, rows, chosen):
        return getattr(torch.ops.hyperfast, f"gauge_{chosen}")(theta, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        theta, *ctx.spec = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(theta, output[1])

    @staticmethod
    def backward(ctx: Any, gy: Tensor, _: Tensor):
        theta, scales = ctx.saved_tensors
        return FixGaugeBackward.apply(gy, theta, scales, *ctx.spec), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, theta, *spec):
        theta = theta.movedim(in_dims[0], 0)
        fixed, scales = FixGauge.apply(theta.flatten(0, 1), *spec)
        return tuple(t.unflatten(0, theta.shape[:2]) for t in (fixed, scales)), (0, 0)


class FixGaugeBackward(torch.autograd.Function):
    """apply(gy, theta, scales, rows, backend) -> gtheta, itself differentiable: fused forward, the reference behind it."""

    @staticmethod
    def forward(gy, theta, scales, rows, chosen):
        return getattr(torch.ops.hyperfast, f"gauge_backward_{chosen}")(gy, theta, scales, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        gy, theta, _, ctx.rows, _ = inputs
        ctx.save_for_backward(gy, theta)

    @staticmethod
    def backward(ctx: Any, gg: Tensor):
        rows = _decoded(ctx.rows)

        def gradient(gy: Tensor, theta: Tensor) -> Tensor:
            _, pullback = torch.func.vjp(lambda theta: reference.gauge(theta, rows), theta)[:2]
            return pullback(gy)[0]

        _, pullback = torch.func.vjp(gradient, *ctx.saved_tensors)[:2]
        return *pullback(gg), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, gy, theta, scales, *spec):
        size = info.batch_size
        every = [
            t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip((gy, theta, scales), in_dims[:3], strict=True)
        ]
        gtheta = FixGaugeBackward.apply(*(t.flatten(0, 1) for t in every), *spec)
        return gtheta.unflatten(0, every[0].shape[:2]), 0


# ---- raw ops ----------------------------------------------------------------------------------------


def _fake(theta, rows):
    compute = torch.promote_types(theta.dtype, torch.float32)
    filters = sum(row.filters for row in _decoded(rows))
    return theta.new_empty(theta.shape), theta.new_empty((theta.shape[0], filters), dtype=compute)


def _fake_backward(gy, theta, scales, rows):
    return theta.new_empty(theta.shape)


def _triton(theta, rows):
    from ..kernels import gauge as kernels

    with torch.cuda.device_of(theta):  # Triton launches on the current device
        return kernels.gauge(theta, _decoded(rows))


def _triton_backward(gy, theta, scales, rows):
    from ..kernels import gauge as kernels

    with torch.cuda.device_of(theta):
        return kernels.gauge_backward(gy, theta, scales, _decoded(rows))


_library = torch.library.Library("hyperfast", "FRAGMENT")
_library.define("gauge_triton(Tensor theta, int[] rows) -> (Tensor, Tensor)")
_library.define("gauge_backward_triton(Tensor gy, Tensor theta, Tensor scales, int[] rows) -> Tensor")
for _key in ("CPU", "CUDA", "XPU"):
    _library.impl("gauge_triton", _triton, _key)
    _library.impl("gauge_backward_triton", _triton_backward, _key)
for _backend in ["triton"] + ["cpp"] * (native.WHY_NOT_LOADED is None):
    for _name, _fake_of in ((f"gauge_{_backend}", _fake), (f"gauge_backward_{_backend}", _fake_backward)):
        torch.library.register_fake(f"hyperfast::{_name}", _fake_of, lib=_library)
        register_flop_formula(getattr(torch.ops.hyperfast, _name))(lambda *_, **__: 0)  # no products of matrices
