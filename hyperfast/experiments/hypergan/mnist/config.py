"""The settings of hypergan/mnist; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..config import SMALL_EVALUATION, Baseline, ClassifierConfig

NAME = "hypergan/mnist"


@dataclass(frozen=True)
class Config(ClassifierConfig):
    """HyperGAN for the 31,520 weights of table 1's network."""

    images: Literal["mnist", "digits"] = "mnist"
    """MNIST, or scikit-learn's digits enlarged to its size."""


_PAPER = Config()
# Three quarters of an hour on one CPU core instead of a day: see docs/hypergan.md.
_CPU = replace(
    _PAPER, own_images=True, pretraining_steps=600, pretraining_stop=0.0, steps=10_000, learning_rate_decay=0.9997,
    validate_every=500,
)  # fmt: skip
# Shows in about two minutes that all works.
_SMALL = replace(
    _PAPER, images="digits", own_images=True, held_out=200, networks=8, images_a_network=16, pretraining_steps=300,
    pretraining_codes=300, pretraining_stop=0.0, steps=400, learning_rate_decay=0.997, validate_every=100,
    validation_networks=10, checkpoint_every=100, baseline=Baseline(epochs=10, members=5, images=50, networks=5),
    evaluation=SMALL_EVALUATION,
)  # fmt: skip

PRESETS = {
    "paper": _PAPER,
    "5000": replace(_PAPER, subset=5_000),
    "cpu": _CPU,
    "small": _SMALL,
    "ensemble": replace(_PAPER, method="ensemble"),
    "dropout": replace(_PAPER, method="dropout"),
    "mnfg": replace(_PAPER, method="mnfg", baseline=Baseline(epochs=100)),
}
