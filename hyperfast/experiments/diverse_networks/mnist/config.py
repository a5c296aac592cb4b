"""The settings of diverse_networks/mnist; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...settings import LOOP_MAY_DIFFER, LoopConfig, check_at_least
from ..analysis.config import SMALL, Evaluation

NAME = "diverse_networks/mnist"
MAY_DIFFER = (*LOOP_MAY_DIFFER, "validation_networks", "validation_images")


@dataclass(frozen=True)
class Config(LoopConfig):
    """loss = accuracy_weight * CE - H: equations 1 to 4 and 13 of the paper."""

    accuracy_weight: float = 1e3
    """lambda; the paper also trains with 1e5."""
    networks: int = 32
    """Networks generated in a step."""
    images: int = 32
    """Images of each network in a step; other images for each."""
    steps: int = 13_000
    """Training steps in all."""
    learning_rate: float = 3e-4
    """Of Adam, at the first step."""
    learning_rate_decay: float = 0.99998
    """Factor of the learning rate at each step."""
    entropy_dim: float = 300
    """d of the entropy estimate: the dimension of the noise, on whose image the weights lie."""
    entropy_distance: Literal["euclidean", "l1"] = "euclidean"
    """Distance between weight vectors: the paper's text says Euclidean, its code sums absolute differences."""
    entropy_epsilon: float = 1e-8
    """Added to the distance before the logarithm."""
    held_out: int = 5_000
    """The last so many training images, held out for validation."""
    validate_every: int = 1_000
    """Steps between validations."""
    validation_networks: int = 200
    """Networks generated in a validation, always of the same noise."""
    validation_images: int | None = None
    """The first so many held-out images; None: all."""
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, networks=2, validation_networks=2)  # a nearest neighbour needs two
        check_at_least(
            self, images=1, held_out=1, validation_images=1, validate_every=1, steps=0,
        )  # fmt: skip
        if self.entropy_distance not in ("euclidean", "l1"):
            raise ValueError(f"config.entropy_distance must be euclidean or l1; got {self.entropy_distance!r}")

    def learning_rate_at(self, step: int) -> float:
        return self.learning_rate * self.learning_rate_decay**step


PRESETS = {
    "paper": Config(),
    "small": Config(
        networks=16,
        steps=1_200,
        validate_every=200,
        validation_networks=20,
        validation_images=500,
        checkpoint_every=100,
        evaluation=SMALL,
    ),
}
