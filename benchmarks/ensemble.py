"""An ensemble on shared inputs, from weights to mean probability, votes and entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hyperfast as hf
from hyperfast.models import targets
from hyperfast.reference.target_net import activate

from .case import Case
from .target_net import _weights
from .target_net_cnn import Network, _layers, baselines, make_inputs, reference_of, unfolded

MEMBERS, ROWS = 64, 256
REDUCTIONS = ("mean_prob", "votes", "entropy")
Reduced = tuple[Tensor, ...]


def cases() -> list[Case]:
    small = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    return [
        _case("mlp 64x256", small, (784,), _one_wide_product(small)),
        _case(
            "cnn deutsch 64x256", targets.deutsch_mnist(), (1, 28, 28), _one_wide_convolution(targets.deutsch_mnist())
        ),
    ]


def _case(name: str, template: nn.Sequential, row: tuple[int, ...], careful: Network) -> Case:
    net = hf.nn.TargetNet(template)

    def ours(x: Tensor, theta: Tensor) -> Reduced:
        r = hf.ensemble.predict(net, x, theta, REDUCTIONS)
        return r.mean_prob, r.votes, r.entropy

    def reduced(network: Network):
        return lambda x, theta: _reduce(network(x, theta))

    return Case(
        family="ensemble",
        name=name,
        shape={"M": MEMBERS, "N": ROWS, "row": list(row), "P": net.num_weights},
        inputs=lambda device: make_inputs(net, MEMBERS, (ROWS, *row), device),
        ours=ours,
        reference=reduced(lambda x, theta: reference_of(net, x, theta)),
        baselines={name: reduced(network) for name, network in (baselines(template) | {"careful": careful}).items()},
        flops=MEMBERS * ROWS * net.plan.flops_per_row(row),
        bytes=4 * (MEMBERS * net.num_weights + ROWS * torch.Size(row).numel()),
    )


def _reduce(logits: Tensor) -> Reduced:
    """[M,N,C] -> mean_prob [N,C], votes [N,C], entropy [N]."""
    mean = logits.softmax(-1).mean(0)
    votes = F.one_hot(logits.argmax(-1), logits.shape[-1]).sum(0)
    return mean, votes, torch.special.entr(mean).sum(-1)


# ---- what a careful user makes of shared inputs: the first layer of all members as one ordinary layer --


def _one_wide_product(template: nn.Sequential) -> Network:
    mlp = hf.nn.TargetNet(template).plan.stages[0].mlp

    def run(x: Tensor, theta: Tensor) -> Tensor:
        (first, bias, activation), (last, last_bias, _) = _weights(theta, mlp)
        wide = F.linear(x, first.reshape(-1, first.shape[2]), bias.reshape(-1))
        h = activate(activation, wide).unflatten(1, (theta.shape[0], -1)).transpose(0, 1)
        return torch.baddbmm(last_bias.unsqueeze(1), h, last.transpose(1, 2))

    return run


def _one_wide_convolution(template: nn.Sequential) -> Network:
    net = hf.nn.TargetNet(template)
    first, *_ = template
    rest = _layers(template[1:], unfolded)

    def run(x: Tensor, theta: Tensor) -> Tensor:
        weights = net.unflatten(theta)
        wide = F.conv2d(x, weights["0.weight"].flatten(0, 1), weights["0.bias"].flatten(), padding=first.padding)
        h = wide.unflatten(1, (theta.shape[0], -1)).transpose(0, 1)
        used = first.weight.numel() + first.bias.numel()
        return rest(h, theta[:, used:])

    return run
