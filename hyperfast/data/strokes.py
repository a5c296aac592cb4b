"""Pen strokes of handwritten lines: IAM-OnDB, from its XML files or one .npz, and digits whose outlines need no download."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from .digits import load_digits
from .root import HOW, data_root

IAM_FOLDERS = ("iam_ondb", "iam_ondb_strokes", ".")
IAM_NPZ, IAM_XML = "iam_ondb_lines.npz", "lineStrokes"
# The database's own parts, as its lists of forms are called; part i is number i in the .npz.
IAM_PARTS = ("trainset", "testset_v", "testset_t", "testset_f")
# Parts that are (training, validation, test). "graves": those of Graves (2013), who trains on all but testset_v.
IAM_SPLITS = {"graves": ((0, 2, 3), (1,), ()), "official": ((0,), (1, 2), (3,))}
_DIGITS_A_LINE = 12
# What NumPy raises for a file that is no .npz, is cut short, or has other arrays; the last two for one array alone.
_UNREADABLE = (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError, zlib.error, TypeError, AttributeError)


@dataclass(frozen=True)
class Handwriting:
    """Lines of three parts. A line is [T,3] float32, one row a point of the pen: dx, dy, pen_up.

    dx, dy: from the point before, 0 for the first; in the data's units, x to the right and y down. pen_up: 1 where
    the pen is lifted after the point, else 0.
    """

    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]
    test: tuple[Tensor, ...]


def load_handwriting(name: str, root: str | Path | None = None, split: str = "graves") -> Handwriting:
    """The lines of that name: "iam_ondb", in tablet units, or "embedded", which needs no root and has one split.

    iam_ondb is looked for in the folders iam_ondb and iam_ondb_strokes of the root and in the root itself: the file
    iam_ondb_lines.npz (arrays dx, dy, pen_up [R], lengths, split [N]: the lines one behind the other, and each one's
    part or -1), or the database's folder lineStrokes with its XML files, one a line, beside the lists of forms
    trainset.txt, testset_v.txt, testset_t.txt and testset_f.txt. Lines that are in no list are left out.

    Raises FileNotFoundError where the data set or a list is missing; ValueError where a file is damaged, or where name
    or split is unknown. Both name the file and what was expected.
    """
    if name not in _READERS:
        raise ValueError(f"there is no handwriting {name!r}; known: {', '.join(_READERS)}")
    if split not in IAM_SPLITS:
        raise ValueError(f"there is no split {split!r}; known: {', '.join(IAM_SPLITS)}")
    return _READERS[name](root, split)


def read_stroke_xml(path: Path) -> Tensor:
    """[T,3], the line of one of IAM-OnDB's XML files: a StrokeSet of Strokes of Points with x and y.

    Raises ValueError that names the file where it is cut short, no XML, or has no such points.
    """
    expected = "an IAM-OnDB file was expected: a StrokeSet of Strokes of Points with numbers x and y"
    try:
        strokes = [list(stroke.iter("Point")) for stroke in ElementTree.parse(path).iterfind("StrokeSet/Stroke")]
        points = np.array([[float(p.attrib["x"]), float(p.attrib["y"])] for stroke in strokes for p in stroke])
    except (ElementTree.ParseError, LookupError, ValueError) as problem:
        raise ValueError(f"{path}: {expected}; {type(problem).__name__}: {problem}") from problem
    if not len(points) or not np.isfinite(points).all():
        raise ValueError(f"{path}: {expected}; {'it has none' if not len(points) else 'some are not finite'}")
    return _line(points, [len(stroke) for stroke in strokes])


def strokes_of(line: Tensor) -> list[np.ndarray]:
    """The positions [n,2] float64 of each stroke of a line [T,3], x and y from where the pen begins."""
    values = line.double().cpu().numpy()
    return np.split(values[:, :2].cumsum(0), np.flatnonzero(values[:-1, 2]) + 1)


def _line(points: np.ndarray, stroke_lengths: Sequence[int]) -> Tensor:
    """[T,3] of positions [T,2] in strokes of so many points."""
    line = np.zeros((len(points), 3), np.float32)
    line[1:, :2] = np.diff(points, axis=0)
    line[np.cumsum(stroke_lengths) - 1, 2] = 1
    return torch.from_numpy(line)


def _iam(root: str | Path | None, split: str) -> Handwriting:
    top = data_root(root)
    for folder in (top / name for name in IAM_FOLDERS):
        if (folder / IAM_NPZ).is_file():
            return _divided(*_from_npz(folder / IAM_NPZ), split, folder / IAM_NPZ)
        if (folder / IAM_XML).is_dir():
            return _divided(*_from_xml(folder), split, folder / IAM_XML)
    raise FileNotFoundError(
        f"iam_ondb: neither {IAM_NPZ} nor the folder {IAM_XML} was found in {top} or its folders "
        f"{' and '.join(IAM_FOLDERS[:-1])}; put one there, or {HOW}"
    )


def _divided(lines: Sequence[Tensor], part_of: np.ndarray, split: str, path: Path) -> Handwriting:
    """The lines by the split's parts; ValueError where there is none to train on or to validate with."""
    parts = [
        tuple(line for line, part in zip(lines, part_of, strict=True) if part in wanted) for wanted in IAM_SPLITS[split]
    ]
    if not parts[0] or not parts[1]:
        raise ValueError(
            f"{path}: lines of {IAM_PARTS[0]} and {IAM_PARTS[1]} were expected; of its {len(lines)} lines, "
            f"{len(parts[0])} are for training and {len(parts[1])} for validation"
        )
    return Handwriting(*parts)


