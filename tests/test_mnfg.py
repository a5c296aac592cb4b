"""Multiplicative normalizing flows: densities, samples, training, and the commands."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from made_up import write_mnist
from torch.distributions import Normal, kl_divergence

from hyperfast import cli
from hyperfast.data import load_mnist
from hyperfast.experiments import checkpoint
from hyperfast.experiments.diverse_networks.analysis.config import Evaluation
from hyperfast.experiments.diverse_networks.mnfg.config import NAME, PRESETS, Config
from hyperfast.experiments.diverse_networks.mnfg.train import build, load, train, train_step
from hyperfast.experiments.training import read_table
from hyperfast.models import MaskedFlow, MultiplicativeFlows, targets
from hyperfast.models.multiplicative_flows import gaussian_divergence
from hyperfast.nn import TargetNet
from hyperfast.reference.gauge import fix_gauge

CPU = torch.device("cpu")
TINY = Config(
    images=20, networks=4, epochs=1, held_out=40, validate_every=5, validation_networks=3, log_every=1, checkpoint_every=4,
    evaluation=Evaluation(
        networks=7, ensemble_sizes=(2, 3), scatter_networks=9, path_pairs=1, path_points=3, adversarial_images=40,
        adversarial_networks=3,
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """So little work takes longer when threads wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("data"), 300, 60)


@pytest.fixture(scope="module")
def parts(root):
    return load_mnist(root).split(40)


@pytest.fixture(scope="module")
def flows():
    torch.manual_seed(0)
    return MultiplicativeFlows(TargetNet(targets.deutsch_mnist()))


def shaken(module):
    """Away from its initial values, in which biases are zero."""
    torch.manual_seed(1)
    for p in module.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return module.double()


def by_jacobian(flow, z, masks):
    """log |det| of flow at z [D], masks [steps,1,D]."""
    jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None], masks)[0][0], z)
    return torch.linalg.slogdet(jacobian).logabsdet


# ---- densities --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_log_det_is_that_of_the_jacobian(steps):
    flow = shaken(MaskedFlow(6, 5, steps))
    z = torch.randn(4, 6, dtype=torch.float64)
    masks = torch.randint(0, 2, (steps, 4, 6)).double()
    out, log_det = flow(z, masks)
    for i in range(4):
        torch.testing.assert_close(log_det[i], by_jacobian(flow, z[i], masks[:, i : i + 1]))
    if steps == 1:
        assert torch.equal(out[masks[0] == 1], z[masks[0] == 1])
        assert (out[masks[0] == 0] != z[masks[0] == 0]).all()


def test_the_gaussian_part_is_torchs():
    mean, log_std = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(torch.zeros(50).double(), torch.ones(50).double()))
    torch.testing.assert_close(gaussian_divergence(mean, log_std), expected)


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_log_r_is_a_density_of_z(index):
    """By the change of variables, with the Jacobian from autograd, of a convolution's and of a linear layer's z."""
    template = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(12, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3),
    )  # fmt: skip
    layer = shaken(MultiplicativeFlows(TargetNet(template), 7, 8)).layers[index]
    z, _, weight, bias = layer.draw(torch.randn(3, layer.noise_size, dtype=torch.float64))
    masks = layer.masks(3, torch.Generator().manual_seed(5)).double()
    assert masks.unique().tolist() == [0, 1]
    found = layer.log_r(z, weight, bias, masks)
    for i in range(3):
        w, c = weight[i], layer.r_reads
        a = torch.tanh(c @ w + bias[i] @ c if layer.is_convolution else w @ c).mean()
        seen, _ = layer.flow_r(z[i : i + 1], masks[:, i : i + 1])
        density = Normal(layer.r_mean * a, (-0.5 * layer.r_log_precision * a).exp()).log_prob(seen[0]).sum()
        torch.testing.assert_close(found[i], density + by_jacobian(layer.flow_r, z[i], masks[:, i : i + 1]))


def test_the_bound_is_the_gaussian_divergence_where_z_is_known():
    """Without flows, and z of next to no variance that r knows of: q(z) and r(z|W) nearly cancel."""
    layer = (
        MultiplicativeFlows(TargetNet(torch.nn.Sequential(torch.nn.Linear(4, 3))), q_steps=0, r_steps=0)
        .double()
        .layers[0]
    )
    with torch.no_grad():
        layer.r_mean.zero_(), layer.r_log_precision.zero_()  # r: standard normal
        layer.z_mean.zero_(), layer.z_log_var.zero_()  # and so is q
        layer.mean.zero_()  # so that z plays no part
        layer.bias_mean.normal_()
        drawn = layer.draw(torch.randn(20_000, layer.noise_size, dtype=torch.float64))
        kl = layer.divergence(*drawn)
    known = (
        gaussian_divergence(layer.mean, layer.log_std).sum()
        + gaussian_divergence(layer.bias_mean, layer.bias_log_std).sum()
    )
    assert kl.mean().item() == pytest.approx(known.item(), abs=6 * kl.std().item() / 20_000**0.5 + 1e-9)


# ---- samples ----------------------------------------------------------------------------------------


def test_counts(flows):
    scales = 32 + 16 + 784 + 8  # filters of the convolutions, inputs of the linear layers
    assert flows.noise_size == 3 * scales + 20_018
    of_flows = sum(
        2 * (d * 50 + 50 + 2 * (50 * d + d)) + 2 * (d * 100 + 100 + 2 * (100 * d + d)) for d in (32, 16, 784, 8)
    )
    assert sum(p.numel() for p in flows.parameters()) == 2 * 20_018 + 5 * scales + of_flows == 808_156


