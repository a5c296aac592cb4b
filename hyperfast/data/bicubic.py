"""Bicubic resizing with antialiasing, as MATLAB's imresize does it: what super-resolution is measured with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_bicubic(images: Tensor, size: Sequence[int]) -> Tensor:
    """[...,C,h,w] -> [...,C,H,W] in the same dtype, float32 or float64; size: (H, W), larger or smaller.

    Keys' kernel with a = -1/2, stretched by the scale where the image gets smaller; beyond its edges the image is
    mirrored. The scale of an axis is H / h, so that both images cover the same extent. Values are not clipped.

    Raises ValueError where a side is below one.
    """
    if min(*images.shape[-2:], *size) < 1:
        raise ValueError(f"images must have sides of at least one pixel; got {tuple(images.shape[-2:])} to {size}")
    rows, cols = (_margin(old, new) for old, new in zip(images.shape[-2:], size, strict=True))
    wide = images.flatten(0, -4) if images.dim() > 3 else images.unsqueeze(0)
    wide = wide[..., mirrored(wide.shape[-2], rows[0], images.device), :]
    wide = wide[..., mirrored(wide.shape[-1], cols[0], images.device)]
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


def bicubic_at(images: Tensor, places: Tensor) -> Tensor:
    """Keys' interpolation (a = -1/2) at any places: [B,C,h,w], [B,N,2] -> [B,N,C].

    places: (row, column) in pixels, the centre of the first pixel at (1/2, 1/2); mirrored beyond the edges. Where
    places are the centres of a larger grid's pixels, this is resize_bicubic.
    """
    corner = (places - 0.5).floor()
    share = places - 0.5 - corner  # [B,N,2]
    rows, cols = (_four(share[..., axis]) for axis in (0, 1))
    taps = torch.arange(-1, 3, device=images.device)
    index = [
        _reflected(corner[..., axis].long().unsqueeze(-1) + taps, side) for axis, side in enumerate(images.shape[-2:])
    ]  # [B,N,4] each
    flat = (index[0].unsqueeze(-1) * images.shape[-1] + index[1].unsqueeze(-2)).flatten(2)  # [B,N,16]
    batch = torch.arange(len(images), device=images.device).view(-1, 1, 1)
    values = images.flatten(2).transpose(1, 2)[batch, flat]  # [B,N,16,C]
    return torch.einsum("bnk,bnkc->bnc", (rows.unsqueeze(-1) * cols.unsqueeze(-2)).flatten(2), values)


def _four(t: Tensor) -> Tensor:
    """Keys' weights of the four neighbours of a place t in [0,1) behind the second of them: [...,4]."""
    far, near = (lambda d: ((-0.5 * d + 2.5) * d - 4) * d + 2), (lambda d: (1.5 * d - 2.5) * d * d + 1)
    return torch.stack([far(1 + t), near(t), near(1 - t), far(2 - t)], -1)


def _reflected(place: Tensor, length: int) -> Tensor:
    place = place % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)


def mirrored(length: int, margin: int, device: torch.device) -> Tensor:
    """Indices of length + 2 margin pixels: the image mirrored about its edges as often as it takes."""
    return _reflected(torch.arange(-margin, length + margin, device=device), length)
