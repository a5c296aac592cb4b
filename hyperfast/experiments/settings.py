"""What the experiments' configs share: the settings of the training loop, and checks of what a user sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Fields on which the steps taken so far do not depend: a checkpoint may be resumed with others.
LOOP_MAY_DIFFER = ("steps", "validate_every", "log_every", "checkpoint_every", "evaluation")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """What loop.run needs of a config; an experiment's config derives from it and gives numbers of its own."""

    log_every: int = 10
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Of initial weights and of every draw in training."""

    def __post_init__(self) -> None:
        check_at_least(self, log_every=1, checkpoint_every=1, seed=0)


def check_at_least(settings: Any, within: str = "config", /, **least: int) -> None:
    """Raises ValueError where a field of `settings`, or an element of a tuple, is below `least` of it; None passes."""
    for name, bound in least.items():
        value = getattr(settings, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None and one < bound:
                raise ValueError(f"{within}.{name} must be at least {bound}; got {one}")


def check_positive(settings: Any, within: str, /, *names: str) -> None:
    """Raises ValueError where a field of `settings` is not above zero."""
    for name in names:
        if not getattr(settings, name) > 0:
            raise ValueError(f"{within}.{name} must be positive; got {getattr(settings, name)}")
