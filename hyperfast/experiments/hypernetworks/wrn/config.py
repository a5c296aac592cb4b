"""The settings of hypernetworks/wrn; the defaults are the paper's Hyper Residual Network 40-1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from ...settings import check_at_least
from ..classification import ClassifierConfig

NAME = "hypernetworks/wrn"


@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    """A wide residual network for CIFAR-10, all kernels of its blocks generated (section 4.2, appendix A.3.2)."""

    net: Literal["hyper", "plain"] = "hyper"
    """Whether the kernels of the blocks are generated or learned themselves."""
    width: int = 1
    """k of WRN 40-k."""
    blocks: int = 6
    """N, residual blocks in each of the three groups."""
    embedding: int = 64
    """N_z, elements of a tile's embedding."""
    hidden: int = 64
    """d, elements of the hypernetwork's hidden layer."""
    images: Literal["cifar10", "cifar10_subset", "colour_digits"] = "cifar10"
    """CIFAR-10, the first 4,000 of its training images, or scikit-learn's digits in colour, 16x16 pixels."""
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    """Subtracted from pixels in [0, 1]: CIFAR-10's means."""
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    """Divides them then: CIFAR-10's standard deviations."""
    padding: int = 2
    """Images that are trained on are padded by so many pixels on every side, cropped at random, and half are mirrored."""
    batch: int = 128
    """Images of a step."""
    optimizer: Literal["adam", "nesterov"] = "adam"
    """Adam, or stochastic gradient descent with Nesterov's momentum."""
    momentum: float = 0.9
    """Of the latter."""
    rates: tuple[float, ...] = (2e-3, 1e-3, 2e-4, 5e-5)
    """Learning rates, one after the other (tables 7 and 8) ..."""
    until: tuple[int, ...] = (168_000, 336_000, 504_000)
    """... each, but the last, until this step."""
    steps: int = 672_000
    """Training steps."""
    l2: float = 5e-6
    """Factor, in the loss, of the sum of the squares of all kernels' elements, generated or not: the paper's 0.0005 %."""
    validate_every: int = 1_000
    """Steps between validations."""
    log_every: int = 50
    checkpoint_every: int = 1_000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, width=1, blocks=1, embedding=1, hidden=1)
        if len(self.until) != len(self.rates) - 1 or any(a >= b for a, b in pairwise(self.until)):
            raise ValueError(
                f"config.until must be rising steps, one fewer than config.rates; got {self.until} and {self.rates}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"config.std must be positive; got {self.std}")

    def learning_rate_at(self, step: int) -> float:
        return self.rates[sum(step >= end for end in self.until)]


_PAPER = Config()
_PLAIN = replace(
    _PAPER, net="plain", optimizer="nesterov", rates=(0.1, 0.02, 0.004, 8e-4, 1.6e-4),
    until=(28_000, 56_000, 84_000, 112_000), steps=140_000,
)  # fmt: skip
# WRN 10-1 on 16x16 pixels: shows in a minute that all works.
_SMALL = replace(
    _PAPER, blocks=1, images="colour_digits", held_out=200, batch=50, rates=(2e-3, 1e-3, 2e-4), until=(800, 1_000),
    steps=1_200, validate_every=100, log_every=10, checkpoint_every=100,
)  # fmt: skip
# WRN 10-1 on CIFAR-10, eight epochs: both nets side by side in half an hour of one core.
_CIFAR_SMALL = replace(
    _PAPER, blocks=1, rates=(2e-3, 1e-3, 2e-4), until=(2_000, 2_600), steps=3_000, validate_every=250, log_every=10,
    checkpoint_every=250,
)  # fmt: skip

PRESETS = {
    "paper": _PAPER,
    "hyper_40_2": replace(_PAPER, width=2),
    "plain_40_1": _PLAIN,
    "plain_40_2": replace(_PLAIN, width=2),
    "cifar10_small": _CIFAR_SMALL,
    "cifar10_small_plain": replace(_CIFAR_SMALL, net="plain", optimizer="nesterov", rates=(0.1, 0.02, 0.004)),
    "small": _SMALL,
    "small_plain": replace(_SMALL, net="plain", optimizer="nesterov", rates=(0.1, 0.02, 0.004)),
}
