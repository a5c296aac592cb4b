"""The hypernetwork, its noise, the embedded digits, and the entropy of its loss."""

import math

import pytest
import torch
from torch import nn

import hyperfast as hf
from hyperfast.data import load_digits
from hyperfast.models import FilterHypernetwork, NoiseStream
from hyperfast.reference.nn_entropy import nearest_neighbor, nn_entropy


@pytest.fixture
def net():
    return hf.nn.TargetNet(
        nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    )


def test_filters_and_their_biases_land_where_theta_has_them(net):
    """Generators that output 1, 2, 3, ...: weights first, biases last, in every group."""
    hypernetwork = FilterHypernetwork(net, 7, (8,), 3, filters=[3, 4, 1])
    for generator in hypernetwork.generators:
        last = generator[-1]
        generator[-1] = type(
            "Count",
            (nn.Module,),
            {"forward": lambda self, h, n=last.out_features: torch.arange(1.0, n + 1).expand(len(h), n)},
        )()
    weights = net.unflatten(hypernetwork(torch.zeros(2, 7)))
    two_filters = torch.arange(1.0, 11).view(2, 5)
    assert torch.equal(weights["0.weight"], two_filters.repeat(3, 1).expand(2, 6, 5))
    assert torch.equal(weights["0.bias"], torch.tensor([11.0, 12]).repeat(3).expand(2, 6))
    assert torch.equal(weights["2.weight"], torch.arange(1.0, 7).expand(2, 4, 6))
    assert torch.equal(weights["4.weight"], torch.arange(1.0, 13).view(3, 4).expand(2, 3, 4))
    assert torch.equal(weights["4.bias"], torch.arange(13.0, 16).expand(2, 3))


def test_sizes_of_the_hypernetwork_are_checked(net):
    with pytest.raises(ValueError, match="4 groups do not divide a layer's 6 units"):
        FilterHypernetwork(net, filters=[4, 4, 1])
    with pytest.raises(ValueError, match="filters must have one entry per layer, 3; got 2"):
        FilterHypernetwork(net, filters=[6, 4])


def test_a_sampled_member_depends_on_its_index_alone(net):
    sampler = FilterHypernetwork(net, 7, (8,), 3).eval().sampler(seed=5)
    whole = sampler(torch.arange(600))
    for picks in (torch.tensor([0]), torch.tensor([599, 3, 255, 256]), torch.arange(250, 270)):
        torch.testing.assert_close(sampler(picks), whole[picks])


def test_noise_is_uniform_and_seeded():
    a, b = NoiseStream(50, 1)(torch.arange(1000)), NoiseStream(50, 2)(torch.arange(1000))
    assert not torch.equal(a, b)
    assert a.abs().max() <= 1
    assert abs(a.mean()) < 0.01
    assert abs(a.var() - 1 / 3) < 0.01


def test_digits():
    digits = load_digits(test=597)
    assert digits.train_images.shape == (1200, 64)
    assert digits.test_labels.shape == (597,)
    assert 0 <= digits.train_images.min() < digits.train_images.max() <= 1
    assert set(digits.test_labels.tolist()) == set(range(10))
    with pytest.raises(ValueError, match="test must lie between"):
        load_digits(test=1797)


def test_entropy_of_a_uniform_line():
    """N points d apart: psi(N) + log d, exactly; its gradient by finite differences."""
    theta = (0.25 * torch.arange(6.0, dtype=torch.float64)).unsqueeze(1)
    distance, index = nearest_neighbor(theta)
    assert distance.tolist() == [0.25] * 6
    assert index.tolist() == [1, 0, 1, 2, 3, 4]  # ties: the lowest index
    psi = torch.digamma(torch.tensor(6.0, dtype=torch.float64)).item()
    assert math.isclose(nn_entropy(theta, eps=0).item(), psi + math.log(0.25))
    assert math.isclose(nn_entropy(theta, dim=3, eps=0).item(), psi + 3 * math.log(0.25))
    assert torch.autograd.gradcheck(nn_entropy, torch.randn(5, 3, dtype=torch.float64, requires_grad=True))
    with pytest.raises(ValueError, match="at least two rows"):
        nn_entropy(torch.zeros(1, 3))
