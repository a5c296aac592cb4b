"""The settings of diverse_networks/mnfg; the defaults are those of the paper's comparison."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...settings import LOOP_MAY_DIFFER, LoopConfig, check_at_least, check_positive
from ..analysis.config import SMALL, Evaluation

NAME = "diverse_networks/mnfg"
MAY_DIFFER = (*LOOP_MAY_DIFFER, "epochs", "validation_networks", "validation_images")


@dataclass(frozen=True)
class Config(LoopConfig):
    """loss = CE + KL/n for n training images: the negative variational bound, per image."""

    images: int = 100
    """Images in a step."""
    networks: int = 10
    """Networks drawn in a step, which share its images out among themselves."""
    epochs: int = 100
    """Training steps in all, in passes over the training images."""
    learning_rate: float = 1e-3
    """Of Adam."""
    q_hidden: int = 50
    """Hidden units of the posterior's flows."""
    r_hidden: int = 100
    """Hidden units of the auxiliary distribution's flows."""
    q_steps: int = 2
    """Steps of each of the posterior's flows."""
    r_steps: int = 2
    """Steps of each of the auxiliary distribution's flows."""
    largest_deviation: float = 0.5
    """Bound of the standard deviation of a weight, given z."""
    held_out: int = 5_000
    """The last so many training images, held out for validation."""
    validate_every: int = 5_500
    """Steps between validations."""
    validation_networks: int = 20
    """Networks drawn in a validation, always of the same noise."""
    validation_images: int | None = None
    """The first so many held-out images; None: all."""
    log_every: int = 50
    checkpoint_every: int = 550
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, validation_networks=2)  # a nearest neighbour needs two
        check_at_least(
            self, images=1, networks=1, held_out=1, validation_images=1, validate_every=1,
            q_hidden=1, r_hidden=1, epochs=0, q_steps=0, r_steps=0,
        )  # fmt: skip
        if self.images % self.networks:
            raise ValueError(f"config.images must be a multiple of networks, {self.networks}; got {self.images}")
        check_positive(self, "config", "largest_deviation")

    def steps(self, images: int) -> int:
        """In all, for that many training images."""
        return self.epochs * max(1, images // self.images)


PRESETS = {
    "paper": Config(),
    "small": Config(
        epochs=3, validate_every=275, validation_images=500, log_every=10, checkpoint_every=275, evaluation=SMALL
    ),
}
