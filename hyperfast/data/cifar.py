"""CIFAR-10: the python batches, folders or zips of images, and a part of it in one .npz."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from .labelled import Labelled
from .root import HOW, data_root

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
FOLDERS = ("cifar10", ".")
BATCHES, TAR = "cifar-10-batches-py", "cifar-10-python.tar.gz"
TRAIN_BATCHES, TEST_BATCH = tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch"
ZIPS = ("cifar10*.zip", "cifar-10*.zip")
SUBSET = "cifar10_train_first4000_lossless.npz"
SUBSET_TEST = 500
_LOSSY, _LOSSLESS = (".jpg", ".jpeg"), (".png", ".bmp")
_PICKLED = "a pickled dictionary with data, uint8 [N,3072], and labels, N numbers from 0 to 9, was expected"
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError)


@dataclass(frozen=True)
class CIFAR10:
    """The 50,000 training and 10,000 test images [N,3,32,32], uint8."""

    train: Labelled
    test: Labelled
    title: str
    """CIFAR-10, and what is not the original in it."""


def load_cifar10(root: str | Path | None = None) -> CIFAR10:
    """CIFAR-10 from <root>/cifar10 or root itself; root=None: $HYPERFAST_DATA. The first of these that is there:

    - the python version's files data_batch_1 to 5 and test_batch, in that folder or in cifar-10-batches-py in it,
    - cifar-10-python.tar.gz,
    - images of 32x32 pixels in folders train/<class>/ and test/<class>/, as PNG, BMP or JPEG,
    - a zip of such folders, called cifar10*.zip or cifar-10*.zip.

    Of images that were JPEGs the title says so: their pixels are not the original ones.

    Raises FileNotFoundError where there is none; ValueError where a file is damaged, foreign or of another size. Both
    name the file and what was expected.
    """
    top = data_root(root)
    for place in (top / name for name in FOLDERS):
        for folder in (place, place / BATCHES):
            if (folder / TRAIN_BATCHES[0]).is_file():
                return _from_batches(folder, _reader(folder))
        if (place / TAR).is_file():
            return _from_tar(place / TAR)
        if (place / "train").is_dir() and (place / "test").is_dir():
            return _from_folders(place)
        for path in sorted(path for pattern in ZIPS for path in place.glob(pattern)):
            return _from_zip(path)
    raise FileNotFoundError(
        f"cifar10: neither {TRAIN_BATCHES[0]}, {TAR}, folders train and test of images nor {' or '.join(ZIPS)} was found "
        f"in {top / FOLDERS[0]} or in {top}; put one there, or {HOW}"
    )


def load_cifar10_subset(root: str | Path | None = None) -> CIFAR10:
    """Original pixels of a part of the training images: the .npz with images [N,3,32,32] and labels [N], both uint8.

    It has no test images: the last 500 images serve as such. Raises as load_cifar10 does.
    """
    places = [data_root(root) / name / SUBSET for name in FOLDERS]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{SUBSET} not found in {places[0].parent} or in {places[1].parent}; {HOW}")
    expected = f"an .npz file with images, uint8 [N,3,{SIDE},{SIDE}], and labels, uint8 [N], was expected"
    try:
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except (*_DAMAGED, KeyError, ValueError, TypeError) as problem:
        raise ValueError(f"{path}: {expected}; {problem}") from problem
    if images.dtype != np.uint8 or images.shape[1:] != (3, SIDE, SIDE) or labels.shape != images.shape[:1]:
        raise ValueError(f"{path}: {expected}; got {images.dtype} {images.shape} and {labels.shape}")
    everything = _labelled(images, labels, path)
    if len(everything) <= SUBSET_TEST:
        raise ValueError(f"{path}: more than {SUBSET_TEST} images were expected; it has {len(everything)}")
    title = f"CIFAR-10 (of the first {len(everything):,} training images)"
    return CIFAR10(everything[:-SUBSET_TEST], everything[-SUBSET_TEST:], title)


def _reader(folder: Path) -> Callable[[str], bytes]:
    return lambda name: (folder / name).read_bytes()


def _labelled(images: np.ndarray, labels: np.ndarray, path: Path) -> Labelled:
    if not len(labels) or labels.min() < 0 or labels.max() >= len(CLASSES):
        found = f"they are {labels.min()} to {labels.max()}" if len(labels) else "there are none"
        raise ValueError(f"{path}: labels 0 to {len(CLASSES) - 1} were expected; {found}")
    return Labelled(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels.astype(np.int64)))


# ---- the python version -----------------------------------------------------------------------------


def _from_batches(place: Path, read: Callable[[str], bytes]) -> CIFAR10:
    """read(name) gives a file's bytes, or raises FileNotFoundError."""
    parts = []
    for names in (TRAIN_BATCHES, (TEST_BATCH,)):
        read_parts = []
        for name in names:
            try:
                read_parts.append(_batch(read(name), place / name))
            except FileNotFoundError as problem:
                wanted = ", ".join((*TRAIN_BATCHES, TEST_BATCH))
                raise FileNotFoundError(
                    f"cifar10: {name} not found in {place}, where {wanted} were expected"
                ) from problem
        images, labels = (np.concatenate(arrays) for arrays in zip(*read_parts, strict=True))
        parts.append(_labelled(images, labels, place))
    return CIFAR10(parts[0], parts[1], "CIFAR-10")


