"""The settings of hypergan/regression; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...settings import LOOP_MAY_DIFFER, check_at_least
from ..config import GANConfig

NAME = "hypergan/regression"
MAY_DIFFER = LOOP_MAY_DIFFER


@dataclass(frozen=True)
class Evaluation:
    """What is measured of the curves."""

    networks: tuple[int, ...] = (10, 100, 1_000)
    """Networks of which mean and deviation are taken, each more than the last."""
    limit: float = 6.0
    """Curves are drawn between minus this and this."""
    points: int = 241
    """Places of x, equally spaced."""
    deviations: float = 3.0
    """Half the width of the band around the mean, in standard deviations."""
    seed: int = 1
    """Of the networks' noise."""

    def __post_init__(self) -> None:
        check_at_least(self, "config.evaluation", networks=2, points=2)
        if not self.networks or not self.limit > 0 or not self.deviations > 0:
            raise ValueError(
                "config.evaluation: some networks, a positive limit and positive deviations were expected; "
                f"got {self.networks}, {self.limit}, {self.deviations}"
            )


@dataclass(frozen=True)
class Config(GANConfig):
    """Mean squared error of the generated networks on y = x^3 + noise."""

    noise: int = 64
    code: int = 64
    hidden: int = 128
    steps: int = 2_000
    """Training steps in all. The paper does not say; the curves grow more alike with every step."""
    adversarial_weight: float = 1_000.0
    """beta. Squared errors begin at hundreds, and at 1 the codes are not held to the prior."""
    pretraining_stop: float = 0.0
    """0: all of pretraining_steps. The first codes are already nearer than the authors' 0.1."""
    units: int = 100
    """ReLU units of the networks' hidden layer."""
    points: int = 20
    """Points to learn from; x is uniform in [-4, 4]."""
    deviation: float = 3.0
    """Standard deviation of the noise in y."""
    data_seed: int = 0
    """Of the points."""
    log_every: int = 50
    checkpoint_every: int = 1_000
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, units=1, points=1, data_seed=0, deviation=0)


PRESETS = {"paper": Config(), "small": Config()}  # the whole takes less than a minute
