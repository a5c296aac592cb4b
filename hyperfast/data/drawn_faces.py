"""Faces drawn by a formula: coloured ellipses. They stand in for photographs where there are none."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_faces(count: int, side: int = 64, seed: int = 0) -> Tensor:
    """[N,3,S,S] uint8: head, hair, eyes, brows, nose and mouth, of colours, sizes, places and a tilt drawn by seed.

    Face i depends on (seed, i, count) and is the same at every side, but for the resolution.
    """
    draws = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *(shape or (1, 1)), generator=draws)

    centres = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    tilt, zoom = between(-0.2, 0.2), between(0.85, 1.15)
    y, x = (y - between(-0.1, 0.1)) / zoom, (x - between(-0.12, 0.12)) / zoom
    y, x = y * tilt.cos() + x * tilt.sin(), x * tilt.cos() - y * tilt.sin()  # [N,S,S]

    def covered(depth: Tensor) -> Tensor:
        """Depth inside an edge, in half pictures -> share of the pixel that is covered [N,1,S,S]."""
        return (depth * side / 2 + 0.5).clamp(0, 1).unsqueeze(1)

    def ellipse(cy: Tensor, cx: Tensor | float, ry: Tensor, rx: Tensor) -> Tensor:
        radius = (((y - cy) / ry).square() + ((x - cx) / rx).square()).sqrt()
        return covered((1 - radius) * torch.minimum(ry, rx))

    height, width = between(0.6, 0.75), between(0.46, 0.58)
    hair, skin = between(0.05, 0.75, 3, 1, 1) * between(0.3, 1.0, 1, 1, 1), between(0.35, 1.0, 1, 1, 1)
    skin = skin * torch.tensor([1.0, 0.78, 0.64]).view(3, 1, 1) * between(0.9, 1.05, 3, 1, 1)
    light = 1 + between(-0.3, 0.3, 1, 1, 1) * x.unsqueeze(1) + between(-0.15, 0.15, 1, 1, 1) * y.unsqueeze(1)
    top, bottom = between(0.0, 1.0, 3, 1, 1), between(0.0, 1.0, 3, 1, 1)
    picture = top + (bottom - top) * (centres.view(-1, 1) + 1) / 2

    def paint(colour: Tensor, cover: Tensor) -> None:
        nonlocal picture
        picture = picture + (colour - picture) * cover

    picture = picture.expand(-1, -1, side, side)
    paint(hair, ellipse(between(-0.2, 0.25), 0.0, height * between(1.0, 1.25), width * between(1.05, 1.35)))
    paint(skin * light * 0.8, covered(0.24 - x.abs()) * covered(y - 0.3))  # the neck
    paint(between(0.0, 1.0, 3, 1, 1), ellipse(between(1.05, 1.2), 0.0, between(0.3, 0.45), between(0.7, 1.0)))
    paint(skin * light, ellipse(between(0.0, 0.1), 0.0, height, width))
    eyes, apart, size = between(-0.15, 0.0), between(0.18, 0.26), between(0.05, 0.085)
    iris, look = between(0.05, 0.6, 3, 1, 1), between(-0.35, 0.35)
    raised, brow = between(0.1, 0.18), between(0.015, 0.04)
    for sign in (-1, 1):
        cx = sign * apart
        paint(torch.tensor(0.95), ellipse(eyes, cx, size * 0.7, size * 1.3))
        paint(iris, ellipse(eyes, cx + look * size, size * 0.55, size * 0.55))
        paint(hair * 0.7, ellipse(eyes - raised, cx, brow, size * 1.5))
    paint(skin * light * 0.75, ellipse(between(0.12, 0.2), 0.0, between(0.05, 0.1), between(0.04, 0.08)))
    mouth, open_, wide = between(0.34, 0.44), between(0.02, 0.07), between(0.14, 0.26)
    bent = y + between(-0.5, 2.0) * (x.square() - 0.02)
    lips = (((bent - mouth) / open_).square() + (x / wide).square()).sqrt()
    paint(between(0.3, 0.8, 1, 1, 1) * torch.tensor([1.0, 0.35, 0.35]).view(3, 1, 1), covered((1 - lips) * open_))
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)
