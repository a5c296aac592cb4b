"""Images of the user's own, for `hyperfast predict`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.mnist import SIDE, read_images


def read_inputs(path: Path) -> Tensor:
    """[N,1,28,28] float32 in [0, 1] from an idx3 file, gzipped or plain, or a .npy of [N,28,28] or [N,1,28,28].

    uint8 is divided by 255. Raises ValueError that names the file and what was expected.
    """
    if path.suffix != ".npy":
        return read_images(path)
    try:
        values = np.load(path, allow_pickle=False)
    except (EOFError, ValueError) as problem:
        raise ValueError(f"{path} is not a readable .npy file: {problem}") from problem
    if values.shape[1:] not in ((SIDE, SIDE), (1, SIDE, SIDE)) or not (
        values.dtype == np.uint8 or np.issubdtype(values.dtype, np.floating)
    ):
        raise ValueError(
            f"{path}: images [N,{SIDE},{SIDE}] or [N,1,{SIDE},{SIDE}] were expected, uint8 or floats in [0, 1]; "
            f"got {values.dtype} {list(values.shape)}"
        )
    images = torch.from_numpy(values).float() / (255 if values.dtype == np.uint8 else 1)
    return images.reshape(-1, 1, SIDE, SIDE)
