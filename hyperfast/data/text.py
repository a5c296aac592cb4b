"""Texts as sequences of symbols: Penn Treebank's characters, enwik8's bytes, and a text that every Python carries."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .root import data_root, dataset_folder

PTB_ZIP, PTB_FILES = "ptb.zip", ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")
ENWIK8_FILES = ("enwik8", "enwik8.gz", "enwik8.zip", "enwik8_first4154064.gz")
ENWIK8_FOLDERS = ("enwik8", "enwik8_prefix", ".")


@dataclass(frozen=True)
class Text:
    """Three parts of a text as numbers of symbols, [N] uint8 each; symbol i is the byte symbols[i]."""

    train: Tensor
    validation: Tensor
    test: Tensor
    symbols: bytes

    def decode(self, numbers: Tensor) -> str:
        """[n] numbers -> the text; bytes that are no UTF-8 become U+FFFD."""
        return bytes(self.symbols[i] for i in numbers.tolist()).decode("utf-8", "replace")


def load_text(name: str, root: str | Path | None = None) -> Text:
    """The text of that name: "ptb", "enwik8" or "embedded", which needs no root.

    Raises FileNotFoundError where the data set is missing, ValueError where a file is damaged or the name unknown.
    """
    if name not in _READERS:
        raise ValueError(f"there is no text {name!r}; known: {', '.join(_READERS)}")
    return _numbered(*_READERS[name](root))


def _numbered(*parts: bytes) -> Text:
    symbols = bytes(sorted(set(b"".join(parts))))
    table = np.zeros(256, np.uint8)
    table[np.frombuffer(symbols, np.uint8)] = np.arange(len(symbols))
    train, validation, test = (torch.from_numpy(table[np.frombuffer(part, np.uint8)]) for part in parts)
    return Text(train, validation, test, symbols)


def _ptb(root: str | Path | None) -> tuple[bytes, ...]:
    """Mikolov's text: lines without the spaces at their ends; from the three files, or a zip of them."""
    folder = data_root(root)
    for place in (folder / "ptb", folder):
        if (place / PTB_ZIP).is_file():
            return tuple(_stripped(part) for part in _from_zip(place / PTB_ZIP, PTB_FILES))
    folder = dataset_folder("ptb", PTB_FILES, root)
    return tuple(_stripped((folder / file).read_bytes()) for file in PTB_FILES)


def _stripped(text: bytes) -> bytes:
    return b"".join(line.strip() + b"\n" for line in text.splitlines())


def _enwik8(root: str | Path | None) -> tuple[bytes, ...]:
    """The first 90 %, the next 5 % and the last 5 % of the bytes: 90M, 5M, 5M of the whole file."""
    folder = data_root(root)
    for path in (folder / place / file for place in ENWIK8_FOLDERS for file in ENWIK8_FILES):
        if path.is_file():
            return _split(_bytes_of(path))
    raise FileNotFoundError(
        f"enwik8: none of {', '.join(ENWIK8_FILES)} was found in {folder} or its folders enwik8 and enwik8_prefix"
    )


def _bytes_of(path: Path) -> bytes:
    if path.suffix == ".zip":
        return _from_zip(path, ("enwik8",))[0]
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as problem:
        raise ValueError(f"{path} is not a readable gzip file: {problem}") from problem


def _from_zip(path: Path, names: tuple[str, ...]) -> tuple[bytes, ...]:
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.read(name) for name in names)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as problem:
        raise ValueError(f"{path}: a zip file with {', '.join(names)} was expected; {problem}") from problem


def _embedded(_: str | Path | None) -> tuple[bytes, ...]:
    """The topics of Python's interactive help: half a million characters of English about Python."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return _split(text.encode("ascii", "ignore"))


def _split(text: bytes) -> tuple[bytes, ...]:
    first, second = len(text) * 90 // 100, len(text) * 95 // 100
    return text[:first], text[first:second], text[second:]


_READERS: dict[str, Callable[[str | Path | None], tuple[bytes, ...]]] = {
    "ptb": _ptb,
    "enwik8": _enwik8,
    "embedded": _embedded,
}
