"""HyperGAN of curves: points, training, bands, and the commands."""

import csv
import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from hyperfast import cli
from hyperfast.experiments import checkpoint
from hyperfast.experiments.hypergan.regression.config import NAME, PRESETS, Config, Evaluation
from hyperfast.experiments.hypergan.regression.evaluate import bands, summary
from hyperfast.experiments.hypergan.regression.train import build, load, noisy_points, train

CPU = torch.device("cpu")
TINY = Config(
    noise=8, code=8, hidden=32, networks=8, steps=250, units=20, pretraining_steps=3, pretraining_codes=20,
    generator_learning_rate=3e-3, log_every=5, checkpoint_every=50,
    evaluation=Evaluation(networks=(3, 6), points=13),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert train(TINY, folder, CPU) == 250
    return folder / "checkpoint.safetensors"


def test_the_defaults_are_the_papers():
    config = PRESETS["paper"]
    assert (config.noise, config.code, config.hidden, config.units, config.points) == (64, 64, 128, 100, 20)
    assert config.evaluation.networks == (10, 100, 1_000)
    net, model, _ = build(config, CPU)
    assert net.num_weights == 301
    assert [g[-1].out_features for g in model.generators] == [200, 101]


def test_points_are_the_cubic_and_noise():
    x, y = noisy_points(Config(points=20_000))
    noise = y - x**3
    assert (x.min() > -4, x.max() < 4, x.shape) == (True, True, (20_000, 1))
    assert x.std() == pytest.approx(8 / 12**0.5, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert noise.std() == pytest.approx(3, rel=0.02)


def test_networks_learn_the_curve(trained):
    rows = list(csv.DictReader((trained.parent / "metrics.csv").open()))
    first, last = (float(rows[at]["squared_error"]) for at in (0, -1))
    assert last < 0.2 * first
    x, found = torch.linspace(-4, 4, 9), load(trained, CPU, 1)
    of_all = found.net(x[:, None], found.sampler(torch.arange(6)))[:, :, 0]
    band = bands(found, x, (6,))[6]
    torch.testing.assert_close(band.mean, of_all.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(band.std, of_all.std(0), rtol=1e-3, atol=1e-4)
    (row,) = summary(x, {6: band}, 2.0)
    error = band.mean - x**3
    assert row["rms_error_inside"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-4)
    assert row["covered_inside"] == pytest.approx((error.abs() <= 2 * band.std).double().mean().item())


def test_21_resumed_training_is_bitwise_the_same(tmp_path):
    config = replace(TINY, steps=10, log_every=1, checkpoint_every=4)
    train(config, tmp_path / "whole", CPU)

    def interrupt(step):
        if step == 6:
            signal.raise_signal(signal.SIGINT)

    assert train(config, tmp_path / "parts", CPU, after_step=interrupt) == 6
    assert train(config, tmp_path / "parts", CPU, resume=True) == 10
    a, b = (checkpoint.load(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_the_commands_end_to_end(trained, tmp_path):
    assert cli.main(["evaluate", NAME, "--checkpoint", str(trained), "--out", str(tmp_path)]) == 0
    for name in ("bands", "training"):
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [row["networks"] for row in json.loads((tmp_path / "evaluation.json").read_text())["bands"]] == [3, 6]
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 5))
    what = [
        "--data",
        str(tmp_path / "x.npy"),
        "--members",
        "6",
        "--reduce",
        "mean,var",
        "--out",
        str(tmp_path / "y.npz"),
    ]
    assert cli.main(["predict", "--checkpoint", str(trained), *what, "--seed", "1"]) == 0
    found, band = np.load(tmp_path / "y.npz"), bands(load(trained, CPU, 1), torch.linspace(-1, 1, 5), (6,))[6]
    np.testing.assert_allclose(found["mean"][:, 0], band.mean, rtol=1e-4, atol=1e-4)
    np.save(tmp_path / "x.npy", np.zeros((5, 2)))
    assert cli.main(["predict", "--checkpoint", str(trained), *what]) == 1
