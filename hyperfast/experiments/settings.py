"""Checks of what a user sets in an experiment's config."""

from __future__ import annotations

from typing import Any


def check_at_least(settings: Any, within: str = "config", /, **least: int) -> None:
    """Raises ValueError where a field of `settings`, or an element of a tuple, is below `least` of it; None passes."""
    for name, bound in least.items():
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and one < bound:
                raise ValueError(f"{within}.{name} must be at least {bound}; got {one}")
