"""HyperGAN on MNIST: networks of 31,520 weights (section 4.2, table 1)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ....data import Parts, load_notmnist, load_photo_patches
from ....models import targets
from ..classification import experiment
from ..task import Task
from .config import NAME, PRESETS, Config


def _outliers(images: str, parts: Parts, root: Path | None) -> tuple[str, Tensor]:
    if images == "mnist":
        return "notMNIST", load_notmnist(root).images
    return "patches of photographs", load_photo_patches()


TASK = Task(
    name=NAME,
    summary="generate networks for MNIST by a generative adversarial network (HyperGAN, section 4)",
    config=Config,
    presets=dict(PRESETS),
    template=targets.hypergan_mnist,
    mean=(0.1307,),
    std=(0.3081,),
    shape=(1, 28, 28),
    outliers=_outliers,
)
EXPERIMENT = experiment(TASK)
