"""The analyses of generated networks against their definitions."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from made_up import digits
from torch.func import functional_call

from hyperfast.data import Labelled
from hyperfast.experiments import filters
from hyperfast.experiments.checkpoint import config_from
from hyperfast.experiments.diverse_networks.analysis import adversarial, paths, scatter
from hyperfast.experiments.diverse_networks.analysis.config import Evaluation
from hyperfast.experiments.diverse_networks.analysis.filters import slices
from hyperfast.experiments.experiment import Trained
from hyperfast.models import NoiseStream, targets
from hyperfast.nn import TargetNet

NET = TargetNet(targets.deutsch_mnist())


def trained(scale=0.3, size=7):
    """A generator that is a random linear map, so that both kinds of path differ."""
    mean = NET.init(1, torch.Generator().manual_seed(0))
    spread = scale * NET.init(size, torch.Generator().manual_seed(1))
    noise = NoiseStream(size, 3)
    return Trained.of_noise(NET, noise, lambda z: mean + z.square() @ spread, 0)


def images(count=12):
    pixels, labels = digits(count, 5)
    return Labelled(torch.from_numpy(pixels).unsqueeze(1).float() / 255, torch.from_numpy(labels).long())


def logits(theta, x):
    """theta [P], x [N,1,28,28]: torch's own layers."""
    template = targets.deutsch_mnist()
    return functional_call(template, {k: v[0] for k, v in NET.unflatten(theta[None]).items()}, (x,))


def correctly_labelled(generator, count=12):
    """Images with the label that most of the generator's networks give them, so that attacks have what to attack."""
    data = images(count)
    theta = generator.sampler(torch.arange(40))
    votes = torch.stack([logits(t, data.images).argmax(1) for t in theta])
    return Labelled(data.images, votes.mode(0).values)


# ---- settings ---------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers():
    e = Evaluation()
    assert (e.filter_samples, e.scatter_networks, e.scatter_components) == (25, 3_000, 6)
    assert (e.path_pairs, e.path_points, e.adversarial_networks) == (10, 40, 100)
    assert e.adversarial_levels == tuple(range(0, 60, 2))


def test_settings_that_make_no_sense_are_refused():
    for name, value in (("scatter_networks", 1), ("path_points", 1), ("adversarial_images", 0), ("path_pairs", 0)):
        with pytest.raises(ValueError, match=rf"config.evaluation.{name} must be at least"):
            Evaluation(**{name: value})
    with pytest.raises(ValueError, match="scatter_components must be at most scatter_networks, 4; got 6"):
        Evaluation(scatter_networks=4)
    for levels in ((), (0, 2, 2), (-1, 3)):
        with pytest.raises(ValueError, match="adversarial_levels must rise"):
            Evaluation(adversarial_levels=levels)


def test_a_checkpoint_from_before_an_analysis_was_there_has_its_defaults(tmp_path):
    old = {"networks": 9, "ensemble_sizes": [3], "repeats": 2, "images": None, "seed": 4}
    assert config_from(Evaluation, old, tmp_path) == Evaluation(networks=9, ensemble_sizes=(3,), repeats=2, seed=4)
    assert config_from(Evaluation, json.loads(json.dumps(asdict(Evaluation()))), tmp_path) == Evaluation()
    with pytest.raises(ValueError, match="its configuration differs in colour"):
        config_from(Evaluation, {**old, "colour": 1}, tmp_path)


# ---- filters ----------------------------------------------------------------------------------------


def test_slices_are_the_filters_of_the_template():
    theta = NET.init(2, torch.Generator().manual_seed(0))
    weights, found = NET.unflatten(theta), list(slices(NET, theta).values())
    torch.testing.assert_close(found[1][1], weights["0.weight"][1, 1, 0])
    torch.testing.assert_close(found[2][0], weights["3.weight"][0, 0, 0])
    torch.testing.assert_close(found[3][0], weights["7.weight"][0, 0].reshape(16, 7, 7)[0])


def test_spread_is_0_for_equal_networks_and_1_for_opposite_ones():
    theta = NET.init(1, torch.Generator().manual_seed(0))
    assert all(row["spread"] == 0 for row in filters.spread(NET, theta.repeat(4, 1)))
    rows = filters.spread(NET, torch.cat([theta, -theta]))
    assert [row["spread"] for row in rows] == pytest.approx([1] * 56)
    assert [sum(row["layer"] == layer for row in rows) for layer in (1, 2, 3, 4)] == [32, 16, 8, 0]


# ---- scatter ----------------------------------------------------------------------------------------


def test_parts_are_filters_and_layers_with_their_biases():
    of = scatter.parts(NET)
    sizes = {name: len(columns) for name, columns in of.items()}
    assert sizes == {
        "layer1_filter1": 26, "layer1": 832, "layer2_filter1": 801, "layer2": 12_816,
        "layer3_filter1": 785, "layer3": 6_280, "layer4": 90, "network": 20_018,
    }  # fmt: skip
    weights = NET.unflatten(torch.arange(20_018.0)[None])
    first = torch.cat([weights["3.weight"][0, 0].flatten(), weights["3.bias"][0, :1]])
    assert torch.equal(of["layer2_filter1"].float(), first)