def _from_tar(path: Path) -> CIFAR10:
    try:
        with tarfile.open(path) as archive:
            members = {PurePosixPath(member.name).name: member for member in archive if member.isfile()}
            contents = {
                name: file.read()
                for name in (*TRAIN_BATCHES, TEST_BATCH)
                if name in members and (file := archive.extractfile(members[name]))
            }
    except _DAMAGED as problem:
        raise ValueError(f"{path} is a truncated or damaged .tar.gz file ({problem}); fetch it again") from problem

    def read(name: str) -> bytes:
        if name not in contents:
            raise FileNotFoundError(name)
        return contents[name]

    return _from_batches(path, read)


def _batch(contents: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(images [N,3,32,32], labels [N]) of one pickled file."""
    try:
        values = _PlainUnpickler(io.BytesIO(contents), encoding="bytes").load()
        images, labels = np.asarray(values[b"data"]), np.asarray(values[b"labels"])
    except Exception as problem:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path}: {_PICKLED}; {type(problem).__name__}: {problem}") from problem
    whole = labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer)
    if not whole or images.dtype != np.uint8 or images.shape != (len(labels), 3 * SIDE * SIDE):
        raise ValueError(f"{path}: {_PICKLED}; got {images.dtype} {images.shape} and {labels.dtype} {labels.shape}")
    return images.reshape(-1, 3, SIDE, SIDE), labels


class _PlainUnpickler(pickle.Unpickler):
    """Arrays and what Python has built in, and nothing else: a pickle could otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        from numpy._core.multiarray import _reconstruct

        known = {
            ("multiarray", "_reconstruct"): _reconstruct, ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
        }  # fmt: skip
        # numpy.core.multiarray in files of before NumPy 2, numpy._core.multiarray in later ones
        last = "multiarray" if module in ("numpy.core.multiarray", "numpy._core.multiarray") else module
        if (last, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no such file needs")
        return known[last, name]


# ---- images -----------------------------------------------------------------------------------------


def _from_folders(place: Path) -> CIFAR10:
    names = [path.relative_to(place).as_posix() for part in ("train", "test") for path in (place / part).rglob("*")]
    return _from_images(place, names, _reader(place))


def _from_zip(path: Path) -> CIFAR10:
    try:
        with zipfile.ZipFile(path) as archive:
            return _from_images(path, archive.namelist(), archive.read)
    except _DAMAGED as problem:
        raise ValueError(f"{path} is a truncated or damaged zip file ({problem}); fetch it again") from problem


def _from_images(place: Path, names: Iterable[str], read: Callable[[str], bytes]) -> CIFAR10:
    """Of the names that are images: .../train/<class>/<name> or .../test/<class>/<name>."""
    of_part: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    lossy = False
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.suffix.lower() not in _LOSSY + _LOSSLESS:
            continue
        part, kind = ("", "", *path.parts[:-1])[-2:]
        if part not in of_part or kind not in CLASSES:
            raise ValueError(
                f"{place / name}: images were expected in train/<class>/ and test/<class>/, <class> one of {', '.join(CLASSES)}"
            )
        of_part[part].append((name, CLASSES.index(kind)))
        lossy = lossy or path.suffix.lower() in _LOSSY
    missing = [part for part, found in of_part.items() if not found]
    if missing:
        raise ValueError(f"{place} has no images in {' and '.join(f'{part}/<class>/' for part in missing)}")
    parts = []
    for found in of_part.values():
        images = np.stack([_pixels(read(name), place / name) for name, _ in found])
        parts.append(_labelled(images.transpose(0, 3, 1, 2), np.array([label for _, label in found]), place))
    return CIFAR10(parts[0], parts[1], "CIFAR-10 (JPEG)" if lossy else "CIFAR-10")


def _pixels(contents: bytes, path: Path) -> np.ndarray:
    """[32,32,3] uint8."""
    from PIL import Image

    try:
        pixels = np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as problem:  # Pillow: SyntaxError for some damaged PNGs
        raise ValueError(f"{path}: an image was expected; {problem}") from problem
    if pixels.shape != (SIDE, SIDE, 3):
        raise ValueError(
            f"{path}: an image of {SIDE}x{SIDE} pixels was expected; got {pixels.shape[1]}x{pixels.shape[0]}"
        )
    return pixels
