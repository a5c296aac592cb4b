"""The settings of diverse_networks/mnist; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

NAME = "diverse_networks/mnist"
# Steps taken so far do not depend on these: a checkpoint may be resumed with others.
MAY_DIFFER = ("steps", "validate_every", "validation_networks", "validation_images", "log_every", "checkpoint_every", "evaluation")  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """What is measured of the generated networks."""

    networks: int = 4_000
    """Networks generated: single accuracies of all, and ensembles of them."""
    ensemble_sizes: tuple[int, ...] = (2, 5, 10, 20, 50, 100, 200)
    """Networks in an ensemble."""
    repeats: int = 20
    """Disjoint ensembles of each size, at most; as many as there are networks for."""
    images: int | None = None
    """The first so many images of the validation and of the test set; None: all."""
    seed: int = 1
    """Of the networks' noise."""

    def __post_init__(self) -> None:
        for name in ("networks", "repeats"):
            _at_least(1, f"evaluation.{name}", getattr(self, name))
        for size in self.ensemble_sizes:
            _at_least(1, "evaluation.ensemble_sizes", size)
        if self.images is not None:
            _at_least(1, "evaluation.images", self.images)


@dataclass(frozen=True)
class Config:
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
    log_every: int = 10
    """Steps between rows of metrics.csv."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Of initial weights, noise and choice of images."""
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        for name in ("networks", "validation_networks"):
            _at_least(2, name, getattr(self, name))  # a nearest neighbour needs two
        for name in ("images", "held_out", "validate_every", "log_every", "checkpoint_every"):
            _at_least(1, name, getattr(self, name))
        for name in ("steps", "seed"):
            _at_least(0, name, getattr(self, name))
        if self.validation_images is not None:
            _at_least(1, "validation_images", self.validation_images)
        if self.entropy_distance not in ("euclidean", "l1"):
            raise ValueError(f"config.entropy_distance must be euclidean or l1; got {self.entropy_distance!r}")

    def learning_rate_at(self, step: int) -> float:
        return self.learning_rate * self.learning_rate_decay**step


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ValueError(f"config.{name} must be at least {least}; got {value}")


PRESETS = {
    "paper": Config(),
    "small": Config(
        networks=16,
        steps=1_200,
        validate_every=200,
        validation_networks=20,
        validation_images=500,
        checkpoint_every=100,
        evaluation=Evaluation(networks=100, ensemble_sizes=(2, 5, 10, 20, 50, 100), images=1_000),
    ),
}