@pytest.mark.parametrize("features", [30, 1_500])
def test_components_are_those_of_the_covariance(features):
    draws = torch.Generator().manual_seed(0)
    scales = torch.cat([torch.tensor([9.0, 6.0, 4.0]), torch.full((features - 3,), 0.05)])
    weights = torch.randn(400, features, generator=draws) * scales + 5
    weights[:, 0] = (torch.rand(400, generator=draws) - 0.5) * 40
    points, told = scatter.components(weights, 3, 0)
    u, s, _ = torch.linalg.svd((weights - weights.mean(0)).double(), full_matrices=False)
    np.testing.assert_allclose(np.abs(points), (u * s)[:, :3].abs(), rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(told["variance"], s[:3].square() / 399, rtol=1e-4)
    assert told["kurtosis"][0] == pytest.approx(-1.2, abs=0.15)  # uniform
    assert abs(told["kurtosis"][1]) < 0.6


# ---- paths ------------------------------------------------------------------------------------------


def test_paths_have_the_same_ends_and_differ_between():
    generator = trained()
    direct, interpolated = paths.walk(generator, 2, torch.linspace(0, 1, 5))
    ends = generator.sampler(torch.tensor([4, 5]))
    z = generator.noise(torch.tensor([4, 5]))
    for path in (direct, interpolated):
        torch.testing.assert_close(path[[0, -1]], ends)
    torch.testing.assert_close(direct[1], 0.75 * ends[0] + 0.25 * ends[1])
    torch.testing.assert_close(interpolated[1:2], generator.generate((0.75 * z[0] + 0.25 * z[1])[None]))
    assert (direct[2] - interpolated[2]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="paths need a generator of networks that takes any noise"):
        paths.walk(Trained(NET, generator.sampler, 0), 0, torch.linspace(0, 1, 3))


def test_half_way_is_the_middle_of_odd_and_even_points():
    odd = [(torch.tensor([1.0, 0.5, 0.8]), torch.tensor([1.0, 0.9, 0.8]))]
    assert paths.summary(odd)["direct"] == pytest.approx({"ends": 0.9, "middle": 0.5, "lowest": 0.5})
    even = [(torch.tensor([1.0, 0.5, 0.7, 1.0]), torch.ones(4)), (torch.ones(4), torch.ones(4))]
    assert paths.summary(even)["direct"] == pytest.approx({"ends": 1.0, "middle": 0.8, "lowest": 0.75})


# ---- adversarial examples ---------------------------------------------------------------------------


def test_directions_are_those_of_the_targets_probability():
    generator, data = trained(), images(40)
    numbers = torch.arange(100, 140)
    theta = generator.sampler(numbers)
    signs, right = adversarial.directions(NET, theta, data, numbers, seed=1)
    chosen = []
    for i, number in enumerate(numbers):
        offset = adversarial.generator_at(1, int(number))
        target = (data.labels[i] + torch.randint(1, 10, (), generator=offset)) % 10
        chosen.append(int((target - data.labels[i]) % 10))
        x = data.images[i : i + 1].clone().requires_grad_()
        y = logits(theta[i], x)
        (gradient,) = torch.autograd.grad(y.softmax(1)[0, target], x)
        sure = gradient[0].abs() > 1e-4 * gradient.abs().max()
        assert torch.equal(signs[i][sure], gradient[0].sign()[sure])
        assert bool(right[i]) == bool(y.argmax() == data.labels[i])
    assert 0 not in chosen
    assert len(set(chosen)) > 5


def test_attacks_are_those_written_out():
    """Image by image with torch's layers: who is attacked, by whom it is voted on, and at which levels."""
    generator = trained()
    data = correctly_labelled(generator)
    settings = Evaluation(adversarial_networks=4, adversarial_levels=(0, 60, 240))
    found = iter(adversarial.attack(generator, data, 3, settings))
    attacked = 0
    for i in range(len(data)):
        number = 3 + i
        own = generator.sampler(torch.tensor([number * 5]))
        sign, right = adversarial.directions(NET, own, data[i : i + 1], torch.tensor([number]), settings.seed)
        if not right:
            continue
        attacked += 1
        x = torch.cat([data.images[i : i + 1] + k / 255 * sign for k in settings.adversarial_levels])
        voters = generator.sampler(torch.arange(number * 5 + 1, number * 5 + 5))
        votes = torch.zeros(3, 10)
        for theta in voters:
            votes[torch.arange(3), logits(theta, x).argmax(1)] += 1
        fooled, outvoted = next(found)
        assert torch.equal(fooled, logits(own[0], x).argmax(1) != data.labels[i])
        assert torch.equal(outvoted, votes.argmax(1) != data.labels[i])
        assert not fooled[0]
    assert next(found, None) is None
    assert attacked > 2


def test_success_between_two_levels_is_on_the_line():
    sizes = np.array([0.0, 0.08, 0.12])
    told = adversarial.summary(sizes, {"single": np.array([0.0, 0.4, 0.8])})
    assert told == {"single": {"0.1": pytest.approx(0.6)}}


def test_without_a_network_that_is_right_there_is_nothing_to_attack(tmp_path):
    generator, data = trained(), images(4)
    theta = generator.sampler(torch.arange(0, 20, 5))
    given = torch.stack([logits(theta[i], data.images[i : i + 1]).argmax() for i in range(4)])
    settings = Evaluation(adversarial_networks=4)
    (written,) = adversarial.run(generator, Labelled(data.images, (given + 1) % 10), settings, tmp_path)
    assert json.loads(written.read_text()) == {"images": 4, "attacked": 0, "ensemble_of": 4}
    assert len(adversarial.run(generator, Labelled(data.images, given), settings, tmp_path)) == 3
    told = json.loads(written.read_text())
    assert told["attacked"] == 4
    assert told["single"].keys() == told["ensemble"].keys() == {"0.1", "0.2"}
