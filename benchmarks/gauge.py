"""Gauge fixing of generated networks, with the gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import hyperfast as hf
from hyperfast.models import targets
from hyperfast.plan_gauge import SCALE, SHIFT
from hyperfast.reference import gauge as reference

from .case import Case


def cases(device: str = "cpu") -> list[Case]:
    net = hf.nn.TargetNet(targets.deutsch_mnist())
    return [_case(net, networks) for networks in (32, 1000)]


def _case(net: hf.nn.TargetNet, networks: int) -> Case:
    def eager(theta: Tensor) -> Tensor:
        return reference.fix_gauge(theta, net.plan)

    return Case(
        family="gauge",
        name=f"deutsch {networks}",
        shape={"B": networks, "P": net.num_weights},
        inputs=lambda device: (reference.make_inputs(net.num_weights, networks, device=device),),
        ours=lambda theta: hf.ops.fix_gauge(theta, net),
        reference=eager,
        baselines={"eager": eager, "loop": _loop(eager), "careful": _careful(net)},
        flops=5 * networks * net.num_weights,
        bytes=2 * 4 * networks * net.num_weights,
        gradient_of=(0,),
    )


def _loop(one: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda theta: torch.cat([one(row) for row in theta.split(1)])


def _careful(net: hf.nn.TargetNet) -> Callable[[Tensor], Tensor]:
    """One split, so that backward has one concatenation; norms as inner products; one reciprocal a filter."""
    rows = net.plan.gauge.rows(logits=True)

    def run(theta: Tensor) -> Tensor:
        sizes = [size for row in rows for size in (row.filters * row.fan_in, row.filters)]
        pieces = iter(theta.split(sizes, 1))  # every layer of Deutsch's target has a bias
        fixed, before = [], None
        for row in rows:
            weight, bias = next(pieces).unflatten(1, (row.filters, row.fan_in)), next(pieces)
            if before is not None:
                weight = (weight.unflatten(2, (before.shape[1], -1)) * before[:, None, :, None]).flatten(2)
            before = None
            if row.treatment == SCALE:
                squares = torch.einsum("bfi,bfi->bf", weight, weight) + bias.square()
                before = torch.sqrt(squares / (row.fan_in + 1))
                weight, bias = weight * before.reciprocal().unsqueeze(2), bias / before
            elif row.treatment == SHIFT:
                bias = bias - bias.mean(1, keepdim=True)
            fixed += (weight.flatten(1), bias)
        return torch.cat(fixed, 1)

    return run
