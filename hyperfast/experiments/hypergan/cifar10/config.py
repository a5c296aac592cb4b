"""The settings of hypergan/cifar10; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..config import SMALL_EVALUATION, Baseline, ClassifierConfig

NAME = "hypergan/cifar10"


@dataclass(frozen=True)
class Config(ClassifierConfig):
    """HyperGAN for the 57,520 weights of table 2's network."""

    images: Literal["cifar10", "cifar10_subset", "colour_digits"] = "cifar10"
    """CIFAR-10, the original pixels of a part of it, or scikit-learn's digits in colour, enlarged to its size."""
    code: int = 256
    padding: int = 4
    flip: bool = True


_PAPER = Config()
# 82 minutes of one busy CPU core instead of days: see docs/hypergan.md.
_CPU = replace(
    _PAPER, own_images=True, pretraining_steps=600, pretraining_stop=0.0, steps=9_000, learning_rate_decay=0.99955,
    validate_every=500,
)  # fmt: skip
# Shows in about two minutes that all works.
SMALL = replace(
    _PAPER, images="colour_digits", own_images=True, padding=0, flip=False, held_out=200, networks=8,
    images_a_network=16, pretraining_steps=300, pretraining_codes=300, pretraining_stop=0.0, steps=400,
    learning_rate_decay=0.998, validate_every=100, validation_networks=10, checkpoint_every=100,
    baseline=Baseline(epochs=10, members=5, images=50, networks=5), evaluation=SMALL_EVALUATION,
)  # fmt: skip

PRESETS = {
    "paper": _PAPER,
    "5000": replace(_PAPER, subset=5_000),
    "cpu": _CPU,
    "small": SMALL,
    "ensemble": replace(_PAPER, method="ensemble"),
    "dropout": replace(_PAPER, method="dropout"),
    "mnfg": replace(_PAPER, method="mnfg", baseline=Baseline(epochs=100)),
}
