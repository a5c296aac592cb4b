"""The demo's settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """A hypernetwork that generates 64-hidden-10 tanh networks for 8x8 digits.

    loss = accuracy_weight * CE + precision/2 * |theta|^2 - entropy of theta: with accuracy_weight near the number
    of training images it is the variational bound of Deutsch's section 3.2.3 under a Gaussian prior.
    """

    hidden: int = 32
    noise_size: int = 64
    extractor_hidden: tuple[int, ...] = (128, 128)
    code_size: int = 16
    generator_hidden: tuple[int, ...] = (48, 48)
    accuracy_weight: float = 1_200.0
    precision: float = 10.0
    networks: int = 32
    images: int = 32
    steps: int = 3_000
    learning_rate: float = 1e-3
    members: int = 1_000
    seed: int = 0
