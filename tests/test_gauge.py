"""Gauge fixing: the networks stay the same, and equivalent weights become equal."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import hyperfast as hf
from hyperfast.models.targets import deutsch_mnist, hypergan_mnist
from hyperfast.reference.gauge import fix_gauge

F64 = torch.float64


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.LeakyReLU(0.3), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 4))


def cnn():
    """A convolution whose pool is a stage of its own, an average pool, and Flatten: channels become blocks."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1), nn.Dropout(0.5),
        nn.Conv2d(3, 4, 3, bias=False), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Identity(), nn.ReLU(),
        nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


CASES = {
    "mlp": (mlp, (5,)),
    "cnn": (cnn, (2, 16, 16)),
    "deutsch": (deutsch_mnist, (1, 28, 28)),
    "hypergan": (hypergan_mnist, (1, 28, 28)),
}


def case(name: str, networks: int = 3, inputs: int = 4):
    template, shape = CASES[name]
    net = hf.nn.TargetNet(template()).eval()
    theta = 3 * net.init(networks).to(F64)
    return net, theta, torch.randn(networks, inputs, *shape, dtype=F64)


@pytest.mark.parametrize("name", CASES)
def test_class_probabilities_do_not_change(name):
    net, theta, x = case(name)
    before, after = net(x, theta), net(x, fix_gauge(theta, net.plan, eps=0))
    torch.testing.assert_close(after.softmax(-1), before.softmax(-1), rtol=1e-10, atol=1e-12)
    same_outputs = net(x, fix_gauge(theta, net.plan, logits=False))  # with an eps: the same s in both places
    torch.testing.assert_close(same_outputs, before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("eps", "tolerance"), [(0, 1e-12), (1e-12, 1e-5)])  # eps / s^2
@pytest.mark.parametrize("name", CASES)
def test_filters_have_the_norm_of_their_size(name, eps, tolerance):
    net, theta, _ = case(name)
    weights = net.unflatten(fix_gauge(theta, net.plan, eps=eps))
    layers = [entry.name.removesuffix(".weight") for entry in net.plan.layout if entry.name.endswith("weight")]
    for layer in layers[:-1]:
        parts = [weights[f"{layer}.weight"].flatten(2)]
        if f"{layer}.bias" in weights:
            parts.append(weights[f"{layer}.bias"].unsqueeze(2))
        filters = torch.cat(parts, 2)
        squares = filters.square().sum(2)
        torch.testing.assert_close(squares, torch.full_like(squares, filters.shape[2]), rtol=tolerance, atol=0)
    last = weights.get(f"{layers[-1]}.bias")
    if last is not None:
        assert last.sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_equivalent_weights_become_equal(name):
    """Filters scaled by hand, layer by layer, and a number added to the last bias."""
    net, theta, x = case(name)
    weights = {key: value.clone() for key, value in net.unflatten(theta).items()}
    layers = [key.removesuffix(".weight") for key in weights if key.endswith("weight")]
    for layer, following in pairwise(layers):
        factor = 0.2 + 3 * torch.rand(weights[f"{layer}.weight"].shape[:2], dtype=F64)
        channels = factor.shape[1]
        weights[f"{layer}.weight"] *= factor.view(*factor.shape, *[1] * (weights[f"{layer}.weight"].dim() - 2))
        if f"{layer}.bias" in weights:
            weights[f"{layer}.bias"] *= factor
        columns = weights[f"{following}.weight"]
        blocks = columns.reshape(*columns.shape[:2], channels, -1) / factor[:, None, :, None]
        weights[f"{following}.weight"] = blocks.reshape(columns.shape)
    if f"{layers[-1]}.bias" in weights:
        weights[f"{layers[-1]}.bias"] += 7.0
    other = net.flatten(weights)
    torch.testing.assert_close(net(x, other).softmax(-1), net(x, theta).softmax(-1), rtol=1e-9, atol=1e-12)
    fixed, also = (fix_gauge(t, net.plan, eps=0) for t in (theta, other))
    assert (theta - other).abs().max() > 0.1
    torch.testing.assert_close(also, fixed, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fix_gauge(fixed, net.plan, eps=0), fixed, rtol=1e-12, atol=1e-13)


def test_float32_and_a_dead_filter():
    """A filter of zeros stays zero, what reads it stays finite, and so does the gradient."""
    net, _, x = case("mlp")
    theta = net.init(3)
    net.unflatten(theta)["0.weight"][:, 2] = 0
    net.unflatten(theta)["0.bias"][:, 2] = 0
    theta.requires_grad_()
    fixed = fix_gauge(theta, net.plan)
    assert net.unflatten(fixed)["0.weight"][:, 2].abs().max() == 0
    torch.testing.assert_close(net(x.float(), fixed).softmax(-1), net(x.float(), theta).softmax(-1))
    fixed.square().sum().backward()
    assert theta.grad.isfinite().all()


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_gradients(name, logits):
    net, theta, _ = case(name, networks=2)
    theta = theta.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: fix_gauge(t, net.plan, logits), theta, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda t: fix_gauge(t, net.plan, logits), theta, fast_mode=True)


def test_no_networks_and_a_single_layer():
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(3, 2)))
    assert fix_gauge(net.init(0), net.plan).shape == (0, 8)
    theta = net.init(2)
    fixed = fix_gauge(theta, net.plan)
    assert torch.equal(fixed[:, :6], theta[:, :6])
    assert torch.equal(fix_gauge(theta, net.plan, logits=False), theta)


def plan_of(*layers):
    return hf.nn.TargetNet(nn.Sequential(*layers)).plan


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)], "layer '0' has the activation tanh"),
        ([nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ELU(), nn.Linear(4, 2)], r"layer '2' has the activation elu"),
        ([nn.Linear(3, 4), nn.ReLU(), nn.Sigmoid(), nn.Linear(4, 2)], "layer '2' has the activation sigmoid"),
        ([nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(64, 2)], "layer '0' has the activation gelu"),
        ([nn.Linear(3, 4), hf.nn.PerTargetNorm(4), nn.ReLU(), nn.Linear(4, 2)], "layer '1' .*norm.* symmetry"),
        ([nn.Linear(3, 4), hf.nn.Residual(nn.Sequential(nn.Linear(4, 4))), nn.Linear(4, 2)], "layer '1' .*symmetry"),
        ([hf.nn.Residual(nn.Sequential(nn.Linear(3, 3))), nn.Linear(3, 2)], "layer '0' .*symmetry"),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 2)], "layer '2' .*needs a Flatten"),
        ([nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.ReLU()], "logits=True .*layer '2' .*relu"),
        ([nn.Linear(3, 4), nn.Identity(), nn.Linear(4, 2), nn.Dropout(), nn.Tanh()], "logits=True .*'2' .*tanh"),
    ],
)  # fmt: skip
def test_networks_without_the_symmetry_are_refused(layers, words):
    plan = plan_of(*layers)
    with pytest.raises(ValueError, match=words):
        fix_gauge(torch.zeros(1, plan.num_weights), plan)


def test_what_follows_the_last_layer_does_not_matter_to_the_scales():
    net = hf.nn.TargetNet(nn.Sequential(hf.nn.Cos(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Tanh()))
    theta, x = net.init(2).to(F64), torch.randn(5, 3, dtype=F64)
    fixed = fix_gauge(theta, net.plan, logits=False)
    torch.testing.assert_close(net(x, fixed, shared=True), net(x, theta, shared=True))
    with pytest.raises(ValueError, match="theta must be"):
        fix_gauge(theta[:, 1:], net.plan)
