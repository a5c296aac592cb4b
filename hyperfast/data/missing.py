"""Pixels that are missing, filled with means of those around them: what a learnt filling starts from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_missing(images: Tensor, known: Tensor) -> Tensor:
    """[...,C,h,w] with the known pixels as they are, and each other one a weighted mean of known ones near it.

        filled = t_n / w_n,   n the first for which w_n > 0
        t_0 = known images,   w_0 = known,   t_n = S_n t_(n-1),   w_n = S_n w_(n-1)

    S_n is the binomial kernel of 3 x 3, [1 2 1] / 4 along each axis, its taps 2^(n-1) pixels apart and 0 beyond the
    edges. So a pixel is a mean over a place about as wide as its hole.

    Args:
        images: [...,C,h,w], float32 or float64; finite; what it holds in missing pixels does not count.
        known: [...,1,h,w] of the same dtype, 1 where a pixel is known and 0 where it is missing.

    Returns:
        [...,C,h,w], 0 throughout a picture of which no pixel is known.
    """
    total, weight = images * known, known
    filled, missing = total, known == 0
    step, side = 1, max(images.shape[-2:])
    while step < 2 * side and bool(missing.any()):
        total, weight = _spread(total, step), _spread(weight, step)
        found = missing & (weight > 0)
        filled = torch.where(found, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), filled)
        missing, step = missing & ~found, 2 * step
    return filled


def _spread(images: Tensor, step: int) -> Tensor:
    """The binomial kernel with taps `step` pixels apart, 0 beyond the edges."""
    taps = images.new_tensor([0.25, 0.5, 0.25])
    flat = images.reshape(-1, 1, *images.shape[-2:])
    flat = F.conv2d(flat, taps.view(1, 1, 3, 1), padding=(step, 0), dilation=step)
    flat = F.conv2d(flat, taps.view(1, 1, 1, 3), padding=(0, step), dilation=step)
    return flat.view(images.shape)
