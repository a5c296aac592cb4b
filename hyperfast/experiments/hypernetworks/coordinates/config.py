"""The settings of hypernetworks/coordinates; networks as in the paper, which says nothing of the training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...settings import check_at_least
from ..classification import ClassifierConfig

NAME = "hypernetworks/coordinates"


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    """A network 784-256-10 for MNIST; a network of coordinates generates its first layer (appendix A.1)."""

    net: Literal["coordinates", "direct"] = "coordinates"
    """Whether the 784x256 weights are generated, by 801 parameters, or learned themselves."""
    width: int = 25
    """Units of each of the hypernetwork's two hidden layers."""
    images: Literal["mnist", "digits"] = "mnist"
    """MNIST, or scikit-learn's digits enlarged to its size."""
    mean: float = 0.1307
    """Subtracted from pixels in [0, 1]: MNIST's mean. Raw pixels add up, so that generated weights, which move together,
    soon silence every hidden unit."""
    padding: int = 0
    """Images that are trained on are padded by so many pixels on every side and cropped at random."""
    batch: int = 1_000
    """Images of a step."""
    steps: int = 5_500
    """Training steps: 100 epochs of 55."""
    learning_rate: float = 5e-3
    """Of Adam, at the first step."""
    learning_rate_decay: float = 0.9995
    """Factor of the learning rate at each step."""
    validate_every: int = 55
    """Steps between validations: an epoch."""
    checkpoint_every: int = 55

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, width=1)

    def learning_rate_at(self, step: int) -> float:
        return self.learning_rate * self.learning_rate_decay**step


_PAPER = Config()
# Shows in two minutes that all works.
_SMALL = replace(
    _PAPER, images="digits", held_out=200, batch=200, steps=800, validate_every=80, checkpoint_every=80,
)  # fmt: skip

PRESETS = {
    "paper": _PAPER,
    "direct": replace(_PAPER, net="direct"),
    "small": _SMALL,
    "small_direct": replace(_SMALL, net="direct"),
}
