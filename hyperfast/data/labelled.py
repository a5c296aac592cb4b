"""Images and their labels, as every reader of labelled images gives them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labelled:
    """images [N,C,H,W], float32 in [0, 1] or uint8, and labels [N] int64, 0 to 9."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Labelled:
        return Labelled(self.images[rows], self.labels[rows])

    def to(self, device: str | torch.device) -> Labelled:
        return Labelled(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Parts:
    """Labelled images of three parts that have no image in common."""

    training: Labelled
    validation: Labelled
    test: Labelled
    title: str
    """What the images are, for people; what is not the original data set says so here."""


def held_out(images: Labelled, count: int) -> tuple[Labelled, Labelled]:
    """(the others, the last `count` images). Raises ValueError unless both have some."""
    if not 0 < count < len(images):
        raise ValueError(f"validation must lie between 1 and {len(images) - 1} images; got {count}")
    return images[:-count], images[-count:]
