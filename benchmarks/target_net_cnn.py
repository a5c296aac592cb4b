"""Generated CNNs against PyTorch: grouped convolutions, unfolded products, one after the other, and vmap."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hyperfast as hf
from hyperfast.models import targets
from hyperfast.nn.compiler import activation_of
from hyperfast.reference.target_net import activate

from .case import Case

Network = Callable[[Tensor, Tensor], Tensor]


def cases() -> list[Case]:
    return [
        _case("cnn deutsch 32x32", targets.deutsch_mnist(), 32, 32, (1, 28, 28)),
        _case("cnn hypergan mnist 32x32", targets.hypergan_mnist(), 32, 32, (1, 28, 28)),
        _case("cnn hypergan cifar 32x32", targets.hypergan_cifar(), 32, 32, (3, 32, 32)),
    ]


def _case(name: str, template: nn.Sequential, networks: int, rows: int, image: tuple[int, int, int]) -> Case:
    net = hf.nn.TargetNet(template)
    return Case(
        family="target_net",
        name=name,
        shape={"B": networks, "N": rows, "image": list(image), "P": net.num_weights},
        inputs=lambda device: make_inputs(net, networks, (networks, rows, *image), device),
        ours=lambda x, theta: net(x, theta),
        reference=lambda x, theta: reference_of(net, x, theta),
        baselines=baselines(template),
        flops=networks * rows * net.plan.flops_per_row(image),
        bytes=4 * networks * (net.num_weights + rows * (image[0] * image[1] * image[2] + 10)),
        gradient_of=(1,),
    )


def make_inputs(net: hf.nn.TargetNet, networks: int, shape: tuple[int, ...], device) -> tuple[Tensor, Tensor]:
    """x of `shape`, in [0, 1] as pictures are, and theta [B,P] in PyTorch's initialisation."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator).to(device), net.init(networks, generator).to(device)


def reference_of(net: hf.nn.TargetNet, x: Tensor, theta: Tensor) -> Tensor:
    """The networks on the reference backend."""
    with hf.backend("reference"):
        return net(x, theta)


# ---- baselines: x [B,N,*row], or [N,*row] shared; theta [B,P] -> [B,N,O] --------------------------


def baselines(template: nn.Sequential) -> dict[str, Network]:
    """What a user of PyTorch would write, from what public code does to the best that we know."""
    return {
        "eager": _layers(template, grouped),
        "careful": _layers(template, unfolded),
        "loop": _loop(template),
        "vmap": _vmap(template),
    }


def _is_shared(x: Tensor) -> bool:
    """[N,I] or [N,C,H,W], not [B,N,I] or [B,N,C,H,W]."""
    return x.dim() in (2, 4)


def _layers(template: nn.Sequential, convolution) -> Network:
    """All networks at once, layer by layer; `convolution` is how."""
    net = hf.nn.TargetNet(template)

    def run(x: Tensor, theta: Tensor) -> Tensor:
        weights = net.unflatten(theta)
        if _is_shared(x):
            x = x.expand(theta.shape[0], *x.shape)
        for name, module in template.named_children():
            weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
            if isinstance(module, nn.Conv2d):
                x = convolution(x, weight, bias, module)
            elif isinstance(module, nn.Linear):
                x = torch.bmm(x, weight.transpose(1, 2)) if bias is None else torch.baddbmm(
                    bias.unsqueeze(1), x, weight.transpose(1, 2)
                )  # fmt: skip
            elif isinstance(module, nn.Flatten):
                x = x.flatten(2)
            elif isinstance(module, nn.MaxPool2d):
                x = F.max_pool2d(x.flatten(0, 1), module.kernel_size).unflatten(0, x.shape[:2])
            else:
                x = activate(activation_of(module), x)
        return x

    return run


def grouped(x: Tensor, weight: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
    """One convolution with a group per network."""
    groups = weight.shape[0]
    y = F.conv2d(
        x.transpose(0, 1).flatten(1, 2), weight.flatten(0, 1), None if bias is None else bias.flatten(),
        module.stride, module.padding, groups=groups,
    )  # fmt: skip
    return y.unflatten(1, (groups, -1)).transpose(0, 1)


def unfolded(x: Tensor, weight: Tensor, bias: Tensor | None, module: nn.Conv2d) -> Tensor:
    """Patches as columns, one batched product."""
    networks, rows, _, height, _ = x.shape
    columns = F.unfold(x.flatten(0, 1), module.kernel_size, padding=module.padding, stride=module.stride)
    y = torch.matmul(weight.flatten(2).unsqueeze(1), columns.unflatten(0, (networks, rows)))
    if bias is not None:
        y = y + bias[:, None, :, None]
    high = (height + 2 * module.padding[0] - module.kernel_size[0]) // module.stride[0] + 1
    return y.unflatten(3, (high, -1))


def _loop(template: nn.Sequential) -> Network:
    """One network after the other."""
    net = hf.nn.TargetNet(template)
    shell = template.to("meta")

    def run(x: Tensor, theta: Tensor) -> Tensor:
        weights = {name: value.unbind() for name, value in net.unflatten(theta).items()}
        inputs = [x] * theta.shape[0] if _is_shared(x) else x.unbind()
        return torch.stack(
            [
                torch.func.functional_call(shell, {name: value[b] for name, value in weights.items()}, (one,))
                for b, one in enumerate(inputs)
            ]
        )

    return run


def _vmap(template: nn.Sequential) -> Network:
    net = hf.nn.TargetNet(template)
    shell = template.to("meta")

    def run(x: Tensor, theta: Tensor) -> Tensor:
        one = lambda x, weights: torch.func.functional_call(shell, weights, (x,))
        return torch.func.vmap(one, in_dims=(None if _is_shared(x) else 0, 0))(x, net.unflatten(theta))

    return run
