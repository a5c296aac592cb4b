"""Wide residual networks: the equation, and that generated kernels change nothing but where kernels come from."""

import math

import pytest
import torch
import torch.nn.functional as F

from hyperfast.models import WideResNet
from hyperfast.nn import HyperConv2d, TileHypernetwork


def plain_twin(model):
    """The plain network with the kernels that a generated one has at the moment, and its other parameters."""
    twin = WideResNet(width=2, blocks=1)
    own = dict(model.named_modules())
    state = {name: value for name, value in model.state_dict().items() if name in twin.state_dict()}
    for name in dict(twin.named_modules()):
        if isinstance(own.get(name), HyperConv2d):
            state[f"{name}.weight"] = own[name].weight.detach()
    twin.load_state_dict(state)
    return twin


def test_a_generated_residual_network_is_the_plain_one_with_its_kernels():
    """Logits, penalty, and the generator's gradient by the chain rule over the plain network's kernels."""
    model = WideResNet(2, 1, TileHypernetwork(5, 6))
    twin = plain_twin(model)
    images, labels = torch.rand(6, 3, 16, 16), torch.tensor([1, 2, 3, 4, 5, 6])
    found = {}
    for name, net in (("hyper", model), ("plain", twin)):
        logits, penalty = net.with_penalty(images)
        found[name] = logits.detach(), penalty.detach()
        (F.cross_entropy(logits, labels) + 0.1 * penalty).backward()
    torch.testing.assert_close(found["hyper"], found["plain"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.first.weight.grad, twin.first.weight.grad, rtol=1e-3, atol=1e-4)
    kernels, gradients = [], []
    for name, module in model.named_modules():
        if isinstance(module, HyperConv2d):
            kernels.append(module.weight)
            gradients.append(twin.get_submodule(name).weight.grad)
    assert len(kernels) == 6
    parameters = dict(model.generator.named_parameters())
    by_hand = torch.autograd.grad(kernels, list(parameters.values()), gradients)
    for name, gradient in zip(parameters, by_hand, strict=True):
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=1e-3, atol=1e-3, msg=name)


def by_hand(net, x):
    """The plain network of one block a group, in eval mode, from its parameters alone."""
    p = net.state_dict()

    def conv(name, x, stride=1):
        return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride, 1)

    def norm(name, x):
        mean, var, gain, shift = (
            p[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (var + 1e-5).sqrt() * gain + shift).clamp_min(0)

    x = conv("first", x)
    for block, stride in enumerate((1, 2, 2)):
        name = f"blocks.{block}"
        h = conv(f"{name}.conv2", norm(f"{name}.norm2", conv(f"{name}.conv1", norm(f"{name}.norm1", x), stride)))
        if stride == 2:
            x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        more = h.shape[1] - x.shape[1]
        zeros = torch.zeros(len(x), more // 2, *x.shape[2:])
        x = torch.cat([zeros, x, zeros], 1) + h
    return norm("norm", x).mean((2, 3)) @ p["last.weight"].T + p["last.bias"]


def test_the_residual_network_is_what_it_says():
    net = WideResNet(2, 1)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.uniform_(0.5, 1.5)
    net.eval()
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(net(images), by_hand(net, images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("generated", [False, True])
def test_kernels_start_with_hes_deviation(generated):
    model = WideResNet(1, 1, TileHypernetwork() if generated else None)
    for block in model.blocks:
        for conv in (block.conv1, block.conv2):
            he = math.sqrt(2 / (9 * conv.in_channels))
            assert conv.weight.std().item() == pytest.approx(he, rel=0.25 if generated else 0.1)
            assert not conv.bias.any()


def test_refused_residual_networks():
    with pytest.raises(ValueError, match="generator must make kernels of 3x3"):
        WideResNet(generator=TileHypernetwork(kernel_size=5))
    with pytest.raises(ValueError, match="width must be at least 1"):
        WideResNet(0)
