"""Digits as images of the circle: the hypernetwork, the loss, training, checkpoints, figures and the commands."""

import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from made_up import write_mnist
from torch import nn

from hyperfast import cli
from hyperfast.experiments import checkpoint
from hyperfast.experiments.functional_images.shapes import evaluate, figures
from hyperfast.experiments.functional_images.shapes import train as shapes
from hyperfast.experiments.functional_images.shapes.config import PRESETS, Config, Evaluation
from hyperfast.models import BranchedHypernetwork, targets
from hyperfast.nn import Cos, TargetNet

CPU = torch.device("cpu")
TINY = replace(
    PRESETS["small"], points=40, width=4, branch_width=8, batch=4, steps=6, held_out=30, validate_every=3,
    validation_pictures=8, log_every=1, checkpoint_every=2,
    evaluation=Evaluation(pictures=20, shapes=3, pairs=2, between=3, points=20, outline=50),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """So little work takes longer when threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bars(count: int, side: int = 8) -> torch.Tensor:
    """[N,1,S,S]: a bright bar in one of four places."""
    pictures = torch.zeros(count, 1, side, side)
    for i in range(count):
        across, at = i % 2 == 0, 1 + 4 * (i // 2 % 2)
        part = pictures[i, 0] if across else pictures[i, 0].T
        part[at : at + 2, 1:7] = 1
    return pictures


# ---- the hypernetwork -------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (3, (16, 16)), (3, (9, 14)), (2, (1, 1))])
def test_hypernetwork_of_any_picture(channels, size):
    net = TargetNet(targets.klocek_mlp(3, 3))
    hypernetwork = BranchedHypernetwork(net, channels, size, width=8, branch_width=16)
    pictures = torch.rand(3, channels, *size, requires_grad=True)
    theta = hypernetwork(pictures)
    assert theta.shape == (3, net.num_weights)
    theta.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in hypernetwork.parameters())
    with pytest.raises(ValueError, match="pictures must have size"):
        hypernetwork(torch.rand(3, channels, size[0] + 1, size[1]))
    with pytest.raises(ValueError, match=r"\[B,C,H,W\]"):
        hypernetwork(torch.rand(channels, *size))


def test_a_branch_for_every_layer_of_the_target():
    template = nn.Sequential(nn.Linear(2, 5), Cos(), nn.Linear(5, 4, bias=False), Cos(), nn.Linear(4, 3))
    net = TargetNet(template)
    hypernetwork = BranchedHypernetwork(net, 1, (8, 8), width=4, branch_width=8)
    assert [linear.out_features for linear in hypernetwork.weights] == [15, 20, 15]
    assert len(hypernetwork.branches) == 3
    pictures = torch.rand(6, 1, 8, 8)
    before = net.unflatten(hypernetwork(pictures))
    with torch.no_grad():
        hypernetwork.weights[1].bias += 1  # no biases there: the second layer's weight alone
    after = net.unflatten(hypernetwork(pictures))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"2.weight"}


def test_weights_start_at_fan_in_scale_and_differ_a_little():
    torch.manual_seed(1)
    net = TargetNet(targets.klocek_mlp())
    hypernetwork = BranchedHypernetwork(net, 1, (8, 8), branch_width=64)
    weights = net.unflatten(hypernetwork(torch.rand(64, 1, 8, 8)))
    for name, fan_in in (("2.weight", 32), ("4.weight", 64), ("6.weight", 256)):
        plain = (3 * fan_in) ** -0.5  # the deviation of PyTorch's initial weights
        assert 0.9 * plain < weights[name].std() < 1.2 * plain
        assert 0.1 * plain < weights[name].std(0).mean() < 0.5 * plain


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 6}, "width must be a positive multiple of 4"),
        ({"branch_width": 0}, "must be positive"),
        ({"frequencies": (1.0,)}, "frequencies must be 2"),
    ],
)
def test_hypernetwork_errors(options, words):
    with pytest.raises(ValueError, match=words):
        BranchedHypernetwork(TargetNet(targets.klocek_mlp()), 1, (8, 8), **options)


def test_target_is_the_papers():
    net = TargetNet(targets.klocek_mlp())
    assert [shape for name, shape, _ in net.layout if name.endswith("weight")] == [
        (32, 2), (64, 32), (256, 64), (64, 256), (2, 64),
    ]  # fmt: skip
    assert net.num_weights == 35_426
    assert TargetNet(targets.klocek_mlp(2, 3)).num_weights == 35_491
    assert TargetNet(targets.klocek_mlp(3, 3)).num_weights == 35_523


# ---- the loss ---------------------------------------------------------------------------------------


def test_pixels_lie_as_in_the_picture():
    """x to the right, y down, rows first: what distribution() weighs."""
    places = shapes.pixels(3, CPU).view(3, 3, 2)
    torch.testing.assert_close(places[0, 2], torch.tensor([5 / 6, 1 / 6]))
    torch.testing.assert_close(places[2, 0], torch.tensor([1 / 6, 5 / 6]))
    picture = torch.zeros(1, 1, 3, 3)
    picture[0, 0, 0, 2] = 0.7
    here, there = (torch.tensor([[x, y]]) for x, y in ((5 / 6, 1 / 6), (1 / 6, 5 / 6)))
    at = shapes.cross_entropy(picture, here, 0.1)
    torch.testing.assert_close(at, torch.tensor([math.log(2 * math.pi * 0.01)]))
    torch.testing.assert_close(shapes.cross_entropy(picture, there, 0.1) - at, torch.tensor([(8 / 9) / 0.02]))


def test_a_black_picture_costs_nothing():
    pictures = torch.cat([torch.zeros(1, 1, 8, 8), bars(1)])
    points = torch.rand(5, 2, requires_grad=True)
    loss = shapes.cross_entropy(pictures, points, 0.05)
    assert loss[0] == 0
    loss.sum().backward()
    assert points.grad.isfinite().all()


def test_points_drawn_from_a_picture_beat_others():
    pictures = bars(4)
    own = shapes.cross_entropy(pictures, evaluate.drawn_from(pictures, 100, 0), 0.05)
    other = shapes.cross_entropy(pictures, evaluate.drawn_from(pictures.flip(0), 100, 0), 0.05)
    assert (own < -0.5).all()  # an even square has 0, and a bar fills 12 of 64 pixels: log(12/64) = -1.7
    assert (own > math.log(12 / 64)).all()
    assert (other > own + 1).all()


# ---- training ---------------------------------------------------------------------------------------


def parts(count: int = 40) -> shapes.Pictures:
    return shapes.Pictures(bars(count), bars(8), bars(8))


def test_training_learns_where_the_bars_are(tmp_path):
    config = replace(TINY, sigma=0.1, branch_width=16, width=8, batch=16, steps=80, learning_rate=5e-3,
                     learning_rate_decay=0.99, validate_every=80)  # fmt: skip
    shapes.train(config, parts(), tmp_path, CPU)
    net, hypernetwork, _, step = shapes.load(tmp_path / "checkpoint.safetensors", CPU)
    assert step == 80
    scores = shapes.scores(config, net, hypernetwork, bars(4))
    assert (scores < -0.3).all()  # better than the even square, for each of the four
    wrong = shapes.cross_entropy(
        bars(4).flip(0), net(shapes.circle(torch.arange(40) / 40), hypernetwork(bars(4))), 0.05
    )
    assert (wrong > scores + 1).all()


def test_21_resumed_training_is_the_same(tmp_path):
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    shapes.train(TINY, parts(), whole, CPU)
    shapes.train(replace(TINY, steps=3), parts(), pieces, CPU)
    assert shapes.train(TINY, parts(), pieces, CPU, resume=True) == 6
    states = [checkpoint.load(folder / "checkpoint.safetensors")[0] for folder in (whole, pieces)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(ValueError, match="sigma"):
        shapes.train(replace(TINY, sigma=0.1, steps=8), parts(), pieces, CPU, resume=True)
    with pytest.raises(ValueError, match="--resume"):
        shapes.train(TINY, parts(), pieces, CPU)


def test_every_step_has_fresh_points_and_pictures():
    net, hypernetwork, optimizer = shapes.build(TINY, CPU)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    config = replace(TINY, learning_rate=1e-30)
    measured = [shapes.train_step(config, net, hypernetwork, optimizer, bars(1), step) for step in (0, 1, 0)]
    assert measured[0]["loss"] != measured[1]["loss"]
    torch.testing.assert_close(measured[0]["loss"], measured[2]["loss"])


def test_interpolation_ends_at_the_pictures_networks():
    net, hypernetwork, _ = shapes.build(TINY, CPU)
    hypernetwork.eval()
    pictures = torch.cat([bars(3), torch.rand(4, 1, 8, 8)])
    drawn = evaluate.shapes(net, hypernetwork, pictures, TINY.evaluation)
    assert drawn.between.shape == (2, 3, 20, 2)
    z = shapes.circle(torch.arange(20) / 20)
    with torch.no_grad():
        own = net(z, hypernetwork(pictures))
    torch.testing.assert_close(drawn.points, own[:3])
    torch.testing.assert_close(drawn.between[:, 0], own[3:5])
    torch.testing.assert_close(drawn.between[:, -1], own[5:7])
    torch.testing.assert_close(drawn.outlines[:, 0], drawn.outlines[:, -1])  # closed
    fewer = evaluate.shapes(net, hypernetwork, pictures[:4], TINY.evaluation)
    assert len(fewer.between) == 0
    assert figures.draw(("interpolation",), fewer, None, None) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (lambda: Config(sigma=0), r"config\.sigma must be positive; got 0"),
        (lambda: Config(batch=1), r"config\.batch must be at least 2"),
        (lambda: Config(data="letters"), "config.data must be mnist or embedded"),
        (lambda: Config(validation_pictures=0), r"config\.validation_pictures"),
        (lambda: Evaluation(between=1), r"config\.evaluation\.between"),
        (lambda: shapes.read(Config(data="embedded", held_out=5000), None), "config.held_out must be less than"),
    ],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        settings()


def test_commands(tmp_path, capsys):
    """On a made-up MNIST."""
    data = write_mnist(tmp_path / "data")
    out = tmp_path / "run"
    run = ["functional_images/shapes", "--device", "cpu", "--data-root", str(data), "--out", str(out)]
    small = ["--config.steps", "3", "--config.log-every", "1", "--config.held-out", "50", "--config.points", "30",
             "--config.width", "4", "--config.branch-width", "8", "--config.batch", "4"]  # fmt: skip
    assert cli.main(["train", *run, *small]) == 0
    evaluation = ["--evaluation.pictures", "30", "--evaluation.outline", "100"]
    assert cli.main(["evaluate", *run, "--checkpoint", str(out / "checkpoint.safetensors"), *evaluation]) == 0
    about = json.loads((out / "evaluation.json").read_text())
    assert about["step"] == 3
    assert about["pictures"] == 30
    assert math.isfinite(about["cross_entropy"])
    assert [row["step"] for row in csv.DictReader((out / "metrics.csv").open())] == ["1", "2", "3"]
    for name in figures.FIGURES:
        assert (out / f"{name}.png").stat().st_size > 1000
    capsys.readouterr()
    sampling = ["sample", "functional_images/shapes", "--checkpoint", str(out / "checkpoint.safetensors")]
    assert cli.main([*sampling, "--members", "3", "--out", str(tmp_path / "theta.safetensors")]) == 1
    assert "generates no networks" in capsys.readouterr().err
