"""Training 32 small networks at once, against one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import hyperfast as hf
from hyperfast.reference.target_net import activate

from .case import Case
from .target_net import _weights


def template() -> nn.Sequential:
    return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def case(rows: int) -> Case:
    """Every implementation gets the same batches and starts from the same weights; the output is the trained theta."""
    members, steps = 32, 20
    options = {"lr": 0.05, "momentum": 0.9}
    net = hf.nn.TargetNet(template())
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
        return hf.ensemble.train(template(), x.shape[0], batch, losses, torch.optim.SGD, steps=steps, **options)

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
            one = template().to(x.device, x.dtype)
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
        name=f"train {members}x{rows}",
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
