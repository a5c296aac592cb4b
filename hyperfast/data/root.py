"""Where the data sets lie: `--data-root`, or the environment variable HYPERFAST_DATA."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "HYPERFAST_DATA"
HOW = f"name the folder of the data sets with --data-root DIR or the environment variable {VARIABLE}"


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the data sets: `root` where given, else $HYPERFAST_DATA.

    Raises FileNotFoundError where neither is set or the folder does not exist.
    """
    given = root if root is not None else os.environ.get(VARIABLE)
    if not given:
        raise FileNotFoundError(f"no folder of data sets is set; {HOW}")
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder of data sets, {folder}, does not exist or is no folder; {HOW}")
    return folder


def dataset_folder(name: str, files: Sequence[str], root: str | Path | None = None) -> Path:
    """The folder that has all of `files`: <root>/<name>, or the root itself.

    Raises FileNotFoundError that lists what is missing and where it was looked for.
    """
    folder = data_root(root)
    places = [folder / name, folder]
    for place in places:
        if all((place / file).is_file() for file in files):
            return place
    nearest = max(places, key=lambda place: sum((place / file).is_file() for file in files))
    missing = [file for file in files if not (nearest / file).is_file()]
    raise FileNotFoundError(
        f"{name}: {', '.join(missing)} not found in {nearest}. The files {', '.join(files)} were expected in "
        f"{places[0]} or in {places[1]}; put them there, or {HOW}"
    )


def named_set(name: str, root: str | Path | None = None, within: str = "") -> Path:
    """A folder or zip archive of that name, in any case, in the root, or before that in its folder `within`.

    Raises FileNotFoundError that says where it was looked for.
    """
    base = data_root(root)
    folders = [base / within, base] if within else [base]
    for folder in folders:
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.stem.lower() == name.lower() and (path.is_dir() or path.suffix.lower() == ".zip"):
                return path
    places = " or ".join(map(str, folders))
    raise FileNotFoundError(
        f"{name}: neither a folder {name}/ nor {name}.zip was found in {places}; put it there, or {HOW}"
    )
