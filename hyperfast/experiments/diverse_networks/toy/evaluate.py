"""The path that the hypernetwork's points lie on: its values, its density, and the peaks it passes (figure 1)."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ....ops import nearest_neighbor
from .config import Evaluation
from .figures import draw
from .mixture import DEVIATIONS, MEANS, value
from .train import load_hypernetwork


@dataclass(frozen=True)
class Path1D:
    """The images of equally spaced z."""

    z: Tensor
    """[n] in [-1, 1]."""
    y: Tensor
    """[n,2]."""
    value: Tensor
    """[n]: f(y)."""
    distance: Tensor
    """[n], to the nearest other point."""


@torch.no_grad()
def trace(hypernetwork: nn.Module, settings: Evaluation, device: torch.device) -> Path1D:
    """The path at settings.points values of z."""
    z = torch.linspace(-1, 1, settings.points, device=device)
    y = hypernetwork(z.unsqueeze(1))
    return Path1D(z, y, value(y), nearest_neighbor(y)[0])


def peaks(path: Path1D) -> list[dict[str, float]]:
    """For each component: how near the path comes to its mean, in its standard deviations, and f there."""
    means = torch.tensor(MEANS, dtype=path.y.dtype, device=path.y.device)
    nearest = torch.cdist(means, path.y).min(1).values.tolist()
    return [
        {"component": i, "mean_x": x, "mean_y": y, "nearest_in_deviations": d / s, "value_at_mean": f}
        for i, ((x, y), d, s, f) in enumerate(zip(MEANS, nearest, DEVIATIONS, value(means).tolist(), strict=True))
    ]


def run(
    settings: Evaluation, path: Path, out: Path, data_root: Path | None, device: torch.device, figures: tuple[str, ...]
) -> None:
    """`hyperfast evaluate diverse_networks/toy`: a table, path.csv, peaks.csv, evaluation.json, figures."""
    hypernetwork, step = load_hypernetwork(path, device)
    found = trace(hypernetwork, settings, device)
    rows = peaks(found)
    out.mkdir(parents=True, exist_ok=True)
    _write_csv(out / "peaks.csv", rows)
    names = ("z", "x", "y", "value", "distance")
    columns = (found.z, *found.y.T, found.value, found.distance)
    points = zip(*(column.tolist() for column in columns), strict=True)
    _write_csv(out / "path.csv", [dict(zip(names, point, strict=True)) for point in points])
    distances = [row["nearest_in_deviations"] for row in rows]
    about = {
        "checkpoint": str(path),
        "step": step,
        "settings": asdict(settings),
        "mean_value": found.value.mean().item(),
        "length": (found.y[1:] - found.y[:-1]).norm(dim=1).sum().item(),
        "farthest_peak_in_deviations": max(distances),
        "peaks_within_one_deviation": sum(d < 1 for d in distances),
    }
    (out / "evaluation.json").write_text(json.dumps(about, indent=1) + "\n")
    print(
        f"{settings.points} points, mean f {about['mean_value']:.3f}, path of length {about['length']:.1f}; it passes "
        f"{about['peaks_within_one_deviation']} of {len(rows)} means within one standard deviation, "
        f"the farthest at {about['farthest_peak_in_deviations']:.2f}"
    )
    print("\n".join(str(p) for p in draw(figures, found, path.parent, out)))


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: f"{number:.7g}" for name, number in row.items()} for row in rows)
