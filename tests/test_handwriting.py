"""Handwriting: the mixture density, lines of unequal length, training that resumes bitwise, samples."""

import json
import math
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from made_up import write_iam
from torch.distributions import Bernoulli, Categorical, MixtureSameFamily, MultivariateNormal

from hyperfast import cli
from hyperfast.data import load_handwriting, strokes_of
from hyperfast.experiments.hypernetworks.handwriting import density
from hyperfast.experiments.hypernetworks.handwriting import train as training
from hyperfast.experiments.hypernetworks.handwriting.config import PRESETS, Config, Evaluation
from hyperfast.experiments.hypernetworks.handwriting.evaluate import changes_over
from hyperfast.experiments.hypernetworks.handwriting.model import HandwritingModel
from hyperfast.experiments.loop import CHECKPOINT
from hyperfast.experiments.training import generator_at, read_table

CPU = torch.device("cpu")
TINY = Config(
    lines="iam_ondb", units=12, hyper_units=6, embedding=2, mixtures=3, min_length=20, batch=3, steps=6,
    learning_rate=1e-2, validate_every=3, checkpoint_every=2, log_every=1,
)  # fmt: skip


# ---- the density ------------------------------------------------------------------------------------


def oracle(outputs, points):
    """The same density by torch.distributions, in float64."""
    up, *parts = outputs.split([1] + [(outputs.shape[-1] - 1) // 6] * 6, -1)
    logits, mu_x, mu_y, s_x, s_y, r = parts
    s_x, s_y, rho = s_x.exp(), s_y.exp(), r.tanh()
    covariance = torch.stack([s_x**2, rho * s_x * s_y, rho * s_x * s_y, s_y**2], -1).unflatten(-1, (2, 2))
    gaussians = MultivariateNormal(torch.stack([mu_x, mu_y], -1), covariance)
    mixture = MixtureSameFamily(Categorical(logits=logits), gaussians)
    return mixture.log_prob(points[..., :2]) + Bernoulli(logits=up[..., 0]).log_prob(points[..., 2])


def random_outputs(*shape, mixtures=20, spread=1.0):
    outputs = spread * torch.randn(*shape, 6 * mixtures + 1, dtype=torch.float64)
    points = torch.randn(*shape, 3, dtype=torch.float64)
    points[..., 2] = (points[..., 2] > 0).double()
    return outputs, points


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("mixtures", [1, 20])
def test_density_is_that_of_torch_distributions(spread, mixtures):
    outputs, points = random_outputs(7, 5, mixtures=mixtures, spread=spread)
    outputs.requires_grad_()
    ours, theirs = density.log_density(outputs, points), oracle(outputs, points)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(value.sum(), outputs)[0] for value in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-7)


def test_float32_holds_near_degenerate_gaussians():
    """|rho| up to 1 - 1e-6, sigma down to 1e-3: float32 loses no more than rounding its own inputs does."""
    outputs, points = random_outputs(400, mixtures=4)
    outputs = outputs.float().double()  # the same values for both
    outputs[:, 21:25] = (torch.rand(400, 4) - 0.5).mul(14).float().double()
    outputs[:, 13:21] = -7 * torch.rand(400, 8).double()
    mean = outputs[:, 5].clone()
    points[:, 0] = mean + outputs[:, 13].exp() * points[:, 0]
    points[:, 1] = outputs[:, 9] + outputs[:, 17].exp() * points[:, 1]
    points, outputs = points.float().double(), outputs.float().double()
    exact = density.log_density(outputs, points)
    nudged = density.log_density(outputs, points * torch.tensor([1 + 1e-7, 1 - 1e-7, 1]))
    ours = density.log_density(outputs.float(), points.float())
    assert ours.dtype == torch.float32
    error, own = (ours - exact).abs() / (1 + exact.abs()), (nudged - exact).abs() / (1 + exact.abs())
    assert error.median() < 1e-5
    assert (error <= 20 * own + 1e-5).all()


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_gradients_are_finite_at_extreme_values(size):
    signs = torch.randint(0, 2, (500, 121)) * 2.0 - 1
    outputs = (size * signs).requires_grad_()
    points = torch.randn(500, 3) * 1e3
    points[:, 2] = (points[:, 2] > 0).float()
    value = density.log_density(outputs, points)
    value.sum().backward()
    assert value.isfinite().all()
    assert outputs.grad.isfinite().all()
    assert density.log_density(outputs.detach().bfloat16(), points).dtype == torch.float32


def test_draws_follow_the_density():
    """Means, deviations and correlation of many draws from one mixture, against torch.distributions."""
    outputs, _ = random_outputs(1, mixtures=2)
    drawn = density.draw(outputs.expand(40_000, -1), 0.0, torch.Generator().manual_seed(0))
    m = density.mixture_of(outputs)
    pi, mu, sigma = m.log_pi.exp()[0], m.mu[0], m.log_sigma[0].exp()
    mean = (pi * mu).sum(-1)
    covariance = torch.einsum("m,im,jm->ij", pi, mu - mean[:, None], mu - mean[:, None])
    cross = (pi * m.atanh_rho[0].tanh() * sigma[0] * sigma[1]).sum()
    covariance += torch.diag((pi * sigma**2).sum(-1)) + cross * torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    error = 6 * covariance.diagonal().max() / math.sqrt(40_000)
    assert (drawn[:, :2].mean(0) - mean).abs().max() < error
    assert (drawn[:, :2].T.cov() - covariance).abs().max() < 3 * error
    assert drawn[:, 2].mean() == pytest.approx(m.up.sigmoid().item(), abs=0.02)
    assert set(drawn[:, 2].unique().tolist()) <= {0.0, 1.0}
    one = torch.tensor([[0.0, 0, 0, 0, -1, 2, -1]]).expand(10_000, -1)  # sigma e^-1 and e^2, rho = tanh(-1)
    pair = density.draw(one, 0.0, torch.Generator().manual_seed(0))[:, :2]
    assert torch.corrcoef(pair.T)[0, 1] == pytest.approx(math.tanh(-1), abs=0.03)
    assert pair.std(0).log().tolist() == pytest.approx([-1, 2], abs=0.05)
    near = density.draw(outputs.expand(100, -1), 20.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(near[:, :2], mu[:, pi.argmax()].expand(100, 2), rtol=0, atol=1e-6)


# ---- model and training -----------------------------------------------------------------------------


def test_parameters_of_the_presets():
    """Table 5, in millions. Of the layer-normalised LSTM of 1000 units it has 4.14; the equations give 4.147."""
    expected = {
        "plain_lstm": 3.36, "plain_lstm_three_layers": 3.26, "lstm": 3.36, "lstm_1000": 4.14, "lstm_three_layers": 3.26,
        "lstm_two_layers": 5.16, "layer_norm_lstm": 3.37, "layer_norm_lstm_1000": 4.15, "layer_norm_hyper_lstm": 3.95,
        "paper": 3.94,
    }  # fmt: skip
    assert expected.keys() == PRESETS.keys() - {"small"}
    found = {}
    for name in expected:
        with torch.device("meta"):
            found[name] = sum(p.numel() for p in HandwritingModel(PRESETS[name]).parameters())
    assert {name: round(count / 1e6, 2) for name, count in found.items()} == expected
    assert (
        found["paper"]
        == found["lstm"] + 4 * 128 * (900 + 3 + 128 + 1) + 12 * 128 * 4 + 8 * 4 + 12 * 4 * 900
        == 3_941_181
    )


@pytest.fixture
def handwriting(tmp_path):
    return load_handwriting("iam_ondb", write_iam(tmp_path / "made_up"))


@pytest.mark.parametrize("cell", ["lstm", "layer_norm_lstm", "hyper_lstm"])
def test_lines_side_by_side_are_as_alone(handwriting, cell):
    """Neither the order of the lines nor what is padded enters."""
    model, _ = training.build(replace(TINY, cell=cell, layers=2), CPU)
    model.measure(handwriting.train)
    model.eval()
    lines = handwriting.train[:5]
    assert len({len(line) for line in lines}) > 2
    together = model.log_loss(lines)
    alone = torch.stack([model.log_loss([line])[0] for line in lines])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(model.log_loss(lines[::-1]), alone.flip(0))
    by_hand = []
    for line in lines:
        points = model.standardised(line)
        outputs, _ = model(points[:-1].unsqueeze(1))
        by_hand.append(-oracle(outputs[:, 0].double(), points[1:].double()).sum())
    torch.testing.assert_close(alone.double(), torch.stack(by_hand), rtol=1e-5, atol=1e-4)
    assert model.mean_log_loss(lines) == pytest.approx(alone.mean().item(), rel=1e-5)


def test_gradients_ignore_the_company(handwriting):
    model, _ = training.build(replace(TINY, recurrent_dropout=0.0, output_dropout=0.0), CPU)
    lines = handwriting.train[:3]
    gradient = lambda batch: torch.autograd.grad(model.log_loss(batch).sum(), list(model.parameters()))
    summed = [sum(parts) for parts in zip(*(gradient([line]) for line in lines), strict=True)]
    for together, apart in zip(gradient(lines), summed, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_offsets_are_standardised(handwriting):
    model, _ = training.build(TINY, CPU)
    model.measure(handwriting.train)
    offsets = torch.cat([model.standardised(line)[1:] for line in handwriting.train])
    torch.testing.assert_close(offsets[:, :2].mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(offsets[:, :2].std(0, correction=0), torch.ones(2))
    assert set(offsets[:, 2].tolist()) == {0.0, 1.0}


def test_batches_are_different_lines_scaled_anew(handwriting):
    lines = list(handwriting.train)
    batches = [training.drawn_batch(TINY, lines, generator_at(0, step)) for step in (0, 1, 0)]
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[2], strict=True))
    factors = []
    for drawn in batches[0] + batches[1]:
        ratios = [(drawn[:, :2].norm() / line[:, :2].norm(), line) for line in lines if len(line) == len(drawn)]
        factor, line = next(pair for pair in ratios if torch.allclose(drawn[:, :2], pair[1][:, :2] * pair[0]))
        assert torch.equal(drawn[:, 2], line[:, 2])
        factors.append(factor.item())
    assert len(set(factors)) == 6
    assert 0.9 <= min(factors) < 1 < max(factors) <= 1.1
    whole = training.drawn_batch(replace(TINY, batch=12, scale=0.0), lines, generator_at(0, 0))
    assert sorted(map(len, whole)) == sorted(map(len, lines))


@pytest.mark.parametrize("cell", ["lstm", "layer_norm_lstm", "hyper_lstm"])
def test_training_resumes_bitwise(handwriting, cell, tmp_path):
    config = replace(TINY, cell=cell)
    training.train(config, handwriting, tmp_path / "whole", CPU)
    training.train(replace(config, steps=4), handwriting, tmp_path / "parts", CPU)
    training.train(config, handwriting, tmp_path / "parts", CPU, resume=True)
    tables = [read_table(tmp_path / run / "metrics.csv") for run in ("whole", "parts")]
    assert tables[0] == tables[1]
    states = [training.load(tmp_path / run / CHECKPOINT, CPU)[0].state_dict() for run in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["std"].min() > 1  # the data's, not the initial ones


@pytest.mark.parametrize("cell", ["lstm", "layer_norm_lstm", "hyper_lstm"])
def test_learning(handwriting, cell, tmp_path):
    config = replace(TINY, cell=cell, steps=60, validate_every=20)
    training.train(config, handwriting, tmp_path / "run", CPU)
    validation = [float(row["log_loss"]) for row in read_table(tmp_path / "run/validation.csv")]
    first = float(read_table(tmp_path / "run/metrics.csv")[0]["log_loss"])
    assert validation[0] < first - 20  # nats a line of some 40 points
    assert validation[-1] < validation[0] - 20


def test_samples(handwriting):
    model, _ = training.build(TINY, CPU)
    model.measure(handwriting.train)
    drawn = [
        model.sample(2, 30, bias, torch.Generator().manual_seed(s)) for s, bias in ((1, 0), (1, 0), (2, 0), (1, 2))
    ]
    assert drawn[0].shape == (2, 30, 3)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[3][..., :2].std() < drawn[0][..., :2].std()
    torch.testing.assert_close(
        drawn[0][:, 0], torch.zeros(2, 3), rtol=0, atol=1e-5
    )  # where every line of the data begins
    strokes = strokes_of(drawn[0][0])
    assert sum(map(len, strokes)) == 30
    assert np.concatenate(strokes)[-1] == pytest.approx(drawn[0][0, :, :2].double().sum(0).numpy(), abs=1e-3)
    changes = changes_over(model, drawn[0][0])
    assert changes.shape == (4, 29)
    assert (changes >= 0).all()
    assert changes.isfinite().all()


@pytest.mark.parametrize("cell", ["lstm", "hyper_lstm"])
def test_commands(cell, tmp_path, capsys):
    """`hyperfast train` and `evaluate`, all figures."""
    write_iam(tmp_path / "data")
    options = {"lines": "iam_ondb", "cell": cell, "split": "official", "min-length": "20", "units": "8",
               "hyper-units": "4", "mixtures": "2", "batch": "2", "steps": "4", "validate-every": "2"}  # fmt: skip
    arguments = [word for name, value in options.items() for word in (f"--config.{name}", value)]
    data = ["--data-root", str(tmp_path / "data")]
    command = ["train", "hypernetworks/handwriting", "--preset", "small", *arguments, *data, "--out"]
    assert cli.main([*command, str(tmp_path / "run")]) == 0
    checkpoint = ["--checkpoint", str(tmp_path / "run" / CHECKPOINT)]
    few = ["--evaluation.samples", "2", "--evaluation.sample-length", "20"]
    assert cli.main(["evaluate", "hypernetworks/handwriting", *checkpoint, *few, *data]) == 0
    about = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert about["step"] == 4
    assert about["test_lines"] == 4
    assert math.isfinite(about["validation_log_loss"])
    assert math.isfinite(about["test_log_loss"])
    assert about["parameters"] > 0
    strokes = {"samples"} | ({"weight_changes"} if cell == "hyper_lstm" else set())
    assert {path.stem for path in (tmp_path / "run").glob("*.png")} == strokes | {"loss"}
    assert {path.stem for path in (tmp_path / "run").glob("*.svg")} == strokes
    assert ElementTree.parse(tmp_path / "run/samples.svg").getroot().tag.endswith("svg")
    sample = ["sample", "hypernetworks/handwriting", *checkpoint, "--members", "2", "--out", "x.safetensors"]
    assert cli.main(sample) != 0
    assert "generates no networks" in capsys.readouterr().err


def test_errors_name_the_setting(handwriting, tmp_path):
    for name, value in (("units", 0), ("mixtures", 0), ("min_length", 1), ("scale", 1.0)):
        with pytest.raises(ValueError, match=rf"config\.{name} must be"):
            Config(**{name: value})
    with pytest.raises(ValueError, match=r"evaluation\.samples must be"):
        Evaluation(samples=0)
    for config in (replace(TINY, batch=13), replace(TINY, min_length=1_000)):
        with pytest.raises(ValueError, match=r"at least config\.min_length"):
            training.train(config, handwriting, tmp_path / "run", CPU)
