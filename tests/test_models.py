"""The hypernetwork, its noise, the embedded digits, and the entropy of its loss."""

import math

import pytest
import torch
from torch import nn

import hyperfast as hf
from hyperfast.data import load_digits
from hyperfast.models import FilterHypernetwork, NoiseStream, deutsch_hypernetwork, targets
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


def test_deutschs_hypernetwork_has_the_papers_sizes():
    """Table 2, and the 2,400 gammas and betas of batch norm that its total counts."""
    net = hf.nn.TargetNet(targets.deutsch_mnist())
    hypernetwork = deutsch_hypernetwork(net)
    count = lambda module, kind: sum(
        p.numel() for m in module.modules() if isinstance(m, kind) for p in m.parameters(recurse=False)
    )
    assert net.num_weights == 20_018
    assert count(hypernetwork.extractor, nn.Linear) == 436_500
    assert [count(g, nn.Linear) for g in hypernetwork.generators] == [3_240, 91_600, 90_000, 9_900]
    assert count(hypernetwork, nn.BatchNorm1d) == 2_400
    assert sum(p.numel() for p in hypernetwork.parameters()) == 633_640
    assert hypernetwork.filters == (32, 16, 8, 1)
    assert hypernetwork(2 * torch.rand(3, 300) - 1).shape == (3, 20_018)


def test_deutschs_hypernetwork_is_initialised_and_normalised_as_his():
    hypernetwork = deutsch_hypernetwork(hf.nn.TargetNet(targets.deutsch_mnist()))
    for part in (hypernetwork.extractor, *hypernetwork.generators):
        kinds = [type(layer) for layer in part]
        assert kinds == [nn.Linear, nn.LeakyReLU, nn.BatchNorm1d] * 2 + [nn.Linear]
        for layer in part:
            if isinstance(layer, nn.Linear):
                std = 0.1 / layer.in_features**0.5
                assert layer.bias is None
                assert layer.weight.abs().max() <= 2 * std  # truncated at two standard deviations, as TensorFlow does
                assert 0.8 * std < layer.weight.std() < 0.96 * std
            elif isinstance(layer, nn.BatchNorm1d):
                assert (layer.eps, 1 - layer.momentum) == (1e-7, 0.98)
            else:
                assert layer.negative_slope == 0.05
    # Statistics over noise and filters alike: every hidden feature of a batch is centred, of unit variance.
    hidden = hypernetwork.generators[0][:3](torch.randn(4, 32, 15).flatten(0, 1))
    torch.testing.assert_close(hidden.mean(0), torch.zeros(40), rtol=0, atol=1e-5)
    torch.testing.assert_close(hidden.var(0, correction=0), torch.ones(40), rtol=1e-3, atol=0)


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


def test_entropy_with_sums_of_absolute_differences():
    """By hand: row 1 is nearest to row 0 in the plane, row 2 in absolute differences."""
    theta = torch.tensor([[0.0, 0, 0], [2.5, 2.5, 0], [0, 0, 4], [50, 0, 0]], dtype=torch.float64)
    assert nearest_neighbor(theta)[1].tolist() == [1, 0, 0, 1]
    distance, index = nearest_neighbor(theta, p=1)
    assert index.tolist() == [2, 0, 0, 0]
    assert distance.tolist() == [4, 5, 4, 50]
    psi = torch.digamma(torch.tensor(4.0, dtype=torch.float64)).item()
    expected = psi + 7 * (2 * math.log(4) + math.log(5) + math.log(50)) / 4
    assert math.isclose(nn_entropy(theta, 7, p=1, eps=0).item(), expected)
    assert torch.autograd.gradcheck(
        lambda t: nn_entropy(t, p=1), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    )
    with pytest.raises(ValueError, match="p must be 1 or 2"):
        nearest_neighbor(theta, p=3)
