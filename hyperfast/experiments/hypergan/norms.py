"""How long the layers' weight vectors are, and how much that varies among networks (table 3)."""

from __future__ import annotations

from pathlib import Path

import torch

from ..experiment import Trained
from ..tables import write_csv

COLUMNS = ("layer", "weights", "mean", "std")


@torch.no_grad()
def layer_norms(trained: Trained, networks: int) -> list[dict[str, str | int | float]]:
    """L2 norm of each layer's weight (its bias left out): mean over the networks, and standard deviation."""
    theta = trained.sampler(torch.arange(networks))
    rows: list[dict[str, str | int | float]] = []
    for name, weight in trained.net.unflatten(theta).items():
        if weight.dim() > 2:
            norms = weight.double().flatten(1).norm(dim=1)
            size = weight[0].numel()
            rows.append(dict(zip(COLUMNS, (name, size, norms.mean().item(), norms.std().item()), strict=True)))
    return rows


def run(trained: Trained, networks: int, out: Path) -> list[Path]:
    """norms.csv, and a line for each layer on the screen."""
    rows = layer_norms(trained, networks)
    for row in rows:
        print(f"{row['layer']}: norm {row['mean']:.2f} on average over {networks} networks, std {row['std']:.2f}")
    return [write_csv(out / "norms.csv", rows)]
