"""Images of the user's own, for `hyperfast predict`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.mnist import SIDE, read_images

DIGIT = (1, SIDE, SIDE)


def read_inputs(path: Path, shape: tuple[int, int, int] = DIGIT) -> Tensor:
    """[N,C,H,W] float32 in [0, 1], of images of `shape`: from a .npy, or digits from an idx3 file, gzipped or plain.

    A .npy has [N,C,H,W], or [N,H,W] of one channel. uint8 is divided by 255. Raises ValueError that names the file and
    what was expected.
    """
    if path.suffix != ".npy" and shape == DIGIT:
        return read_images(path)
    channels, *sides = shape
    fitting = (shape, tuple(sides)) if channels == 1 else (shape,)
    wanted = " or ".join(f"[N,{','.join(map(str, one))}]" for one in reversed(fitting))
    try:
        values = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as problem:
        raise ValueError(f"{path} is not a readable .npy file: {problem}") from problem
    if values.shape[1:] not in fitting or not (values.dtype == np.uint8 or np.issubdtype(values.dtype, np.floating)):
        raise ValueError(
            f"{path}: images {wanted} were expected, uint8 or floats in [0, 1]; got {values.dtype} {list(values.shape)}"
        )
    images = torch.from_numpy(values).float() / (255 if values.dtype == np.uint8 else 1)
    return images.reshape(-1, *shape)
