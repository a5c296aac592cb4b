"""The settings of functional_images/faces; what the paper leaves out is in docs/functional_images.md."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ...settings import LOOP_MAY_DIFFER, LoopConfig, check_at_least, check_positive

NAME = "functional_images/faces"
MAY_DIFFER = (*LOOP_MAY_DIFFER, "validation_pictures")


@dataclass(frozen=True)
class Evaluation:
    """What is measured and drawn, of the test pictures."""

    pictures: int | None = None
    """The first so many that are reconstructed; None: all."""
    shown: int = 6
    """Pictures of the figure of reconstructions."""
    enlarged: int = 4
    """Pixels for one along each axis, there."""
    pairs: int = 100
    """Pairs of pictures between which paths are measured; fewer where there are not so many pictures."""
    between: int = 9
    """Pictures of a path, both ends among them."""
    drawn: int = 5
    """Paths that are drawn, the first ones."""

    def __post_init__(self) -> None:
        check_at_least(self, "config.evaluation", pictures=1, shown=1, enlarged=1, pairs=1, between=3, drawn=1)


@dataclass(frozen=True)
class Config(LoopConfig):
    """loss = mean squared error of a picture's colours at its pixels."""

    data: str = "celeba"
    """A folder or zip archive of faces in the data root; "embedded": drawn ones."""
    side: int = 64
    """Of the pictures, in pixels."""
    crop: int = 128
    """Side of the central square that is cut out of a file's picture and resized."""
    pictures: int | None = None
    """Training pictures, the first ones; None: all."""
    held_out: int = 2_000
    """Pictures of validation, and of test."""
    points: int | None = None
    """Pixels drawn of each picture in a step; None: all of them."""
    mirrored: bool = False
    """Whether half of the pictures of a step are mirrored, left to right."""
    norm: Literal["none", "per_target", "shared"] = "per_target"
    """Normalisation behind the target's hidden layers."""
    width: int = 12
    """Channels of the hypernetwork's trunk."""
    branch_width: int = 128
    """Channels of its branches."""
    batch: int = 32
    """Pictures of a step."""
    steps: int = 100_000
    """Training steps in all; the paper does not say how many."""
    learning_rate: float = 1e-3
    """Of Adam, at the first step."""
    final_learning_rate: float = 1e-5
    """At the last one; between them half a cosine."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    validate_every: int = 2_000
    """Steps between validations."""
    validation_pictures: int | None = None
    """The first so many of the validation pictures; None: all."""
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, batch=2)  # batch norm needs two
        check_at_least(
            self, side=1, crop=1, pictures=2, held_out=2, points=1, steps=1, validate_every=1, validation_pictures=1,
        )  # fmt: skip
        check_positive(self, "config", "learning_rate", "clip")


_PAPER = Config()

PRESETS = {
    "paper": _PAPER,
    # 2,000 faces of Labeled Faces in the Wild stand in for CelebA's 202,599.
    "lfw": replace(
        _PAPER, data="lfw_subset2000", held_out=200, points=512, mirrored=True, branch_width=64, batch=16, steps=5_000,
        learning_rate=3e-3, validate_every=500,
    ),
    # Shows in two minutes that all works, on drawn faces.
    "small": replace(
        _PAPER, data="embedded", side=32, held_out=100, points=256, width=8, branch_width=32, batch=16, steps=800,
        learning_rate=3e-3, validate_every=200, checkpoint_every=200, evaluation=Evaluation(pairs=50),
    ),
}  # fmt: skip
