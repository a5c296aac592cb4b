"""HyperGAN on CIFAR-10: networks of 57,520 weights (section 4.2, table 2)."""

from ....models import targets
from ..classification import experiment
from ..task import Task
from .config import NAME, PRESETS, Config

TASK = Task(
    name=NAME,
    summary="generate networks for CIFAR-10 by a generative adversarial network (HyperGAN, section 4)",
    config=Config,
    presets=dict(PRESETS),
    template=targets.hypergan_cifar,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    shape=(3, 32, 32),
)
EXPERIMENT = experiment(TASK)
