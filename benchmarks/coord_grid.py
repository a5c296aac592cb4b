"""An image from overlapping patches, a generated network each, against coordinates written down, products and a fold."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperfast.nn import Cos, TargetNet
from hyperfast.ops import render_patches
from hyperfast.plan import MLP, MLPStage
from hyperfast.plan_steps import steps_of
from hyperfast.reference import coord_grid as reference
from hyperfast.reference import target_net as target_net_reference
from hyperfast.reference.coord_grid import WINDOWS

from . import target_net
from .case import Case, Implementation

PATCH, STRIDE, WIDTHS = 16, 8, (3, 32, 64, 256, 64, 3)


def cases(device: str = "cpu") -> list[Case]:
    return [_case("512x512", 128, 4), _case("96x96", 48, 2)]


def _net() -> TargetNet:
    layers: list[torch.nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [torch.nn.Linear(inputs, outputs), Cos()]
    return TargetNet(torch.nn.Sequential(*layers[:-1], torch.nn.Sigmoid()))


def _case(name: str, low: int, scale: int) -> Case:
    """An image of `low` pixels squared, `scale` times as large."""
    net, origins, size = _net(), reference.patch_grid((low, low), PATCH, STRIDE), low * scale
    (stage,) = net.plan.stages
    assert isinstance(stage, MLPStage)  # a run of linear layers and activations
    mlp, points = stage.mlp, len(origins) * (PATCH * scale) ** 2

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        _, theta = target_net_reference.make_inputs(mlp, len(origins), 1, device=device)
        return theta, torch.full((len(origins), 1), float(scale), device=device)

    def ours(theta: Tensor, extra: Tensor) -> Tensor:
        return render_patches(theta, net, origins.to(theta.device), PATCH, (size, size), scale, extra, check=False)

    def exact(theta: Tensor, extra: Tensor) -> Tensor:
        places, geometry = reference.place_patches(origins.to(theta.device), PATCH, (size, size), (scale, scale))
        steps = steps_of(net.plan.stages)
        return reference.render(
            theta, extra, places, (size, size), geometry._replace(window=WINDOWS.index("hann")), steps
        )[0]

    layers = {
        "eager": target_net.eager(mlp), "careful": target_net.careful(mlp), "loop": target_net.loop(mlp),
        "vmap": target_net.vmap(mlp),
    }  # fmt: skip
    return Case(
        family="coord_grid",
        name=name,
        shape={"patches": len(origins), "patch": PATCH, "stride": STRIDE, "scale": scale, "widths": list(WIDTHS)},
        inputs=inputs,
        ours=ours,
        reference=exact,
        baselines={key: partial(folded, run, mlp, size, scale) for key, run in layers.items()},
        flops=points * mlp.flops_per_row,
        bytes=4 * (len(origins) * mlp.num_weights + 3 * size * size),
        gradient_of=(0,),
        compiled=(),  # what torch.compile (2.13, CPU) makes of the careful one with its fold ends in a segmentation fault
    )


def folded(run: Implementation, mlp: MLP, size: int, scale: int, theta: Tensor, extra: Tensor) -> Tensor:
    """Coordinates of all patches in memory, their outputs by `run`, and torch's fold of the weighted images.

    Patches lie on a grid whose distances are whole pixels, which is all that a fold can do.
    """
    side = PATCH * scale
    points = reference.grid_points((side, side), theta.dtype, theta.device)
    rows = points.expand(len(theta), -1, -1)
    x = torch.cat([rows, extra.unsqueeze(1).expand(-1, len(points), -1)], -1)
    y = run(x, theta)
    assert isinstance(y, Tensor)  # the baselines of target_net return one
    weight = reference.window_weight(points, WINDOWS.index("hann")).prod(1)
    columns = (y * weight[:, None]).permute(2, 1, 0).reshape(1, -1, len(theta))
    fold = partial(F.fold, output_size=(size, size), kernel_size=side, stride=STRIDE * scale)
    return (fold(columns) / fold(weight[None, :, None].expand(1, -1, len(theta))))[0]
