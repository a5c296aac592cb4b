"""`hyperfast upscale`: a picture of the user's at any scale."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from ....data.bicubic import resize_bicubic
from ....data.image_files import Picture, read_picture, write_picture
from ....models import FunctionalImage
from ...training import ProgressBar
from .train import load

# Networks that are evaluated at a pixel: two along each axis.
_OVERLAP = 4


def upscale_picture(
    model: FunctionalImage, picture: Picture, scale: tuple[float, float], device: torch.device
) -> Picture:
    """The picture in its own form: a grey one stays grey, with as many bits; alpha by bicubic interpolation."""
    pixels = picture.pixels.expand(model.channels, -1, -1) if len(picture.pixels) < model.channels else picture.pixels
    size = [max(1, round(side * by)) for side, by in zip(pixels.shape[1:], scale, strict=True)]
    with ProgressBar("upscaling", size[0] * size[1]) as bar:
        found = model.upscale(pixels.to(device), scale, progress=lambda done, total: bar.update(done)).cpu()
    if len(picture.pixels) == 1:
        found = found.mean(0, keepdim=True)
    alpha = None if picture.alpha is None else resize_bicubic(picture.alpha, found.shape[1:]).clamp(0, 1)
    return Picture(found, alpha, picture.bits)


def run(source: Path, target: Path, scale: tuple[float, ...], checkpoint: Path, device: torch.device) -> None:
    """Reads, upscales and writes; says how fast it was. Raises ValueError where the scale is not one or two numbers."""
    if not 1 <= len(scale) <= 2 or min(scale) <= 0:
        raise ValueError(
            f"--scale must be a positive number, or two for rows and columns; got {' '.join(map(str, scale))}"
        )
    model, _, step = load(checkpoint, device)
    picture = read_picture(source)
    begun = time.perf_counter()
    found = upscale_picture(model, picture, (scale[0], scale[-1]), device)
    seconds = time.perf_counter() - begun
    write_picture(target, found)
    rows, cols = found.pixels.shape[1:]
    rate = _OVERLAP * rows * cols / seconds / 1e6
    print(
        f"{target}: {cols} x {rows} pixels by the model of step {step}, in {seconds:.1f} s: {rate:.2f} M evaluations/s"
    )
