"""`hyperfast evaluate diverse_networks/toy`: the path in numbers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from ...tables import write_csv, write_json
from .config import Evaluation
from .figures import draw
from .path import peaks, trace
from .train import load_hypernetwork


def run(
    settings: Evaluation, path: Path, out: Path, data_root: Path | None, device: torch.device, figures: tuple[str, ...]
) -> None:
    """`hyperfast evaluate diverse_networks/toy`: a table, path.csv, peaks.csv, evaluation.json, figures."""
    hypernetwork, step = load_hypernetwork(path, device)
    found = trace(hypernetwork, settings, device)
    rows = peaks(found)
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "peaks.csv", [_rounded(row) for row in rows])
    names = ("z", "x", "y", "value", "distance")
    columns = (found.z, *found.y.T, found.value, found.distance)
    points = zip(*(column.tolist() for column in columns), strict=True)
    write_csv(out / "path.csv", [_rounded(dict(zip(names, point, strict=True))) for point in points])
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
    write_json(out / "evaluation.json", about)
    print(
        f"{settings.points} points, mean f {about['mean_value']:.3f}, path of length {about['length']:.1f}; it passes "
        f"{about['peaks_within_one_deviation']} of {len(rows)} means within one standard deviation, "
        f"the farthest at {about['farthest_peak_in_deviations']:.2f}"
    )
    print("\n".join(str(p) for p in draw(figures, found, path.parent, out)))


def _rounded(row: dict[str, float]) -> dict[str, str]:
    return {name: f"{number:.7g}" for name, number in row.items()}