def _from_npz(path: Path) -> tuple[Sequence[Tensor], np.ndarray]:
    """(lines, part of each)."""
    names = ("dx", "dy", "pen_up", "lengths", "split")
    try:
        with np.load(path, allow_pickle=False) as archive:
            dx, dy, pen_up = (archive[name].astype(np.float32) for name in names[:3])
            lengths, part_of = (archive[name].astype(np.int64) for name in names[3:])
    except _UNREADABLE as problem:
        raise ValueError(
            f"{path}: an .npz file with the arrays {', '.join(names)} was expected; {problem}"
        ) from problem
    points, count = dx.shape, lengths.shape
    if len(points) != 1 or dy.shape != points or pen_up.shape != points or len(count) != 1 or part_of.shape != count:
        shapes = ", ".join(f"{n} {a.shape}" for n, a in zip(names, (dx, dy, pen_up, lengths, part_of), strict=True))
        raise ValueError(f"{path}: dx, dy and pen_up of one length, lengths and split of one length; got {shapes}")
    if (lengths < 1).any() or lengths.sum() != points[0]:
        raise ValueError(
            f"{path}: lengths, all positive, that add up to its {points[0]} points were expected; "
            f"the smallest is {lengths.min(initial=0)} and their sum {lengths.sum()}"
        )
    rows = torch.from_numpy(np.stack([dx, dy, pen_up], axis=1))
    if not rows.isfinite().all() or not ((rows[:, 2] == 0) | (rows[:, 2] == 1)).all():
        raise ValueError(f"{path}: finite dx and dy, and pen_up of 0 or 1, were expected; it has others")
    return rows.split(lengths.tolist()), part_of


def _from_xml(folder: Path) -> tuple[Sequence[Tensor], np.ndarray]:
    """(lines, part of each) of the lines that are in a list."""
    lists = [folder / f"{part}.txt" for part in IAM_PARTS]
    missing = [path.name for path in lists if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{', '.join(missing)} not found in {folder}: the database's lists of forms were expected beside {IAM_XML}"
        )
    part_of_form = {form: part for part, path in enumerate(lists) for form in path.read_text("latin-1").split()}
    # Line 01 of the form a01-000u is the file a01-000u-01.xml.
    paths = sorted((folder / IAM_XML).rglob("*.xml"), key=lambda path: path.stem)
    listed = [(path, part_of_form[form]) for path in paths if (form := path.stem.rpartition("-")[0]) in part_of_form]
    return [read_stroke_xml(path) for path, _ in listed], np.array([part for _, part in listed], int)


def _embedded(_: str | Path | None, split: str) -> Handwriting:
    """Outlines of scikit-learn's digits at half their brightness, a dozen side by side in a line, in pixels of theirs.

    1,200 digits to train on, 300 to validate and 297 to test with: no digit is in two parts.
    """
    digits = load_digits()
    parts = (digits.train_images, digits.test_images[:300], digits.test_images[-297:])
    return Handwriting(*(tuple(_line_of_digits(group) for group in images.split(_DIGITS_A_LINE)) for images in parts))


def _line_of_digits(images: Tensor) -> Tensor:
    """[T,3] of images [n,64]; an outline is a stroke, the digits are 8 pixels apart."""
    from contourpy import contour_generator

    strokes = []
    for place, image in enumerate(images.view(-1, 8, 8).numpy()):
        framed = np.pad(image, 1)  # with it every outline is closed
        strokes += [outline + np.array([8 * place, 0]) for outline in contour_generator(z=framed).lines(0.5)]
    return _line(np.concatenate(strokes), [len(stroke) for stroke in strokes])


_READERS: dict[str, Callable[[str | Path | None, str], Handwriting]] = {"iam_ondb": _iam, "embedded": _embedded}
