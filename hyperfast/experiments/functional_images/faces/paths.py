"""Paths between two faces, and how far from real ones they lead.

- weights: T( . ; (1 - t) theta_1 + t theta_2), figure 3
- pixels: (1 - t) x_1 + t x_2, figure 6
- layers: row i as weights, but only in the first i layers of T, figure 7
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....models.branched_hypernetwork import layers_of
from .config import Evaluation
from .model import FaceFunctions, in_unit

_REAL_AT_ONCE = 4_096
# "reconstructions": the path of pixels between the two ends of the path of weights, so that both paths have one start
# and one end and are as blurred there.
KINDS = ("weights", "pixels", "reconstructions")


@dataclass(frozen=True)
class Paths:
    """Of pairs of pictures; each [pairs,T,3,S,S] on the CPU, t from 0 to 1."""

    weights: Tensor
    pixels: Tensor
    reconstructions: Tensor

    def __getitem__(self, pairs: slice) -> Paths:
        return Paths(self.weights[pairs], self.pixels[pairs], self.reconstructions[pairs])


@torch.no_grad()
def between(model: FaceFunctions, pictures: Tensor, steps: int) -> Paths:
    """Paths from picture 2 i to picture 2 i + 1 of pictures [2 pairs,3,S,S] uint8; the model in eval mode."""
    device = next(model.parameters()).device
    t = torch.linspace(0, 1, steps, device=device).view(1, -1, 1)
    found = []
    for some in pictures.split(16):
        originals = in_unit(some, device)
        theta = model.hypernetwork(originals)
        weights = _drawn(model, _lerp(theta, t))
        ends = weights[:, [0, -1]].flatten(0, 1)
        found.append((weights, *(_lerp(pictures.cpu(), t[..., None, None]) for pictures in (originals, ends))))
    return Paths(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@torch.no_grad()
def by_layers(model: FaceFunctions, pair: Tensor, steps: int) -> Tensor:
    """[L,T,3,S,S]: row i, from 0, leads from the pair's first to its second in the first i + 1 of L layers alone."""
    device = next(model.parameters()).device
    first, second = model.hypernetwork(in_unit(pair, device))
    t = torch.linspace(0, 1, steps, device=device).view(-1, 1)
    rows = []
    for layer in layers_of(model.net):
        changed = torch.arange(len(first), device=device) < layer.stop
        rows.append(torch.lerp(first.expand(steps, -1), second.expand(steps, -1), t * changed))
    return _drawn(model, torch.stack(rows))


def _lerp(ends: Tensor, t: Tensor) -> Tensor:
    """Ends [2 N,...] -> [N,T,...]."""
    first, second = ends.unflatten(0, (-1, 2)).unsqueeze(2).unbind(1)
    return torch.lerp(first, second, t.to(ends))


def _drawn(model: FaceFunctions, theta: Tensor) -> Tensor:
    """theta [N,T,P] -> [N,T,3,S,S] on the CPU."""
    return model.render(theta.flatten(0, 1)).unflatten(0, theta.shape[:2]).cpu()


# ---- how far from real ones -------------------------------------------------------------------------


def nearest(pictures: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture's nearest real one: (root of the mean squared difference of all values [Q], its index [Q]).

    pictures [Q,3,S,S] in [0,1], real [N,3,S,S] uint8. Found by products about the mean of the real ones, which lose
    few digits there; the distance is then computed from the difference.
    """
    values = pictures.flatten(1)
    centre = in_unit(real[:_REAL_AT_ONCE], pictures.device).flatten(1).mean(0)
    lowest = values.new_full((len(values),), float("inf"))
    index = torch.zeros(len(values), dtype=torch.int64, device=values.device)
    for start in range(0, len(real), _REAL_AT_ONCE):
        some = in_unit(real[start : start + _REAL_AT_ONCE], pictures.device).flatten(1)
        distance, place = torch.cdist(values - centre, some - centre).min(1)
        index = torch.where(distance < lowest, place + start, index)
        lowest = torch.minimum(lowest, distance)
    difference = values - in_unit(real[index.to(real.device)], pictures.device).flatten(1)
    return difference.square().mean(1).sqrt(), index


def detail(pictures: Tensor) -> Tensor:
    """[Q]: mean squared difference of neighbouring pixels of pictures [Q,3,S,S], the larger the sharper they are."""
    rows, cols = (pictures.diff(dim=dim).square().flatten(1).mean(1) for dim in (2, 3))
    return (rows + cols) / 2


@dataclass(frozen=True)
class Measured:
    """Of KINDS, each [pairs,T]."""

    distance: dict[str, Tensor]
    """To the nearest real picture."""
    detail: dict[str, Tensor]


def measure(paths: Paths, real: Tensor, device: torch.device, progress: Callable[[int], None]) -> Measured:
    """Distances and detail of all pictures of the paths."""
    distance, sharp = {}, {}
    for number, kind in enumerate(KINDS, 1):
        pictures = getattr(paths, kind)
        flat = pictures.flatten(0, 1).to(device)
        distance[kind] = nearest(flat, real)[0].unflatten(0, pictures.shape[:2]).cpu()
        sharp[kind] = detail(flat).unflatten(0, pictures.shape[:2]).cpu()
        progress(number)
    return Measured(distance, sharp)


def rows(measured: Measured, steps: int) -> list[dict[str, Any]]:
    """A row for each pair and t."""
    return [
        {"pair": pair, "t": t}
        | {f"distance_{kind}": float(measured.distance[kind][pair, i]) for kind in KINDS}
        | {f"detail_{kind}": float(measured.detail[kind][pair, i]) for kind in KINDS}
        for pair in range(len(measured.distance["weights"]))
        for i, t in enumerate(torch.linspace(0, 1, steps).tolist())
    ]


def summary(measured: Measured) -> list[dict[str, Any]]:
    """A row for each kind of path: means over the pairs; the middle of an even number of steps is the two there.

    `beside_weights`: the mean over pairs of distance_middle less that of the path of weights, and its standard error;
    `nearer`: the share of pairs where this path's middle is nearer to a real picture than that of the path of weights.
    """
    count = measured.distance["weights"].shape[1]
    middle = slice((count - 1) // 2, count // 2 + 1)
    centre = {kind: found[:, middle].mean(1) for kind, found in measured.distance.items()}
    table = []
    for kind in KINDS:
        far, sharp = measured.distance[kind], measured.detail[kind]
        beside = (centre[kind] - centre["weights"]).tolist()
        table.append({
            "path": kind, "distance_ends": float(far[:, [0, -1]].mean()), "distance_middle": float(centre[kind].mean()),
            "distance_path": float(far[:, 1:-1].mean()),
            "detail_middle": float((sharp[:, middle].mean(1) / sharp[:, [0, -1]].mean(1)).mean()),
            "beside_weights": statistics.fmean(beside),
            "standard_error": statistics.stdev(beside) / len(beside) ** 0.5 if len(beside) > 1 else float("nan"),
            "nearer": statistics.fmean(value < 0 for value in beside),
        })  # fmt: skip
    return table


def pairs_of(pictures: Tensor, settings: Evaluation) -> Tensor:
    """The pictures of the first settings.pairs pairs, or as many as there are. Raises ValueError where there is none."""
    if len(pictures) < 2:
        raise ValueError(f"a path needs two test pictures; there are {len(pictures)}")
    return pictures[: min(settings.pairs, len(pictures) // 2) * 2]
