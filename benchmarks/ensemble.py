"""An ensemble on shared inputs, from weights to mean probability, votes and entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hyperfast as hf
from hyperfast.reference.target_net import activate, make_inputs

from .case import Case
from .target_net import _weights


def _template() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


Reduced = tuple[Tensor, Tensor, Tensor]


def _reduce(logits: Tensor) -> Reduced:
    """[M,N,C] -> mean_prob [N,C], votes [N,C], entropy [N]."""
    mean = logits.softmax(-1).mean(0)
    votes = F.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    return mean, votes, torch.special.entr(mean).sum(-1)


def cases() -> list[Case]:
    members, rows = 64, 256
    net = hf.nn.TargetNet(_template())
    mlp = net.plan.stages[0].mlp

    def ours(x: Tensor, theta: Tensor) -> Reduced:
        r = hf.ensemble.predict(net, x, theta, ("mean_prob", "votes", "entropy"))
        return r.mean_prob, r.votes, r.entropy

    def logits(x: Tensor, theta: Tensor) -> Tensor:
        h = x.expand(theta.shape[0], *x.shape)
        for weight, bias, activation in _weights(theta, mlp):
            h = activate(activation, torch.baddbmm(bias.unsqueeze(1), h, weight.transpose(1, 2)))
        return h

    def careful(x: Tensor, theta: Tensor) -> Reduced:
        (first, bias, activation), (last, last_bias, _) = _weights(theta, mlp)
        wide = F.linear(x, first.reshape(-1, first.shape[2]), bias.reshape(-1))  # one product for all members
        h = activate(activation, wide).unflatten(1, (theta.shape[0], -1)).transpose(0, 1)
        return _reduce(torch.baddbmm(last_bias.unsqueeze(1), h, last.transpose(1, 2)))

    def loop(x: Tensor, theta: Tensor) -> Reduced:
        layers = _weights(theta, mlp)
        prob = votes = 0
        for m in range(theta.shape[0]):
            h = x
            for weight, bias, activation in layers:
                h = activate(activation, F.linear(h, weight[m], bias[m]))
            prob = prob + h.softmax(-1)
            votes = votes + F.one_hot(h.argmax(-1), h.shape[-1])
        mean = prob / theta.shape[0]
        return mean, votes, torch.special.entr(mean).sum(-1)

    def vmap(x: Tensor, theta: Tensor) -> Reduced:
        template = _template().to("meta")
        one = lambda weights: torch.func.functional_call(template, weights, (x,))
        return _reduce(torch.func.vmap(one)(net.unflatten(theta)))

    return [
        Case(
            family="ensemble",
            name="mlp 64x256",
            shape={"M": members, "N": rows, "widths": list(mlp.widths)},
            inputs=lambda device: make_inputs(mlp, members, rows, shared=True, device=device),
            ours=ours,
            reference=lambda x, theta: _reduce(logits(x, theta)),
            baselines={
                "eager": lambda x, theta: _reduce(logits(x, theta)),
                "careful": careful,
                "loop": loop,
                "vmap": vmap,
            },
            flops=members * rows * mlp.flops_per_row,
            bytes=4 * (members * mlp.num_weights + rows * 784),
        )
    ]
