"""target_net against PyTorch: one network after the other, batched products, vmap, and torch.compile of them."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperfast.ops.target_net import run_mlp
from hyperfast.plan import MLP, Activation
from hyperfast.reference import target_net as reference
from hyperfast.reference.target_net import activate, make_inputs

from . import target_net_cnn
from .case import Case
from .peers import installed


def _weights(theta: Tensor, mlp: MLP) -> list[tuple[Tensor, Tensor, Activation]]:
    """[(weight [B,O,I], bias [B,O], activation)] views of theta, by one split: backward is one concatenation."""
    sizes = [size for inputs, outputs, _, _ in mlp.layers() for size in (inputs * outputs, outputs)]
    pieces = theta.split(sizes, 1)
    return [
        (weight.unflatten(1, (outputs, inputs)), bias, activation)
        for weight, bias, (inputs, outputs, activation, _) in zip(pieces[::2], pieces[1::2], mlp.layers(), strict=True)
    ]


def eager(mlp: MLP):
    """What public implementations do: one batched product and one activation a layer."""

    def run(x: Tensor, theta: Tensor) -> Tensor:
        for weight, bias, activation in _weights(theta, mlp):
            x = activate(activation, torch.bmm(x, weight.transpose(1, 2)) + bias.unsqueeze(1))
        return x

    return run


def careful(mlp: MLP):
    """The bias inside the product."""

    def run(x: Tensor, theta: Tensor) -> Tensor:
        for weight, bias, activation in _weights(theta, mlp):
            x = activate(activation, torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2)))
        return x

    return run


def loop(mlp: MLP):
    """One network after the other, with nn.Linear's own kernel."""

    def run(x: Tensor, theta: Tensor) -> Tensor:
        layers = [(weight.unbind(), bias.unbind(), activation) for weight, bias, activation in _weights(theta, mlp)]
        outputs = []
        for b, h in enumerate(x.unbind()):
            for weight, bias, activation in layers:
                h = activate(activation, F.linear(h, weight[b], bias[b]))
            outputs.append(h)
        return torch.stack(outputs)

    return run


def vmap(mlp: MLP):
    """torch.func.vmap over the plain network."""

    def one(x: Tensor, theta: Tensor) -> Tensor:
        h = x
        for weight, bias, activation in _weights(theta.unsqueeze(0), mlp):
            h = activate(activation, F.linear(h, weight[0], bias[0]))
        return h

    return torch.func.vmap(one)


def grouped_mm(mlp: MLP):
    """torch._grouped_mm, which takes bfloat16 in rows of whole 16 bytes; the narrow first and last layers batched."""

    def run(x: Tensor, theta: Tensor) -> Tensor:
        for weight, bias, activation in _weights(theta, mlp):
            fits = x.dtype == torch.bfloat16 and all(size % 8 == 0 for size in weight.shape[1:])
            product = torch._grouped_mm if fits else torch.bmm
            # Its own copy: views of theta begin anywhere.
            x = activate(activation, product(x, weight.clone().transpose(1, 2)) + bias.unsqueeze(1))
        return x

    return run


def _hypnettorch(mlp: MLP):
    """Its network, which takes the weights of one at a time."""

    def run(x: Tensor, theta: Tensor) -> Tensor:
        from hypnettorch.mnets.mlp import MLP as Network

        hidden, last = (partial(activate, mlp.activations[layer]) for layer in (0, -1))
        inputs, *widths, outputs = mlp.widths
        network = Network(inputs, outputs, widths, hidden, no_weights=True, verbose=False)
        layers = [(weight.unbind(), bias.unbind()) for weight, bias, _ in _weights(theta, mlp)]
        each = [[t[b] for layer in layers for t in layer] for b in range(len(theta))]
        return last(torch.stack([network(rows, weights=w) for rows, w in zip(x.unbind(), each, strict=True)]))

    return run


def _case(name: str, mlp: MLP, networks: int, rows: int, dtype: torch.dtype = torch.float32) -> Case:
    weights = networks * mlp.num_weights
    values = networks * rows * (mlp.widths[0] + mlp.widths[-1])
    peers, _ = installed({"hypnettorch": ("hypnettorch", _hypnettorch(mlp))})
    if dtype == torch.bfloat16:
        peers["grouped_mm"] = grouped_mm(mlp)
    return Case(
        family="target_net",
        name=name,
        shape={"B": networks, "N": rows, "widths": list(mlp.widths)},
        inputs=lambda device: tuple(t.to(dtype) for t in make_inputs(mlp, networks, rows, device=device)),
        ours=lambda x, theta: run_mlp(x, theta, mlp),
        reference=lambda x, theta: reference.batched_mlp(x, theta, None, mlp),
        baselines={"eager": eager(mlp), "careful": careful(mlp), "loop": loop(mlp), "vmap": vmap(mlp), **peers},
        flops=networks * rows * mlp.flops_per_row,
        bytes=dtype.itemsize * (weights + values),
        gradient_of=(1,),
        dtype=dtype,
    )


def _mlp(widths: tuple[int, ...], hidden: str, last: str) -> MLP:
    depth = len(widths) - 1
    return MLP(widths, (Activation.of(hidden),) * (depth - 1) + (Activation.of(last),), (True,) * depth)


def cases(device: str = "cpu") -> list[Case]:
    image = _mlp((2, 32, 64, 256, 64, 3), "cos", "sigmoid")
    curve = _mlp((1, 100, 1), "relu", "identity")
    return [
        _case("mlp 256x1024", image, 256, 1024),
        _case("mlp 1024x64", image, 1024, 64),
        _case("mlp 1-100-1", curve, 1000, 20),
        *(low_precision(image) if device == "cuda" else ()),
        *target_net_cnn.cases(),
    ]


def low_precision(mlp: MLP) -> list[Case]:
    """Of a GPU: few rows a network, which is bound by reading theta, and many."""
    return [
        _case(f"mlp {networks}x{rows} bfloat16", mlp, networks, rows, torch.bfloat16)
        for networks, rows in ((4096, 64), (256, 1024))
    ]