def test_z_scales_filters_and_inputs(flows):
    noise = torch.randn(3, flows.noise_size)
    first, third = flows.layers[0], flows.layers[2]
    z, _, weight, bias = first.draw(noise.split(flows._sizes, 1)[0])
    with torch.no_grad():
        torch.testing.assert_close(weight, first.mean * z.unsqueeze(2), rtol=0, atol=6 * 1.3e-4)
        torch.testing.assert_close(bias, first.bias_mean * z, rtol=0, atol=6 * 0.0112)
        z, _, weight, _ = third.draw(noise.split(flows._sizes, 1)[2])
        torch.testing.assert_close(weight, third.mean * z.unsqueeze(1), rtol=0, atol=6 * 1.3e-4)


def test_samples_are_laid_out_as_theta(flows):
    net = TargetNet(targets.deutsch_mnist())
    noise = torch.randn(2, flows.noise_size)
    weights = net.unflatten(flows(noise))
    _, _, weight, bias = flows.layers[1].draw(noise.split(flows._sizes, 1)[1])
    torch.testing.assert_close(weights["3.weight"].flatten(2), weight)
    torch.testing.assert_close(weights["3.bias"], bias)
    torch.testing.assert_close(flows.draw(noise)[0], flows(noise))


def test_noise_depends_on_seed_and_index_alone(flows):
    noise = flows.noise(4)
    whole = noise(torch.arange(40))
    assert torch.equal(noise(torch.tensor([33, 2, 17])), whole[[33, 2, 17]])
    assert not torch.equal(flows.noise(5)(torch.arange(2)), whole[:2])
    assert abs(whole.mean()) < 0.01
    assert whole.std() == pytest.approx(1, abs=0.01)


def test_a_template_without_biases_is_refused():
    with pytest.raises(ValueError, match="every layer must have weights and a bias"):
        MultiplicativeFlows(TargetNet(targets.hypergan_mnist()))


# ---- training ---------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers():
    config = PRESETS["paper"]
    assert config == Config()
    assert (config.images, config.epochs, config.learning_rate, config.largest_deviation) == (100, 100, 1e-3, 0.5)
    assert (config.q_steps, config.r_steps, config.q_hidden, config.r_hidden) == (2, 2, 50, 100)
    assert config.steps(55_000) == 55_000
    with pytest.raises(ValueError, match=r"config.images must be a multiple of networks, 7; got 100"):
        Config(networks=7)


def test_training_reduces_the_loss_and_the_networks_learn(parts, tmp_path):
    config = replace(TINY, images=100, networks=10, epochs=75)  # 150 steps
    assert train(config, parts[0], parts[1], tmp_path, CPU) == 150
    rows = read_table(tmp_path / "metrics.csv")
    mean = lambda name, some: sum(float(row[name]) for row in some) / len(some)
    assert mean("loss", rows[-10:]) < mean("loss", rows[:10]) - 5
    assert mean("kl", rows[-10:]) < mean("kl", rows[:10])
    assert mean("cross_entropy", rows[-10:]) < 0.6 * mean("cross_entropy", rows[:10])


def test_the_loss_is_the_bound_per_image_and_deviations_stay_bounded(parts):
    net, flows, optimizer = build(replace(TINY, largest_deviation=1e-4), CPU)
    found = {
        k: float(v)
        for k, v in train_step(replace(TINY, largest_deviation=1e-4), net, flows, optimizer, parts[0], 0).items()
    }
    assert found["loss"] == pytest.approx(found["cross_entropy"] + found["kl"] / 260)
    assert all(layer.log_std.exp().max() <= 1.0001e-4 for layer in flows.layers)


def test_21_resumed_training_is_bitwise_the_same(parts, tmp_path):
    training, validation, _ = parts
    train(TINY, training, validation, tmp_path / "whole", CPU)

    def interrupt(step):
        if step == 6:
            signal.raise_signal(signal.SIGINT)

    assert train(TINY, training, validation, tmp_path / "parts", CPU, after_step=interrupt) == 6
    assert train(TINY, training, validation, tmp_path / "parts", CPU, resume=True) == 13
    a, b = (checkpoint.load(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    for name in ("metrics.csv", "validation.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_the_commands_end_to_end(root, tmp_path, capsys):
    run, data = tmp_path / "run", ["--data-root", str(root), "--device", "cpu"]
    training, validation, _ = load_mnist(root).split(40)
    train(TINY, training, validation, run, CPU)
    file = str(run / "checkpoint.safetensors")
    assert cli.main(["train", NAME, *data, "--preset", "small", "--config.held-out", "40", "--out", str(run)]) == 1
    assert "exists: go on from it with --resume" in capsys.readouterr().err.replace("\n", " ")
    assert cli.main(["evaluate", NAME, "--checkpoint", file, *data, "--figures", "all"]) == 0
    names = ["histogram_test", "ensembles_validation", "filters", "training", "paths", "adversarial", "scatter_network"]
    for name in names:
        assert (run / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert json.loads((run / "evaluation.json").read_text())["step"] == 13
    assert json.loads((run / "paths.json").read_text()).keys() == {"direct", "interpolated"}
    out = tmp_path / "theta.safetensors"
    assert cli.main(["sample", NAME, "--checkpoint", file, "--members", "5", "--out", str(out), "--seed", "3"]) == 0
    theta, generator = checkpoint.load(out)[0]["theta"], load(run / "checkpoint.safetensors", CPU, seed=3)
    torch.testing.assert_close(theta, generator.sampler(torch.arange(5)))
    torch.testing.assert_close(theta, fix_gauge(theta, generator.net.plan), rtol=1e-4, atol=1e-5)  # gauged already
