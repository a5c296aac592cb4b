"""Images that a network trained on others should not be sure of: notMNIST, and patches of photographs."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .labelled import Labelled
from .mnist import read_labelled
from .root import HOW, data_root

# (images, labels): the sample of 10,000, and the test part under MNIST's own names.
NOTMNIST_FILES = (
    ("notmnist-small10k-images-idx3-ubyte.gz", "notmnist-small10k-labels-idx1-ubyte.gz"),
    ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)


def load_notmnist(root: str | Path | None = None) -> Labelled:
    """notMNIST's letters A to J [N,1,28,28], float32 in [0, 1], labels 0 to 9, of one of NOTMNIST_FILES in <root>/notmnist.

    Raises FileNotFoundError and ValueError as load_mnist does.
    """
    folder = data_root(root) / "notmnist"
    for images, labels in NOTMNIST_FILES:
        if (folder / images).is_file() and (folder / labels).is_file():
            return read_labelled(folder / images, folder / labels)
    wanted = " or ".join(" and ".join(pair) for pair in NOTMNIST_FILES)
    raise FileNotFoundError(f"notmnist: {wanted} were expected in {folder}; put them there, or {HOW}")


def load_photo_patches(side: int = 28) -> Tensor:
    """[N,1,side,side] float32 in [0, 1]: scikit-learn's two photographs, grey, cut into squares side by side."""
    from sklearn.datasets import load_sample_images

    patches = []
    for photo in load_sample_images().images:
        grey = torch.tensor(photo).float().mean(2) / 255
        cut = F.unfold(grey[None, None], side, stride=side)  # [1,side*side,n]
        patches.append(cut[0].T.reshape(-1, 1, side, side))
    return torch.cat(patches)
