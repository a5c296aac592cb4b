"""Faces in three parts: CelebA, Labeled Faces in the Wild, any folder or archive of pictures, drawn ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from .bicubic import resize_bicubic
from .drawn_faces import draw_faces
from .image_files import Picture, PictureFiles
from .root import named_set

EMBEDDED = "embedded"
PARTITION = "list_eval_partition"
_DRAWN = 1_600
_CELEBA = "img_align_celeba"
_SEED = 0  # of the pictures that are held out: the parts are the same in every training
_AT_ONCE = 512  # pictures that are read between two calls of progress


@dataclass(frozen=True)
class Faces:
    """Each [N,3,S,S] uint8, RGB."""

    train: Tensor
    validation: Tensor
    test: Tensor
    title: str
    """What the pictures are and how they were parted, for people."""


def load_faces(
    name: str,
    root: str | Path | None = None,
    held_out: int = 200,
    side: int = 64,
    crop: int = 128,
    pictures: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Faces:
    """Faces from a folder or zip archive in the data root, each cropped and resized by framed().

    A folder <root>/<name> may have the pictures in subfolders (CelebA's img_align_celeba among them, which alone is
    then taken), or one zip archive of them. Where CelebA's list_eval_partition.txt or .csv lies in the folder, in its
    Eval/ or beside the archive, it tells the parts, and of validation and test the first `held_out` are read.
    Otherwise so many are held out for each, at random by a fixed seed; all pictures of a person, as LFW names them
    (<person>/<person>_0001.jpg), are in one part. "embedded": 1,600 faces drawn by draw_faces; they need no root.

    Args:
        held_out: pictures of validation and of test.
        side: S of the result, in pixels.
        crop: side of the central square that is cut out, in pixels of the file.
        pictures: training pictures that are read, the first ones; None: all.
        progress: called as progress(done, total), in pictures.

    Raises:
        FileNotFoundError: where there is no such folder or archive; says where it was looked for.
        ValueError: naming the file, where it is damaged or no picture, or where too few are left to train with.
    """
    if name == EMBEDDED:
        drawn = draw_faces(_DRAWN, side, _SEED)
        train, validation, test = _at_random([str(i) for i in range(_DRAWN)], held_out, "the drawn faces")
        progress(_DRAWN, _DRAWN)
        return Faces(drawn[train[:pictures]], drawn[validation], drawn[test], f"{_DRAWN:,} drawn faces")
    files, folders = _files(named_set(name, root))
    chosen = [i for i, file in enumerate(files.names) if _CELEBA in PurePosixPath(file).parts]
    chosen = chosen or list(range(len(files)))
    names = [files.names[i] for i in chosen]
    partition = next((path for folder in folders if (path := _partition_file(folder))), None)
    if partition:
        train, validation, test = _as_listed(names, partition, files.path)
        validation, test = validation[:held_out], test[:held_out]
        how = f"the parts of {partition.name}"
    else:
        train, validation, test = _at_random(names, held_out, str(files.path))
        how = f"{held_out:,} and {held_out:,} held out at random"
    parts = [train[:pictures], validation, test]
    everything = _read(files, [chosen[i] for part in parts for i in part], side, crop, progress)
    read = everything.split([len(part) for part in parts])
    return Faces(read[0], read[1], read[2], f"{name}: {len(names):,} pictures, {how}")


def framed(picture: Picture, side: int, crop: int) -> Tensor:
    """[3,side,side] uint8: the central square of `crop` pixels, or the largest there is, resized with antialiasing.

    Grey becomes RGB, 16 bits become 8; what is transparent lies over white.
    """
    pixels = picture.pixels
    if picture.alpha is not None:
        pixels = pixels * picture.alpha + (1 - picture.alpha)
    rows, cols = pixels.shape[1:]
    size = min(crop, rows, cols)
    top, left = (rows - size) // 2, (cols - size) // 2
    square = resize_bicubic(pixels[:, top : top + size, left : left + size], (side, side))
    return (square.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1)


# ---- where they are ---------------------------------------------------------------------------------


def _files(path: Path) -> tuple[PictureFiles, list[Path]]:
    """The pictures, and the folders in which a partition may lie."""
    if not path.is_dir():
        return PictureFiles(path), _beside(path)
    try:
        files = PictureFiles(path)
        return files, [path, *(_beside(path) if path.name == _CELEBA else ())]
    except ValueError:
        archives = sorted(path.rglob("*.zip"))
        if len(archives) != 1:
            found = ", ".join(str(a.relative_to(path)) for a in archives) or "no archive"
            raise ValueError(
                f"{path} has no pictures; pictures or one zip archive of them were expected, it has {found}"
            ) from None
        return PictureFiles(archives[0]), [path, archives[0].parent]


def _beside(path: Path) -> list[Path]:
    """Of something that is CelebA by its name: a partition beside another set is not that set's."""
    return [path.parent] if "celeba" in path.stem.lower() else []


