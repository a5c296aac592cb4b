"""The settings of functional_images/shapes. The paper gives none of them but the task; see docs/functional_images.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...settings import LOOP_MAY_DIFFER, LoopConfig, check_at_least, check_positive

NAME = "functional_images/shapes"
MAY_DIFFER = (*LOOP_MAY_DIFFER, "validation_pictures")


@dataclass(frozen=True)
class Evaluation:
    """What is measured and drawn."""

    pictures: int | None = None
    """The first so many test pictures that are scored; None: all."""
    shapes: int = 12
    """Digits of the figure of shapes (figure 8)."""
    pairs: int = 5
    """Pairs of digits between which weights are interpolated (figure 9)."""
    between: int = 9
    """Networks of an interpolation, both ends among them."""
    points: int = 300
    """Points drawn of a shape."""
    outline: int = 2_000
    """Steps around the circle of an outline."""

    def __post_init__(self) -> None:
        check_at_least(self, "config.evaluation", pictures=1, shapes=1, pairs=0, between=2, points=1, outline=1)


@dataclass(frozen=True)
class Config(LoopConfig):
    """loss = mean over pictures of the cross-entropy between a picture's brightness and its generated points."""

    data: Literal["mnist", "embedded"] = "mnist"
    """MNIST, or scikit-learn's digits of 8 x 8 pixels."""
    points: int = 400
    """n: points of the circle in a step, the same for all pictures of it."""
    sigma: float = 0.03
    """Standard deviation of the Gaussian around each point; the picture's side is 1."""
    width: int = 12
    """Channels of the hypernetwork's trunk."""
    branch_width: int = 128
    """Channels of its branches."""
    batch: int = 32
    """Pictures of a step."""
    steps: int = 20_000
    """Training steps in all."""
    learning_rate: float = 2.5e-4
    """Of Adam, at the first step; to be divided by what branch_width is multiplied with."""
    learning_rate_decay: float = 0.9999
    """Factor of the learning rate at each step."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    held_out: int = 5_000
    """The last so many training pictures, held out for validation."""
    validate_every: int = 1_000
    """Steps between validations."""
    validation_pictures: int | None = 1_000
    """The first so many held-out pictures; None: all."""
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, batch=2)  # batch norm needs two
        check_at_least(self, points=1, steps=1, held_out=1, validation_pictures=1, validate_every=1)  # fmt: skip
        check_positive(self, "config", "sigma", "learning_rate", "clip")
        if self.data not in ("mnist", "embedded"):
            raise ValueError(f"config.data must be mnist or embedded; got {self.data!r}")

    def learning_rate_at(self, step: int) -> float:
        return self.learning_rate * self.learning_rate_decay**step


PRESETS = {
    "paper": Config(),
    # Of 8 pixels one has a side of 0.125: a wider Gaussian closes the gaps between them.
    "small": Config(
        data="embedded", points=150, sigma=0.05, width=8, branch_width=32, steps=1_200, learning_rate=2e-3,
        learning_rate_decay=0.998, held_out=200, validate_every=250, checkpoint_every=250,
    ),
}  # fmt: skip
