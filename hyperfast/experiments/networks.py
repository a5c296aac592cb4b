"""Many networks of the target on shared images, in bounded memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Labelled
from ..nn import TargetNet

# Networks and images evaluated at once: they bound what lies between two stages.
NETWORKS_AT_ONCE, IMAGES_AT_ONCE = 16, 512


def outputs(net: TargetNet, theta: Tensor, images: Tensor) -> Tensor:
    """Logits [m,N,classes] of the networks theta [m,P] on shared images [N,C,H,W]."""
    return torch.cat([net(some, theta) for some in images.split(IMAGES_AT_ONCE)], 1)


@torch.no_grad()
def mean_scores(net: TargetNet, theta: Tensor, data: Labelled) -> tuple[float, float]:
    """(cross-entropy in nats, accuracy), means over the networks theta [M,P] and all of `data`."""
    total, correct = 0.0, 0
    for some in theta.split(NETWORKS_AT_ONCE):
        logits = outputs(net, some, data.images)
        labels = data.labels.expand(len(some), -1)
        total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
    count = len(theta) * len(data)
    return total / count, correct / count


@torch.no_grad()
def accuracies(net: TargetNet, theta: Tensor, data: Labelled) -> Tensor:
    """[M] float64, of each of the networks theta [M,P] on all of `data`."""
    found = [
        (outputs(net, some, data.images).argmax(-1) == data.labels).double().mean(1)
        for some in theta.split(NETWORKS_AT_ONCE)
    ]
    return torch.cat(found).cpu()
