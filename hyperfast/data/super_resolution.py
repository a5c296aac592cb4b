"""Pictures for super-resolution: training sets, and the benchmarks' pairs of low and high resolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .bicubic import resize_bicubic
from .image_files import PictureFiles
from .root import named_set

_FOLDER = "super_resolution"


@dataclass(frozen=True)
class Pair:
    """One picture: low [C,h,w] and high [C,H,W], float32 in [0,1], covering the same extent. C is 1 or 3."""

    name: str
    low: Tensor
    high: Tensor


def find_set(name: str, root: str | Path | None = None) -> Path:
    """Where the set lies: a folder or zip archive of that name in any case, in the root or in its super_resolution/.

    Raises FileNotFoundError that says where it was looked for.
    """
    return named_set(name, root, _FOLDER)


def load_pairs(name: str, scale: float, root: str | Path | None = None) -> Iterator[Pair]:
    """The pairs of a benchmark: Set5, Set14, B100, Urban100, or any folder or archive of pictures.

    High resolution is in HR/ where there is such a folder, else in the set itself; low resolution of a whole scale in
    LR_x2/, LR_x3/, ... where there is one, else made of high by resize_bicubic and rounded to 8 bits. high is cut to
    the part that low covers: rows and columns from the top left.

    Raises what find_set and PictureFiles raise, and ValueError where a picture is smaller than the scale.
    """
    path = find_set(name, root)
    high = _part(path, "HR") or PictureFiles(path)
    given = _part(path, f"LR_x{scale:g}")
    places = {Path(file).stem: i for i, file in enumerate(given.names)} if given else {}
    for index, file in enumerate(high.names):
        stem, whole = Path(file).stem, high[index].pixels
        if given and stem in places:
            low = given[places[stem]].pixels
            low = low if len(low) == len(whole) else low[:1].expand(len(whole), -1, -1)  # grey, stored as RGB or not
            yield Pair(stem, low, _covered(whole, low.shape[1:], scale))
            continue
        rows, cols = (int(side / scale) for side in whole.shape[1:])
        if min(rows, cols) < 1:
            raise ValueError(f"{path}: {file} of {tuple(whole.shape[1:])} pixels is too small for a scale of {scale:g}")
        cut = _covered(whole, (rows, cols), scale)
        yield Pair(stem, (resize_bicubic(cut, (rows, cols)).clamp(0, 1) * 255).round() / 255, cut)


def _covered(high: Tensor, low: Sequence[int], scale: float) -> Tensor:
    """The part of `high`, from the top left, that low resolution of that size covers."""
    return high[:, : round(low[0] * scale), : round(low[1] * scale)]


def _part(path: Path, within: str) -> PictureFiles | None:
    try:
        return PictureFiles(path, within)
    except ValueError:
        return None
