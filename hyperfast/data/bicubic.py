"""Bicubic resizing with antialiasing, as MATLAB's imresize does it: what super-resolution is measured with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """[...,C,h,w] -> [...,C,H,W] in the same dtype, float32 or float64; size: (H, W), larger or smaller.

    Keys' kernel with a = -1/2, stretched by the scale where the image gets smaller; beyond its edges the image is
    mirrored. The scale of an axis is H / h, so that both images cover the same extent. Values are not clipped.

    Raises ValueError where a side is below one.
    """
    if min(*images.shape[-2:], *size) < 1:
        raise ValueError(f"images must have sides of at least one pixel; got {tuple(images.shape[-2:])} to {size}")
    rows, cols = (_margin(old, new) for old, new in zip(images.shape[-2:], size, strict=True))
    wide = images.flatten(0, -4) if images.dim() > 3 else images.unsqueeze(0)
    wide = wide[..., _mirrored(wide.shape[-2], rows[0], images.device), :]
    wide = wide[..., _mirrored(wide.shape[-1], cols[0], images.device)]
    padded = size[0] + 2 * rows[1], size[1] + 2 * cols[1]
    # antialias=True also where the image gets larger: without it a is -3/4.
    out = F.interpolate(wide, padded, mode="bicubic", antialias=True)
    out = out[..., rows[1] : rows[1] + size[0], cols[1] : cols[1] + size[1]]
    return out.reshape(*images.shape[:-2], *size)


def _margin(old: int, new: int) -> tuple[int, int]:
    """Pixels to add on either side, and what they become: as few as hold the kernel and keep the ratio new / old."""
    divisor = math.gcd(old, new)
    times = math.ceil(4 * max(1, old / new) * divisor / old)
    return times * old // divisor, times * new // divisor


def _mirrored(length: int, margin: int, device: torch.device) -> Tensor:
    """Indices of length + 2 margin pixels: the image mirrored about its edges as often as it takes."""
    place = torch.arange(-margin, length + margin, device=device) % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)
