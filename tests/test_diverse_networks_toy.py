"""Deutsch's toy problem: the landscape, the entropy's constants, training, checkpoints, and the commands."""

import csv
import json
import math

import pytest
import torch

from hyperfast import cli
from hyperfast.experiments import checkpoint
from hyperfast.experiments.diverse_networks.toy.config import PRESETS, Config, Evaluation
from hyperfast.experiments.diverse_networks.toy.mixture import DEVIATIONS, MEANS, PROBABILITIES, value
from hyperfast.experiments.diverse_networks.toy.train import build, entropy, train

CPU = torch.device("cpu")
TINY = Config(steps=6, log_every=2, checkpoint_every=2)


@pytest.fixture(autouse=True)
def _one_thread():
    """So little work takes longer when threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_landscape():
    """f at a point, by the definition; far from every mean it vanishes."""
    x, y = 0.3, -0.7
    expected = sum(
        p * 2 * math.pi * s**2 * math.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * s**2))
        for (a, b), s, p in zip(MEANS, DEVIATIONS, PROBABILITIES, strict=True)
    )
    got = value(torch.tensor([[x, y], [90.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([expected, 0.0], dtype=torch.float64))


def test_entropy_has_the_constants_of_the_papers_code():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 5.0], [10.0, 5.0], [-2.0, 0.0]], dtype=torch.float64)
    distances = [2.0, 1.0, 1.0, 7.0, 2.0]
    euler, psi = 0.5772156649015329, torch.digamma(torch.tensor(5.0, dtype=torch.float64)).item()
    constants = psi + euler + 0.5 * math.log(math.pi) - math.lgamma(1.5)
    expected = sum(math.log(math.sqrt(d * d + 1e-7) + 1e-7) for d in distances) / 5 + constants
    assert entropy(points).item() == pytest.approx(expected, rel=1e-12)
    torch.autograd.gradcheck(entropy, points.requires_grad_())


def test_entropy_of_equal_points_is_finite():
    points = torch.zeros(3, 2, requires_grad=True)
    entropy(points).backward()
    assert points.grad.isfinite().all()


def test_training_finds_high_ground(tmp_path):
    config = Config(steps=800, log_every=25)
    train(config, tmp_path, CPU)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    mean = lambda name, some: sum(float(row[name]) for row in some) / len(some)
    assert mean("loss", rows[-10:]) < mean("loss", rows[:3]) - 1
    assert mean("value", rows[-10:]) > 0.1


def test_21_resumed_training_is_the_same(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(TINY, whole, CPU)
    train(Config(steps=3, log_every=2, checkpoint_every=2), parts, CPU)
    assert train(TINY, parts, CPU, resume=True) == 6
    for folder in (whole, parts):
        assert [row["step"] for row in csv.DictReader((folder / "metrics.csv").open())][-1] == "6"
    states = [checkpoint.load(folder / "checkpoint.safetensors")[0] for folder in (whole, parts)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_21_a_checkpoint_of_another_config_is_refused(tmp_path):
    train(TINY, tmp_path, CPU)
    with pytest.raises(ValueError, match="points"):
        train(Config(steps=8, points=7), tmp_path, CPU, resume=True)
    with pytest.raises(ValueError, match="--resume"):
        train(TINY, tmp_path, CPU)


def test_hypernetwork_and_settings_are_the_papers():
    hypernetwork, optimizer = build(PRESETS["paper"], CPU)
    assert [tuple(p.shape) for p in hypernetwork.parameters()] == [
        (30, 1), (30,), (10, 30), (10,), (10, 10), (10,), (2, 10), (2,),
    ]  # fmt: skip
    assert isinstance(optimizer, torch.optim.Adam)
    with pytest.raises(ValueError, match=r"config\.points must be at least 2"):
        Config(points=1)
    with pytest.raises(ValueError, match=r"config\.evaluation\.points"):
        Evaluation(points=1)


def test_commands(tmp_path, capsys):
    run = ["diverse_networks/toy", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["train", *run, "--config.steps", "20", "--config.log-every", "5"]) == 0
    checkpoint_file = str(tmp_path / "checkpoint.safetensors")
    assert cli.main(["evaluate", *run, "--checkpoint", checkpoint_file, "--evaluation.points", "30"]) == 0
    assert len(list(csv.DictReader((tmp_path / "path.csv").open()))) == 30
    assert len(list(csv.DictReader((tmp_path / "peaks.csv").open()))) == len(MEANS)
    assert json.loads((tmp_path / "evaluation.json").read_text())["step"] == 20
    for name in ("points", "profile", "training"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    capsys.readouterr()
    sampling = ["sample", "diverse_networks/toy", "--checkpoint", checkpoint_file, "--members", "3"]
    assert cli.main([*sampling, "--out", str(tmp_path / "theta.safetensors")]) == 1
    assert "not networks" in capsys.readouterr().err
