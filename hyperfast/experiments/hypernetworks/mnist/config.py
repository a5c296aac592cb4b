"""The settings of hypernetworks/mnist; the defaults are the paper's, and where it is silent those of the author's code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ...settings import check_at_least
from ..classification import ClassifierConfig

NAME = "hypernetworks/mnist"


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    """A small convolutional network for MNIST whose second kernel is generated (section 4.1, appendix A.3.1)."""

    net: Literal["hyper", "plain"] = "hyper"
    """Whether the second kernel is generated or learned itself: 12,910 or 21,210 parameters."""
    embedding: int = 4
    """N_z, elements of the second layer's embedding."""
    hidden: int = 4
    """d, elements of the hypernetwork's hidden layer."""
    images: Literal["mnist", "digits"] = "mnist"
    """MNIST, or scikit-learn's digits enlarged to its size."""
    padding: int = 1
    """Images that are trained on are padded by so many pixels on every side and cropped at random."""
    batch: int = 1_000
    """Images of a step."""
    steps: int = 2_750
    """Training steps: 50 epochs of 55."""
    learning_rate: float = 5e-3
    """Of Adam, at the first step; the author's code. The paper's text has 1e-3, without saying that it falls."""
    learning_rate_decay: float = 0.999
    """Factor of the learning rate at each step."""
    learning_rate_floor: float = 1e-4
    """The learning rate falls to this and no further."""
    validate_every: int = 55
    """Steps between validations: an epoch."""
    checkpoint_every: int = 55

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, embedding=1, hidden=1)

    def learning_rate_at(self, step: int) -> float:
        return max(self.learning_rate * self.learning_rate_decay**step, self.learning_rate_floor)


_PAPER = Config()
# Shows in a minute that all works.
_SMALL = replace(
    _PAPER, images="digits", held_out=200, batch=100, steps=1_000, validate_every=100, checkpoint_every=100,
)  # fmt: skip

PRESETS = {
    "paper": _PAPER,
    "plain": replace(_PAPER, net="plain"),
    "small": _SMALL,
    "small_plain": replace(_SMALL, net="plain"),
}
