"""MNIST, or any data set in its format: gzipped idx files, a big-endian header and raw bytes behind it."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .labelled import Labelled, held_out
from .root import HOW, dataset_folder

FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CLASSES = 10
SIDE = 28
_UNSIGNED_BYTE = 8


@dataclass(frozen=True)
class MNIST:
    """The 60,000 training and 10,000 test digits [N,1,28,28], float32 in [0, 1], in the files' order."""

    train: Labelled
    test: Labelled

    def split(self, validation: int = 5_000) -> tuple[Labelled, Labelled, Labelled]:
        """(training, validation, test): the last `validation` training digits held out; 55k, 5k, 10k by default."""
        return *held_out(self.train, validation), self.test


def load_mnist(root: str | Path | None = None) -> MNIST:
    """MNIST from its four idx .gz files in <root>/mnist or in root itself; root=None: $HYPERFAST_DATA.

    Raises FileNotFoundError where the folder or a file is missing, and ValueError where a file is truncated,
    foreign, or of another size than its header or its labels say. Both name the file and what was expected.
    """
    folder = dataset_folder("mnist", FILES, root)
    return MNIST(*(read_labelled(folder / images, folder / labels) for images, labels in (FILES[:2], FILES[2:])))


def read_images(path: Path) -> Tensor:
    """[N,1,28,28] float32 in [0, 1] from an idx3 file, gzipped or plain."""
    pixels = read_idx(path, 3)
    if tuple(pixels.shape[1:]) != (SIDE, SIDE):
        raise ValueError(f"{path}: images of {SIDE}x{SIDE} pixels were expected; its header says {pixels.shape[1:]}")
    return torch.from_numpy(pixels).unsqueeze(1).float() / 255


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array [N, ...] of an idx file, gzipped or plain.

    Raises ValueError that names the file where it is truncated, is no idx file of unsigned bytes in that many
    dimensions, or has more or fewer values than its header says.
    """
    data = _contents(path)
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if data[:4] != magic:
        raise ValueError(
            f"{path} is no idx{dimensions} file of unsigned bytes: it should begin with {magic.hex(' ')}, "
            f"not with {data[:4].hex(' ') or 'nothing'}; {HOW}"
        )
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise ValueError(f"{path} is truncated: a header of {start} bytes was expected; it has {len(data)}")
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path}: its header announces {' x '.join(map(str, shape))} = {math.prod(shape)} bytes, "
            f"but {len(data) - start} follow; the file is truncated or damaged"
        )
    return np.frombuffer(bytearray(data), np.uint8, offset=start).reshape(shape)  # a bytearray: writable


def _contents(path: Path) -> bytes:
    data = path.read_bytes()
    if data[:2] != b"\x1f\x8b":
        if path.suffix == ".gz":
            raise ValueError(f"{path} is not a gzip file, though its name says so: it begins with {data[:4].hex(' ')}")
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as problem:
        raise ValueError(f"{path} is a truncated or damaged gzip file ({problem}); fetch it again") from problem


def read_labelled(images_path: Path, labels_path: Path) -> Labelled:
    """Images as read_images gives them, and their labels, 0 to 9, of an idx1 file."""
    images, labels = read_images(images_path), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path} has {len(labels)} labels for the {len(images)} images of {images_path}; as many were expected"
        )
    if len(labels) and labels.max() >= CLASSES:
        raise ValueError(f"{labels_path}: labels 0 to {CLASSES - 1} were expected; got {labels.max()}")
    return Labelled(images, torch.from_numpy(labels).long())
