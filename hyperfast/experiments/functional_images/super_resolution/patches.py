"""Patches of pictures at several scales, and high-resolution pixels in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ....data.bicubic import bicubic_at, mirrored, resize_bicubic
from ....data.image_files import PictureFiles
from ....data.missing import fill_missing
from ....data.super_resolution import Pair, find_set, load_pairs
from ... import ranks
from .config import Config

# Mirrored pixels around a low-resolution picture, which bicubic interpolation needs.
MARGIN = 2


@dataclass(frozen=True)
class Batch:
    """patches [B,C or C+1,S,S] with their context; points [B,N,2] in [-1,1]; scale [B]; base and colours [B,N,C]: bicubic
    and true. Where pixels may be missing, a mask is the patches' last channel, and base is of the filled patch."""

    patches: Tensor
    points: Tensor
    scale: Tensor
    base: Tensor
    colours: Tensor


def photographs() -> list[Tensor]:
    """scikit-learn's two photographs, [3,427,640] uint8 each."""
    from sklearn.datasets import load_sample_images

    return [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]


def read_training(config: Config, data_root: Path | None) -> list[Tensor]:
    """All training pictures, [3,H,W] uint8; grey ones as RGB."""
    pictures: list[Tensor] = []
    for name in config.train:
        if name == "embedded":
            pictures += photographs()[:1]
        else:
            pictures += [_bytes(picture.pixels) for picture in PictureFiles(find_set(name, data_root))]
    return pictures


def read_pairs(name: str, scale: float, data_root: Path | None, count: int | None) -> list[Pair]:
    """The first `count` pairs of a set, RGB."""
    if name == "embedded":
        return [pair_of("flower", photographs()[1], scale)]
    pairs: list[Pair] = []
    for pair in load_pairs(name, scale, data_root):
        if count is not None and len(pairs) == count:
            break
        pairs.append(Pair(pair.name, *(p.expand(3, -1, -1) for p in (pair.low, pair.high))))
    return pairs


def pair_of(name: str, picture: Tensor, scale: float) -> Pair:
    """A picture [3,H,W] uint8, cut to whole low-resolution pixels, and its bicubic low resolution in 8 bits."""
    rows, cols = (int(side / scale) for side in picture.shape[1:])
    high = picture[:, : round(rows * scale), : round(cols * scale)].float() / 255
    return Pair(name, (resize_bicubic(high, (rows, cols)).clamp(0, 1) * 255).round() / 255, high)


def known_at_random(size: Sequence[int], missing: float) -> Tensor:
    """[1,h,w], 0 in that share of the pixels of a picture; the same ones for every picture of the size."""
    return (torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) >= missing).float()


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels * 255).round().to(torch.uint8).expand(3, -1, -1)


class Patches:
    """Draws batches: a picture by its area, a scale, a place, then pixels, and one of eight symmetries.

    pictures: [3,H,W] uint8. Raises ValueError where none has a patch at some scale.
    """

    def __init__(self, config: Config, pictures: Sequence[Tensor]) -> None:
        self.config = config
        self.high = list(pictures)
        self._seen = config.patch + 2 * config.context
        # low[s][k]: with its margin, uint8; None where a patch does not fit.
        self.low: list[list[Tensor | None]] = []
        for scale in config.scales:
            self.low.append([self._low(picture, scale) for picture in self.high])
            if all(low is None for low in self.low[-1]):
                raise ValueError(f"no picture has a patch of {self._seen} pixels at a scale of {scale}")
        self.weights = [
            torch.tensor([0.0 if low is None else low[0].numel() for low in every], dtype=torch.float64)
            for every in self.low
        ]  # fmt: skip

    def _low(self, picture: Tensor, scale: int) -> Tensor | None:
        if min(picture.shape[1:]) < self._seen * scale:
            return None
        low = _bytes(pair_of("", picture, scale).low)
        rows, cols = (mirrored(side, MARGIN, low.device) for side in low.shape[1:])
        return low[:, rows][:, :, cols]

    def draw(self, draws: torch.Generator) -> Batch:
        """This rank's of config.batch patches, with config.points pixels each, on the CPU."""
        items = ranks.own([self._item(draws) for _ in range(self.config.batch)])
        patches, masks, places, points, scale, colours = (list(part) for part in zip(*items, strict=True))
        seen = whole = torch.stack(patches).float() / 255
        if self.config.missing:
            known = torch.stack(masks)
            seen, whole = torch.cat([whole * known, known], 1), fill_missing(whole, known)
        base = bicubic_at(whole, torch.stack(places) + (MARGIN + self.config.context))
        turned, moved = _symmetry(seen[..., MARGIN:-MARGIN, MARGIN:-MARGIN], torch.stack(points), draws)
        return Batch(turned, moved, torch.tensor(scale), base, torch.stack(colours).float() / 255)

    def _item(self, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, float, Tensor]:
        """Low patch with context and margin, which of it is known, places in the patch [N,2] in pixels, (u, v) [N,2],
        scale, colours [N,3].
        """
        size, context, which = self.config.patch, self.config.context, _below(len(self.config.scales), draws)
        scale = self.config.scales[which]
        k = int(torch.multinomial(self.weights[which], 1, generator=draws))
        low, high = self.low[which][k], self.high[k]
        assert low is not None
        y, x = (_below(side - 2 * MARGIN - self._seen + 1, draws) for side in low.shape[1:])
        patch = low[:, y : y + self._seen + 2 * MARGIN, x : x + self._seen + 2 * MARGIN]
        known = self._known(draws)
        pixels = torch.randint(size * scale, (self.config.points, 2), generator=draws)
        if scale == 1:  # nothing is to be learnt of known pixels
            edge = MARGIN + context
            missing = (known[0, edge : edge + size, edge : edge + size] == 0).nonzero()
            if len(missing):
                pixels = missing[torch.randint(len(missing), (self.config.points,), generator=draws)]
        colours = high[:, pixels[:, 0] + (y + context) * scale, pixels[:, 1] + (x + context) * scale].T
        places = (pixels + 0.5) / scale
        return patch, known, places, 2 * places / size - 1, float(scale), colours

    def _known(self, draws: torch.Generator) -> Tensor:
        """Of a patch with context and margin: 0 in a random share of the pixels or, half of the time, in a square that
        reaches into the patch and whose side is that share of it all.
        """
        size, edge = self._seen + 2 * MARGIN, MARGIN + self.config.context
        known = torch.ones(1, size, size)
        if not self.config.missing:
            return known
        share = self.config.missing * torch.rand((), generator=draws)
        if torch.rand((), generator=draws) < 0.5:
            side = int(size * share)
            first, last = max(0, edge - side + 1), min(size - side, edge + self.config.patch - 1)
            y, x = (first + _below(last - first + 1, draws) for _ in range(2))
            known[:, y : y + side, x : x + side] = 0
        else:
            known[torch.rand(1, size, size, generator=draws) < share] = 0
        return known


def _below(count: int, draws: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=draws))


def _symmetry(patches: Tensor, points: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """One symmetry of the square for the whole batch."""
    flip_rows, flip_cols, swap = (_below(2, draws) for _ in range(3))
    if flip_rows:
        patches, points = patches.flip(2), points * points.new_tensor([-1, 1])
    if flip_cols:
        patches, points = patches.flip(3), points * points.new_tensor([1, -1])
    if swap:
        patches, points = patches.transpose(2, 3), points.flip(2)
    return patches, points
