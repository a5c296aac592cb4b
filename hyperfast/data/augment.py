"""Light augmentation: random crops of padded images, and their mirror images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def augmented(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """[N,C,H,W]: of each image, padded by `padding` zeros on every side, a random crop of its own size; flip: half of
    them, at random, left to right.

    generator: on the CPU; the draws are the same on every device. images: any dtype; none is changed in place.
    """
    if not padding and not flip:
        return images
    count, _, height, width = images.shape
    down, right = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=generator).unbind()
    rows, columns = torch.arange(height) + down, torch.arange(width).expand(count, -1)
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    columns = columns + right
    padded = F.pad(images, (padding,) * 4).permute(0, 2, 3, 1)
    each = torch.arange(count)[:, None, None]
    each, rows, columns = (index.to(images.device) for index in (each, rows[:, :, None], columns[:, None, :]))
    return padded[each, rows, columns].permute(0, 3, 1, 2)