def _partition_file(folder: Path) -> Path | None:
    places = (place / f"{PARTITION}{suffix}" for place in (folder, folder / "Eval") for suffix in (".txt", ".csv"))
    return next((place for place in places if place.is_file()), None)


# ---- the parts: indices of names --------------------------------------------------------------------

_Parts = tuple[list[int], list[int], list[int]]


def _as_listed(names: Sequence[str], partition: Path, source: Path) -> _Parts:
    """By CelebA's file: lines "000001.jpg 0" or, behind a heading, "000001.jpg,0"; 0 training, 1 validation, 2 test."""
    part_of: dict[str, int] = {}
    for number, line in enumerate(partition.read_text().splitlines(), 1):
        name, _, part = re.sub(r"[,\s]+", " ", line.strip()).partition(" ")
        if (number == 1 and name == "image_id") or not name:
            continue
        if part not in ("0", "1", "2"):
            raise ValueError(f"{partition}, line {number}: a file's name and 0, 1 or 2 were expected; got {line!r}")
        part_of[name] = int(part)
    parts: _Parts = ([], [], [])
    for index, name in enumerate(names):
        file = PurePosixPath(name).name
        if file not in part_of:
            raise ValueError(f"{partition} does not list {name} of {source}")
        parts[part_of[file]].append(index)
    for found, what in zip(parts, ("training", "validation", "test"), strict=True):
        if not found:
            raise ValueError(f"{source} has none of the {what} pictures that {partition} lists")
    return parts


def _at_random(names: Sequence[str], held_out: int, source: str) -> _Parts:
    """Persons in a random order: test, validation, training pictures."""
    persons: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        persons.setdefault(_person(name), []).append(index)
    everyone = list(persons.values())
    order = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(_SEED)).tolist()
    parts: _Parts = ([], [], [])
    for which in order:
        part = next((part for part in (parts[2], parts[1]) if len(part) < held_out), parts[0])
        part.extend(everyone[which])
    if not parts[0]:
        raise ValueError(
            f"{source} has {len(names)} pictures of {len(everyone)} persons; more were expected, {held_out} each are "
            "held out for validation and test (held_out)"
        )
    return parts


def _person(name: str) -> str:
    """LFW's <person>/<person>_0001.jpg -> its folder; another picture is of a person of its own."""
    path = PurePosixPath(name)
    return str(path.parent) if path.name.startswith(f"{path.parent.name}_") else name


def _read(
    files: PictureFiles, indices: Sequence[int], side: int, crop: int, progress: Callable[[int, int], None]
) -> Tensor:
    """[N,3,side,side], decoded by as many threads as there are processors."""
    out = torch.empty(len(indices), 3, side, side, dtype=torch.uint8)
    places = iter(enumerate(indices))

    def read(place: tuple[int, int]) -> None:
        out[place[0]] = framed(files[place[1]], side, crop)

    done = 0
    with ThreadPoolExecutor() as pool:
        while some := list(islice(places, _AT_ONCE)):  # so that an error does not wait for all the others
            list(pool.map(read, some))
            done += len(some)
            progress(done, len(indices))
    return out
