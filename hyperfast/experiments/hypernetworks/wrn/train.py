"""The experiment of section 4.2 and appendix A.3.2, as a classification."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..classification import Classification
from .config import NAME, PRESETS, Config
from .figures import draw
from .model import Classifier


def objective(config: Config, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(cross-entropy + l2 * the sum of the squares of all kernels, logits)"""
    logits, penalty = model.with_penalty(images)
    return F.cross_entropy(logits, labels) + config.l2 * penalty, logits


def optimizer(config: Config, model: Classifier) -> torch.optim.Optimizer:
    """That of the config."""
    if config.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), config.rates[0])
    return torch.optim.SGD(model.parameters(), config.rates[0], config.momentum, nesterov=True)


CLASSIFICATION = Classification(
    name=NAME,
    summary="generate the kernels of a wide residual network for CIFAR-10 (Ha et al., section 4.2)",
    presets=PRESETS,
    model=Classifier,
    kernels="kernels",
    draw=draw,
    optimizer=optimizer,
    objective=objective,
    flip=True,
)
