"""The demo's settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """A hypernetwork that generates 64-32-10 networks for 8x8 digits; loss = accuracy_weight * CE - entropy."""

    hidden: int = 32
    noise_size: int = 64
    extractor_hidden: tuple[int, ...] = (128, 128)
    code_size: int = 16
    generator_hidden: tuple[int, ...] = (48, 48)
    accuracy_weight: float = 5_000.0
    precision: float = 1.0
    dim: float = 64.0
    networks: int = 32
    images: int = 32
    steps: int = 2_500
    learning_rate: float = 1e-3
    members: int = 1_000
    seed: int = 0
