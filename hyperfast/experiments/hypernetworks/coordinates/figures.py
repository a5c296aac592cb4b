"""Figure 8 of the paper: the filters of the first layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..classification import Net
from ..figures import weight_pictures
from .model import GRID


def draw(nets: Sequence[Net], title: str, out: Path) -> Path:
    """Of each net, side by side, the 28x28 filters of the 16x16 hidden units, each at its unit's place."""
    pictures = [
        (f"{net.name} ({net.config.net}): filters", net.model.weight().view(GRID).permute(2, 3, 0, 1)) for net in nets
    ]
    return weight_pictures([pictures], f"trained on {title}", out / "filters.png")
