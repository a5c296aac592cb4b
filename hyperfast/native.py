"""Finds and loads the native library: one shared library of C++ kernels, without Python in it."""

from __future__ import annotations

from pathlib import Path

import torch

LIBRARY = "_native.so"


def _load() -> str | None:
    import hyperfast

    # In an editable install the library does not lie beside this file but elsewhere on the package's path.
    tried = [Path(folder) / LIBRARY for folder in hyperfast.__path__]
    for path in tried:
        if path.is_file():
            try:
                torch.ops.load_library(str(path))
            except OSError as error:
                return f"{path} could not be loaded: {error}"
            return None
    return "no native library was found (looked for " + ", ".join(map(str, tried)) + ")"


# None, or why there are no native kernels. Read once: a traced function can read a constant.
WHY_NOT_LOADED = _load()


def isas() -> list[str]:
    """The CPU instruction sets that were compiled and that this machine has, worst first."""
    return torch.ops.hyperfast.cpu_isas().split() if WHY_NOT_LOADED is None else []


def current_isa() -> str | None:
    """The CPU instruction set that the kernels run on."""
    return torch.ops.hyperfast.cpu_isa("") if WHY_NOT_LOADED is None else None


def force_isa(name: str) -> None:
    """Runs the CPU kernels on one of isas(), or with "auto" on the best."""
    if WHY_NOT_LOADED is not None:
        raise RuntimeError(WHY_NOT_LOADED)
    torch.ops.hyperfast.cpu_isa(name)
