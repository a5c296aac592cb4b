"""Adversarial examples of images in [0, 1] against one network or an ensemble, all members at once.

An ensemble's logits l are the mean of its members' (HyperGAN, section 4.5); an attack raises their cross-entropy with
the label y, moving a pixel by at most epsilon:

    fgsm  x' = x + epsilon sign(g(x))                                             (Goodfellow et al. 2014)
    pgd   x_0 = x,  x_{i+1} = x_i + step sign(g(x_i)) within epsilon of x         (Madry et al. 2017, without a random start)

each clipped to [0, 1]. g is the gradient of log sum_{k != y} exp(l_k) - l_y, that of the cross-entropy divided by
1 - p_y > 0: the same signs, also where a float32 softmax has saturated and the cross-entropy's gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..nn import TargetNet

# Networks times images evaluated at once with their gradient: it bounds what lies between two stages.
_PAIRS_AT_ONCE = 4_096


def ascent(value: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d value(x).sum() / dx, of x's shape."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(value(x).sum(), x)
    return gradient


def loss_gradient(
    net: TargetNet, theta: Tensor, inputs: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor
) -> Tensor:
    """g: of surplus() of the mean logits of theta [M,P] and labels [N], by the images x [N,C,H,W]: [N,C,H,W].

    inputs: what networks see of images. In memory that does not grow with the members: the mean of the logits first,
    then each group of members' share of the gradient.
    """
    images = max(1, min(len(x), _PAIRS_AT_ONCE))
    found = [
        _loss_gradient(net, theta, inputs, some, wanted)
        for some, wanted in zip(x.split(images), labels.split(images), strict=True)
    ]
    return torch.cat(found)


def _loss_gradient(
    net: TargetNet, theta: Tensor, inputs: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor
) -> Tensor:
    members = theta.split(max(1, _PAIRS_AT_ONCE // max(1, len(x))))
    if len(members) == 1:
        return ascent(lambda v: surplus(net(inputs(v), theta).mean(0), labels), x)
    mean = mean_logits(net, theta, inputs, x)
    weight = ascent(lambda logits: surplus(logits, labels), mean) / len(theta)
    total = torch.zeros_like(x)
    for some in members:
        total += ascent(partial(_weighted, net, some, inputs, weight), x)
    return total


def _weighted(net: TargetNet, theta: Tensor, inputs: Callable[[Tensor], Tensor], weight: Tensor, x: Tensor) -> Tensor:
    return net(inputs(x), theta) * weight


@torch.no_grad()
def mean_logits(net: TargetNet, theta: Tensor, inputs: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """[N,classes], of the ensemble theta [M,P] on the images x [N,C,H,W]."""
    found = []
    for some in x.split(_PAIRS_AT_ONCE):
        seen = inputs(some)
        sums = [net(seen, m).sum(0) for m in theta.split(max(1, _PAIRS_AT_ONCE // max(1, len(some))))]
        found.append(torch.stack(sums).sum(0) / len(theta))
    return torch.cat(found)


def surplus(logits: Tensor, labels: Tensor) -> Tensor:
    """log sum_{k != y} exp(l_k) - l_y, [N], of logits l [N,classes] and labels y [N]: above 0 only if others win."""
    own = torch.zeros_like(logits, dtype=torch.bool).scatter(1, labels.unsqueeze(1), True)
    return logits.masked_fill(own, -torch.inf).logsumexp(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def fgsm(gradient: Callable[[Tensor], Tensor], x: Tensor, epsilon: Tensor) -> Tensor:
    """gradient(x) is the loss's, of x's shape [N,C,H,W]; epsilon [N], in units of the images' range [0, 1]."""
    return (x + epsilon.view(-1, 1, 1, 1) * gradient(x).sign()).clamp(0, 1)


def pgd(
    gradient: Callable[[Tensor], Tensor], x: Tensor, epsilon: Tensor, steps: int = 40, step_size: float = 0.01
) -> Tensor:
    """As fgsm; no pixel moves further than steps * step_size."""
    bound = epsilon.view(-1, 1, 1, 1)
    lowest, highest = (x - bound).clamp(min=0), (x + bound).clamp(max=1)
    moved = x
    for _ in range(steps):
        moved = (moved + step_size * gradient(moved).sign()).clamp(lowest, highest)
    return moved
