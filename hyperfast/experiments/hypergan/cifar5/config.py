"""The settings of hypergan/cifar5; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass

from ..cifar10 import config as cifar10
from ..cifar10.config import Config as CIFAR10Config
from ..config import plainly

NAME = "hypergan/cifar5"


@dataclass(frozen=True)
class Config(CIFAR10Config):
    """HyperGAN for table 2's network, five of whose ten outputs have no images."""


PRESETS = {name: Config(**plainly(preset)) for name, preset in cifar10.PRESETS.items()}
