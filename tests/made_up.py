"""Made-up data sets in the public formats, for tests that must not need the real ones."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np

from hyperfast.data.mnist import FILES

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def write_idx(path: Path, values: np.ndarray) -> Path:
    """uint8 values as a gzipped idx file."""
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))
    return path


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [N,28,28] and labels [N], uint8: a bright bar whose place tells the class, in noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count, dtype=np.uint8)
    images = random.integers(0, 30, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 + 4 * (label // 2), 3 + 12 * (label % 2)
        image[row : row + 3, column : column + 9] += 225
    return images, labels


def write_mnist(folder: Path, train: int = 300, test: int = 60) -> Path:
    """The four files of a small MNIST in `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for (images_file, labels_file), count, seed in ((FILES[:2], train, 1), (FILES[2:], test, 2)):
        images, labels = digits(count, seed)
        write_idx(folder / images_file, images)
        write_idx(folder / labels_file, labels)
    return folder


def real_data_root() -> Path | None:
    """The folder of the real data sets where there is one."""
    for place in (os.environ.get("HYPERFAST_DATA"), SHARED_DATA):
        if place and Path(place).is_dir():
            return Path(place)
    return None
