"""Pictures from files, from folders and from zip archives; and written again in the form in which they came."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError)


@dataclass(frozen=True)
class Picture:
    """pixels [1,H,W] (grey) or [3,H,W] (RGB), float32 in [0,1]; alpha [1,H,W] where there is one; bits of a value."""

    pixels: Tensor
    alpha: Tensor | None = None
    bits: int = 8


def read_picture(source: Path | bytes, name: str | None = None) -> Picture:
    """A file, or its bytes, that Pillow reads: 1-bit, grey, palette, RGB or CMYK with 8 bits, grey with 16 bits.

    Turned upright as its Exif data say. Pillow reads 16-bit RGB with 8 bits. Raises ValueError, with the file's name,
    where it is damaged or no picture of these kinds, OSError where it cannot be opened.
    """
    from PIL import Image, ImageOps

    name = name or str(source)
    content = source.read_bytes() if isinstance(source, Path) else source
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as problem:
        raise ValueError(f"{name} cannot be read as a picture: {problem}") from problem
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"{name} has grey values from {deep.min()} to {deep.max()}; 0 to 65535 were expected")
        return Picture(torch.from_numpy((deep / 65535).astype(np.float32)).unsqueeze(0), bits=16)
    if image.mode == "F":
        raise ValueError(f"{name} has floating-point values, whose range is unknown; 8 or 16 bits were expected")
    grey = image.mode in ("1", "L", "LA")
    transparent = image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info
    mode = ("L" if grey else "RGB") + ("A" if transparent else "")
    values = np.array(image.convert(mode)).astype(np.float32) / 255
    pixels = torch.from_numpy(values.reshape(*values.shape[:2], -1)).permute(2, 0, 1).contiguous()
    return Picture(pixels[:-1], pixels[-1:]) if transparent else Picture(pixels)


def write_picture(path: Path, picture: Picture) -> None:
    """As 8 or 16 bits, grey or RGB, with alpha where there is one; values are clipped to [0,1] and rounded.

    Raises ValueError where the name's suffix is no format that keeps what the picture has (JPEG has no alpha and no
    16 bits).
    """
    from PIL import Image

    if picture.bits == 16:
        values = (picture.pixels[0].double().clamp(0, 1) * 65535).round().numpy().astype(np.uint16)
        image = Image.fromarray(values)
    else:
        parts = picture.pixels if picture.alpha is None else torch.cat([picture.pixels, picture.alpha])
        values = (parts.double().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        image.save(path)
    except (OSError, ValueError, KeyError) as problem:
        raise ValueError(f"{path} cannot hold a picture of mode {image.mode}: {problem}; .png can") from problem


class PictureFiles(Sequence[Picture]):
    """The pictures of a folder with its subfolders, of a zip archive, or of a folder in one; in the order of their names.

    names: without the folder; a picture is read when it is asked for. Raises ValueError where there is none, or the
    archive is damaged; FileNotFoundError where the path does not exist.
    """

    def __init__(self, path: str | Path, within: str = "") -> None:
        self.path, prefix = Path(path), within.rstrip("/") + "/" if within else ""
        self._archive: zipfile.ZipFile | None = None
        if self.path.is_dir():
            folder = self.path / within
            found = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
        elif self.path.exists():
            try:
                self._archive = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile as problem:
                raise ValueError(f"{self.path} is neither a folder nor a zip archive: {problem}") from problem
            found = [entry[len(prefix) :] for entry in self._archive.namelist() if entry.startswith(prefix)]
        else:
            raise FileNotFoundError(f"{self.path} does not exist; a folder or a zip archive of pictures was expected")
        self._prefix = prefix
        self.names = sorted(n for n in found if n.lower().endswith(SUFFIXES) and not Path(n).name.startswith("."))
        if not self.names:
            raise ValueError(f"{self.path}{' ' + within if within else ''} has no pictures ({', '.join(SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name = self.names[index]
        if self._archive is None:
            return read_picture(self.path / self._prefix / name)
        try:
            content = self._archive.read(self._prefix + name)
        except (*_DAMAGED, NotImplementedError, RuntimeError) as problem:  # the last two: how it is packed, a password
            raise ValueError(f"{self.path}: {name} cannot be read: {problem}") from problem
        return read_picture(content, f"{self.path}: {name}")
