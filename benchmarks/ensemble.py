"""An ensemble on shared inputs, from weights to mean probability, votes and entropy; and the training of one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

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
    return [_predict(), _train()]


def _predict() -> Case:
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

    return Case(
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


def _train() -> Case:
    """Every implementation gets the same batches and starts from the same weights; the output is the trained theta."""
    members, rows, steps = 32, 32, 20
    options = {"lr": 0.05, "momentum": 0.9}
    net = hf.nn.TargetNet(_template())
    mlp = net.plan.stages[0].mlp

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(members, steps, rows, 784, generator=generator) * 2 - 1
        # Labels that can be learned, as floats: the gate hands every input over in float64, too.
        y = x[..., :10].argmax(-1).float()
        return x.to(device), y.to(device)

    def initial(x: Tensor) -> Tensor:
        return net.init(x.shape[0], torch.Generator().manual_seed(0)).to(x.device, x.dtype)

    def losses(logits: Tensor, y: Tensor) -> Tensor:
        every = F.cross_entropy(logits.flatten(0, 1), y.long().flatten(), reduction="none")
        return every.view(y.shape).mean(1)

    def ours(x: Tensor, y: Tensor) -> Tensor:
        batch = lambda step: (x[:, step], y[:, step])
        return hf.ensemble.train(_template(), x.shape[0], batch, losses, torch.optim.SGD, steps=steps, **options)

    @torch.enable_grad()
    def together(x: Tensor, y: Tensor) -> Tensor:
        theta = initial(x).requires_grad_()
        stepper = torch.optim.SGD([theta], **options)
        for step in range(steps):
            h = x[:, step]
            for weight, bias, activation in _weights(theta, mlp):
                h = activate(activation, torch.baddbmm(bias.unsqueeze(1), h, weight.transpose(1, 2)))
            stepper.zero_grad()
            losses(h, y[:, step]).sum().backward()
            stepper.step()
        return theta.detach()

    @torch.enable_grad()
    def in_turn(x: Tensor, y: Tensor) -> Tensor:
        trained = []
        for start, own_x, own_y in zip(initial(x), x, y.long(), strict=True):
            one = _template().to(x.device, x.dtype)
            vector_to_parameters(start, one.parameters())
            stepper = torch.optim.SGD(one.parameters(), **options)
            for step in range(steps):
                stepper.zero_grad()
                F.cross_entropy(one(own_x[step]), own_y[step]).backward()
                stepper.step()
            trained.append(parameters_to_vector(one.parameters()).detach())
        return torch.stack(trained)

    forward = members * rows * mlp.flops_per_row
    return Case(
        family="ensemble",
        name="train 32x32",
        shape={"M": members, "N": rows, "steps": steps, "widths": list(mlp.widths)},
        inputs=inputs,
        ours=ours,
        reference=in_turn,
        baselines={"eager": together, "loop": in_turn},
        # Forward, dW, and dX of the second layer only. Weights and momentum: read for forward and backward, and by
        # the optimiser with the gradient, three of them written.
        flops=steps * (2 * forward + members * rows * 2 * 64 * 10),
        bytes=4 * steps * (members * rows * 784 + members * mlp.num_weights * 8),
        compiled=(),
    )
