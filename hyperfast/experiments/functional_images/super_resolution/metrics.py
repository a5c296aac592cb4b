"""How super-resolution is measured: PSNR and SSIM of the luma channel, rounded to 8 bits, without a border."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def luma(pixels: Tensor) -> Tensor:
    """[1 or 3,H,W] in [0,1], rounded to 8 bits -> [H,W] float64, BT.601's Y from 16 to 235."""
    values = (pixels.double().clamp(0, 1) * 255).round() / 255
    if len(values) == 1:
        return 16 + 219 * values[0]
    return 16 + torch.einsum("chw,c->hw", values, values.new_tensor([65.481, 128.553, 24.966]))


def psnr(found: Tensor, expected: Tensor, border: int) -> float:
    """In dB, of a peak of 255, of pictures [1 or 3,H,W] in [0,1] without `border` rows and columns on every side.

    Infinite for equal pictures. Raises ValueError where nothing is left.
    """
    a, b = _inside(found, expected, border, 1)
    return decibels((a - b).square().mean().item(), 255)


def decibels(error: float, peak: float) -> float:
    """PSNR of a mean squared error; infinite where it is 0."""
    return 10 * math.log10(peak**2 / error) if error else math.inf


def ssim(found: Tensor, expected: Tensor, border: int) -> float:
    """Structural similarity with a Gaussian window of 11 x 11 and a standard deviation of 1.5; arguments as psnr's.

    Raises ValueError where less than a window is left.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = _inside(found, expected, border, 11)
    value = structural_similarity_index_measure(
        a[None, None], b[None, None], gaussian_kernel=True, sigma=1.5, kernel_size=11, data_range=255.0
    )
    return torch.as_tensor(value).item()


def _inside(found: Tensor, expected: Tensor, border: int, least: int) -> tuple[Tensor, Tensor]:
    """Luma of both without the border."""
    if min(found.shape[1:]) - 2 * border < least:
        raise ValueError(
            f"a picture of {tuple(found.shape[1:])} pixels less a border of {border} is too small to compare"
        )
    rows, cols = (slice(border, side - border) for side in found.shape[1:])
    return luma(found)[rows, cols], luma(expected)[rows, cols]
