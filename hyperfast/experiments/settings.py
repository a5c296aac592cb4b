"""Checks of what a user sets in an experiment's config."""

from __future__ import annotations

from typing import Any


def check_at_least_one(config: Any, *names: str) -> None:
    """Raises ValueError where one of these fields of `config` is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"config.{name} must be at least 1; got {getattr(config, name)}")
