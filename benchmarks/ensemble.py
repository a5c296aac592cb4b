"""An ensemble on shared inputs, from weights to mean probability, votes and entropy."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hyperfast as hf
from hyperfast.models import deutsch_hypernetwork, targets
from hyperfast.reference.target_net import activate

from . import ensemble_train
from .case import Case
from .target_net import _weights
from .target_net_cnn import Network, _layers, baselines, grouped, make_inputs, reference_of

# Members, rows, and of how many members a baseline holds the activations at once: all of them, but for a GPU's size.
SIZES = {"cpu": (64, 256, 64), "cuda": (1000, 10_000, 10)}
REDUCTIONS = ("mean_prob", "votes", "entropy")
Reduced = tuple[Tensor, ...]


def cases(device: str = "cpu") -> list[Case]:
    small = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    cnn = targets.deutsch_mnist()
    sizes = SIZES[device]
    return [
        _case("mlp", small, (784,), _one_wide_product(small), *sizes),
        _case("cnn deutsch", cnn, (1, 28, 28), _one_wide_convolution(cnn), *sizes),
        _generated(*SIZES["cpu"][:2]),
        ensemble_train.case(32),
    ]


def _case(
    name: str, template: nn.Sequential, row: tuple[int, ...], careful: Network, members: int, rows: int, at_once: int
) -> Case:
    net = hf.nn.TargetNet(template)

    def ours(x: Tensor, theta: Tensor) -> Reduced:
        r = hf.ensemble.predict(net, x, theta, REDUCTIONS)
        return r.mean_prob, r.votes, r.entropy

    def reduced(network: Network):
        return lambda x, theta: _reduce(torch.cat([network(x, part) for part in theta.split(at_once)]))

    return Case(
        family="ensemble",
        name=f"{name} {members}x{rows}",
        shape={"M": members, "N": rows, "row": list(row), "P": net.num_weights},
        inputs=lambda device: make_inputs(net, members, (rows, *row), device),
        ours=ours,
        reference=reduced(lambda x, theta: reference_of(net, x, theta)),
        baselines={name: reduced(network) for name, network in (baselines(template) | {"careful": careful}).items()},
        flops=members * rows * net.plan.flops_per_row(row),
        bytes=4 * (members * net.num_weights + rows * torch.Size(row).numel()),
    )


def _generated(members: int, rows: int) -> Case:
    """Generation and inference together: noise -> Deutsch's hypernetwork -> networks -> their ensemble."""
    template = targets.deutsch_mnist()
    net = hf.nn.TargetNet(template)
    torch.manual_seed(0)
    single = deutsch_hypernetwork(net).requires_grad_(False)
    for module in single.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    single(torch.rand(256, single.noise_size) * 2 - 1)  # batch norm's statistics, without which all weights are tiny
    single.eval()
    generators = {torch.float32: single, torch.float64: copy.deepcopy(single).double()}

    def generate(z: Tensor) -> Tensor:
        return generators[z.dtype].to(z.device)(z)

    def ours(x: Tensor, z: Tensor) -> Reduced:
        r = hf.ensemble.predict(net, x, (lambda indices: generate(z[indices.to(z.device)]), members), REDUCTIONS)
        return r.mean_prob, r.votes, r.entropy

    def generated(network: Network):
        return lambda x, z: _reduce(network(x, generate(z)))

    def inputs(device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(rows, 1, 28, 28, generator=generator)
        z = torch.rand(members, single.noise_size, generator=generator) * 2 - 1
        return x.to(device), z.to(device)

    layers = [m for m in single.modules() if isinstance(m, nn.Linear)]
    per_code = sum(
        2 * count * sum(m.weight.numel() for m in generator if isinstance(m, nn.Linear))
        for count, generator in zip(single.filters, single.generators, strict=True)
    )
    extractor = sum(2 * m.weight.numel() for m in single.extractor if isinstance(m, nn.Linear))
    forward = rows * net.plan.flops_per_row((1, 28, 28))
    return Case(
        family="ensemble",
        name=f"generated cnn deutsch {members}x{rows}",
        shape={"M": members, "N": rows, "row": [1, 28, 28], "P": net.num_weights},
        inputs=inputs,
        ours=ours,
        reference=generated(lambda x, theta: reference_of(net, x, theta)),
        baselines={name: generated(network) for name, network in baselines(template).items() if name != "careful"},
        flops=members * (forward + per_code + extractor),
        bytes=4
        * (members * (net.num_weights + single.noise_size) + rows * 784 + sum(m.weight.numel() for m in layers)),
        compiled=(),
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
    rest = _layers(template[1:], grouped)

    def run(x: Tensor, theta: Tensor) -> Tensor:
        weights = net.unflatten(theta)
        wide = F.conv2d(x, weights["0.weight"].flatten(0, 1), weights["0.bias"].flatten(), padding=first.padding)
        h = wide.unflatten(1, (theta.shape[0], -1)).transpose(0, 1)
        used = first.weight.numel() + first.bias.numel()
        return rest(h, theta[:, used:])

    return run
