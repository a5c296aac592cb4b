"""What is measured of the generated networks; the defaults are the paper's but where they say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ...settings import check_at_least


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
    filter_samples: int = 25
    """Networks whose filters are drawn."""
    scatter_networks: int = 3_000
    """Networks whose weights are projected on their principal components."""
    scatter_components: int = 6
    """Principal components."""
    path_pairs: int = 10
    """Pairs of networks between which paths are walked."""
    path_points: int = 40
    """Points on a path, both ends among them."""
    adversarial_images: int = 1_000
    """Validation images that are attacked, each through a network of its own; the paper takes all."""
    adversarial_networks: int = 100
    """Networks in the fresh ensemble that votes on an attacked image."""
    adversarial_levels: tuple[int, ...] = tuple(range(0, 59, 2))
    """Perturbation sizes, in grey levels of 255, rising."""
    seed: int = 1
    """Of the networks' noise, and of the attacks' targets."""

    def __post_init__(self) -> None:
        check_at_least(
            self, "config.evaluation", networks=1, repeats=1, filter_samples=1, scatter_networks=2,
            scatter_components=1, path_pairs=1, path_points=2, adversarial_images=1, adversarial_networks=1,
            ensemble_sizes=1, images=1,
        )  # fmt: skip
        if self.scatter_components > self.scatter_networks:
            raise ValueError(
                f"config.evaluation.scatter_components must be at most scatter_networks, {self.scatter_networks}; "
                f"got {self.scatter_components}"
            )
        levels = self.adversarial_levels
        if not levels or levels[0] < 0 or any(a >= b for a, b in pairwise(levels)):
            raise ValueError(f"config.evaluation.adversarial_levels must rise from 0 or more; got {levels}")


SMALL = Evaluation(
    networks=100,
    ensemble_sizes=(2, 5, 10, 20, 50, 100),
    images=1_000,
    scatter_networks=300,
    path_pairs=3,
    path_points=11,
    adversarial_images=50,
    adversarial_networks=20,
)
