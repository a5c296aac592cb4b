"""scikit-learn's 1,797 real handwritten digits of 8x8 pixels: embedded data, nothing to download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Digits:
    """Images [N,64] float32 in [0, 1] and labels [N] int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(test: int = 597, seed: int = 0) -> Digits:
    """The digits, shuffled by seed, the last `test` of them held out."""
    from sklearn.datasets import load_digits as load

    data = load()
    images = torch.as_tensor(data.images / 16.0, dtype=torch.float32).flatten(1)
    labels = torch.as_tensor(data.target, dtype=torch.int64)
    if not 0 < test < len(labels):
        raise ValueError(f"test must lie between 1 and {len(labels) - 1} images; got {test}")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    return Digits(images[:-test], labels[:-test], images[-test:], labels[-test:])
