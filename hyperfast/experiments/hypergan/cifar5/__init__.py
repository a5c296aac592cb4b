"""HyperGAN on the first five classes of CIFAR-10; the other five are images that it has not seen (sections 4.2, 4.4)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ....data import Parts
from ..cifar10 import TASK as CIFAR10
from ..classification import experiment
from ..task import Task
from .config import NAME, PRESETS, Config

CLASSES = 5


def _outliers(images: str, parts: Parts, root: Path | None) -> tuple[str, Tensor]:
    return "classes 5 to 9", parts.test[parts.test.labels >= CLASSES].images


TASK: Task = replace(
    CIFAR10,
    name=NAME,
    summary="the same for CIFAR-10's first five classes (HyperGAN, sections 4.2 and 4.4)",
    config=Config,
    presets=dict(PRESETS),
    outliers=_outliers,
    classes=CLASSES,
)
EXPERIMENT = experiment(TASK)
