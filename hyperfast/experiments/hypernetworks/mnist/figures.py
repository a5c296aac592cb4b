"""Figure 2 of the paper: the second layer's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..classification import Net
from ..figures import weight_pictures


def draw(nets: Sequence[Net], title: str, out: Path) -> Path:
    """Of each net, side by side, its 7x7x16x16 kernel: inputs in rows, outputs in columns."""
    pictures = [
        (f"{net.name} ({net.config.net}): second kernel", net.model.second.weight.transpose(0, 1)) for net in nets
    ]
    return weight_pictures([pictures], f"trained on {title}", out / "kernels.png")
