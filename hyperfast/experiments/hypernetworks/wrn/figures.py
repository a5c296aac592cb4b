"""Figures 12 and 13 of the paper: kernels of the residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..classification import Net
from ..figures import weight_pictures


def draw(nets: Sequence[Net], title: str, out: Path) -> Path:
    """A row for each net: the second kernel of the first block of the first group, then of the second group.

    Inputs in rows, outputs in columns. Of WRN 40-1 these are 16x16x3x3 and 32x32x3x3, as in the paper.
    """
    rows = []
    for net in nets:
        blocks = net.model.network.blocks
        kernels = [blocks[at].conv2.weight for at in (0, net.config.blocks)]
        rows.append([
            (f"{net.name} ({net.config.net}): {'x'.join(map(str, kernel.shape))}", kernel.transpose(0, 1))
            for kernel in kernels
        ])  # fmt: skip
    return weight_pictures(rows, f"trained on {title}", out / "kernels.png")
