"""The settings of functional_images/super_resolution; what the paper leaves out is in docs/functional_images.md."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ...settings import LOOP_MAY_DIFFER, LoopConfig, check_at_least

NAME = "functional_images/super_resolution"
MAY_DIFFER = (*LOOP_MAY_DIFFER, "validation_pictures")


@dataclass(frozen=True)
class Evaluation:
    """What is measured and drawn."""

    sets: tuple[str, ...] = ("Set5", "Set14", "B100")
    """Folders or archives of pictures in the data root; "embedded": one of scikit-learn's photographs."""
    scales: tuple[float, ...] = (2, 3, 4, 2.5)
    """Of the tables; one that was not trained may be among them."""
    pictures: int | None = None
    """The first so many pictures of each set; None: all."""
    drawn: int = 3
    """Pictures of the first set that are drawn at the largest scale."""
    stretch: tuple[float, float] = (2.5, 1.0)
    """Scales of rows and columns of the stretched picture."""
    missing: float = 0.3
    """Share of the pixels that are missing at random in pictures that are filled, where the model was trained for it."""
    square: int = 6
    """Side of the squares that are missing in them, the other time."""

    def __post_init__(self) -> None:
        check_at_least(self, "config.evaluation", pictures=1, drawn=1, square=1)
        if not 0 < self.missing < 1:
            raise ValueError(f"config.evaluation.missing must lie between 0 and 1; got {self.missing}")
        if min(*self.scales, *self.stretch) <= 0:
            raise ValueError(
                f"config.evaluation.scales and stretch must be positive; got {self.scales}, {self.stretch}"
            )


@dataclass(frozen=True)
class Config(LoopConfig):
    """loss = mean squared error of colours at random pixels of patches, scales mixed in every step."""

    train: tuple[str, ...] = ("DIV2K_train_HR",)
    """Folders or archives of high-resolution pictures in the data root; "embedded": a photograph of scikit-learn's."""
    scales: tuple[int, ...] = (2, 3, 4)
    """Trained scales, one drawn for each patch."""
    predicts: Literal["picture", "residual"] = "picture"
    """What the generated network gives: the colour, as in the paper, or what is to be added to the bicubic picture."""
    norm: Literal["none", "per_target", "shared"] = "per_target"
    """Normalisation behind the target's hidden layers."""
    patch: int = 16
    """Side of a patch, in low-resolution pixels."""
    context: int = 0
    """Low-resolution pixels around a patch, on each side, that the hypernetwork sees, too."""
    points: int = 256
    """High-resolution pixels drawn of each patch."""
    missing: float = 0.0
    """Largest share of a patch whose pixels are missing; above 0 the model learns to fill them."""
    width: int = 12
    """Channels of the hypernetwork's trunk."""
    branch_width: int = 128
    """Channels of its branches."""
    batch: int = 32
    """Patches of a step."""
    steps: int = 100_000
    """Training steps in all; the paper does not say how many."""
    learning_rate: float = 1e-3
    """Of Adam, at the first step."""
    final_learning_rate: float = 1e-5
    """At the last one; between them a cosine."""
    warmup: int = 0
    """Steps over which the learning rate rises to the cosine."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    held_out: int = 8
    """Training pictures held out for validation, the last ones."""
    validate_every: int = 2_000
    """Steps between validations."""
    validation_pictures: int | None = 4
    """The first so many held-out pictures; None: all."""
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, batch=2)  # batch norm needs two
        check_at_least(
            self, scales=1, patch=2, context=0, points=1, steps=1, warmup=0, held_out=0, validate_every=1, validation_pictures=1,
        )  # fmt: skip
        if not 0 <= self.missing < 1:
            raise ValueError(f"config.missing must be from 0 to below 1; got {self.missing}")


_PAPER = Config()
# The 291 pictures of T91 and BSD200 stand in for DIV2K.
_291 = replace(_PAPER, train=("t91", "bsd200_train"), steps=40_000)
# What lets the residual be learnt, and how much each part brings: see docs/functional_images.md.
_RESIDUAL = replace(
    _291, predicts="residual", norm="none", patch=4, context=3, points=48, width=24, branch_width=32, batch=128,
    warmup=100, clip=0.004, steps=8_000,
)  # fmt: skip

PRESETS = {
    "paper": _PAPER,
    "291": _291,
    "291_residual": _RESIDUAL,
    # Holes are filled; a wider context shows the small ones whole.
    "291_missing": replace(_RESIDUAL, missing=0.5, scales=(1,), context=4, steps=6_000, validation_pictures=2),
    # Shows in two minutes that all works, on scikit-learn's photographs.
    "small": replace(
        _RESIDUAL, train=("embedded",), width=8, batch=64, steps=600, held_out=0, validate_every=300, checkpoint_every=200,
        evaluation=Evaluation(sets=("embedded",), scales=(2, 3, 2.5), drawn=1),
    ),
}  # fmt: skip
