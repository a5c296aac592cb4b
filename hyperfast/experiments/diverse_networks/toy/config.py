"""The settings of diverse_networks/toy; the defaults are those of the paper's code."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...settings import LOOP_MAY_DIFFER, LoopConfig, check_at_least

NAME = "diverse_networks/toy"
MAY_DIFFER = LOOP_MAY_DIFFER


@dataclass(frozen=True)
class Evaluation:
    """What is measured of the path."""

    points: int = 400
    """Values of z, equally spaced in [-1, 1]."""

    def __post_init__(self) -> None:
        check_at_least(self, "config.evaluation", points=2)


@dataclass(frozen=True)
class Config(LoopConfig):
    """loss = -mean f(y) - diversity_weight * H + norm_weight * mean |y|^2."""

    diversity_weight: float = 2.2
    """Of the entropy; the paper's lambda weighs accuracy instead."""
    norm_weight: float = 0.05
    """Of the mean squared norm of the points."""
    points: int = 5
    """Points generated in a step."""
    steps: int = 100_000
    """Training steps in all. Neither paper nor code says how many: here the learning rate is down to 1.8 %."""
    learning_rate: float = 1e-3
    """Of Adam, at the first step."""
    learning_rate_decay: float = 0.99996
    """Factor of the learning rate at each step."""
    log_every: int = 100
    checkpoint_every: int = 10_000
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, points=2)  # a nearest neighbour needs two
        check_at_least(self, steps=0)

    def learning_rate_at(self, step: int) -> float:
        return self.learning_rate * self.learning_rate_decay**step


PRESETS = {
    "paper": Config(),
    # The rate falls as far, in fewer steps.
    "small": Config(steps=20_000, learning_rate_decay=0.9998, checkpoint_every=2_000),
}
