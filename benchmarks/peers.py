"""Libraries of others that are compared where they are installed: pip install "hyperfast[peers]"."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from .case import Implementation


def installed(libraries: Mapping[str, tuple[str, Implementation]]) -> tuple[dict[str, Implementation], list[str]]:
    """Of {name: (module to import, implementation)}: those that can be imported, and the names of the others."""
    peers = {name: run for name, (module, run) in libraries.items() if importlib.util.find_spec(module) is not None}
    return peers, [name for name in libraries if name not in peers]
