"""A step of multiplicative normalizing flows over a target network's weights (Louizos & Welling 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models import MultiplicativeFlows
from ..nn import TargetNet
from . import ranks
from .training import descend_unclipped

METRICS = ("loss", "cross_entropy", "kl", "batch_accuracy")


def variational_step(
    net: TargetNet,
    flows: MultiplicativeFlows,
    optimizer: torch.optim.Optimizer,
    noise: Tensor,
    x: Tensor,
    labels: Tensor,
    images: int,
    largest_deviation: float,
    draws: torch.Generator,
) -> dict[str, Tensor]:
    """One step down CE + KL/images, the negative variational bound per image; METRICS as scalar tensors.

    noise [M,Z] of M networks, x [M,n,...] and labels [M,n] their own images, of all ranks. images: those of the whole
    training set. largest_deviation: bound of a weight's standard deviation. draws: of the auxiliary distribution's masks.
    """
    masks = [ranks.own(mask, 1) for mask in flows.masks(len(noise), draws)]
    noise, x, labels = ranks.own(noise), ranks.own(x), ranks.own(labels)
    theta, divergence = flows.draw(noise, masks)
    logits = net(x, theta)
    cross_entropy, kl = F.cross_entropy(logits.flatten(0, 1), labels.flatten()), divergence.mean()
    loss = cross_entropy + kl / images
    descend_unclipped(flows, optimizer, loss)
    flows.bound_deviations(largest_deviation)
    accuracy = (logits.detach().argmax(-1) == labels).float().mean()
    return dict(zip(METRICS, (loss.detach(), cross_entropy.detach(), kl.detach(), accuracy), strict=True))
