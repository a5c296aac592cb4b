"""The paper's image classifiers with generated weights: networks, counts, training that resumes bitwise, early stopping."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from made_up import write_mnist
from torch import nn

from hyperfast import backend, cli
from hyperfast.data import load_pictures
from hyperfast.experiments.experiment import find
from hyperfast.experiments.hypernetworks.classification import Classification, measured
from hyperfast.experiments.hypernetworks.coordinates import config as coordinates_config
from hyperfast.experiments.hypernetworks.coordinates.model import CoordinateMLP
from hyperfast.experiments.hypernetworks.coordinates.train import CLASSIFICATION as COORDINATES
from hyperfast.experiments.hypernetworks.figures import mosaic
from hyperfast.experiments.hypernetworks.mnist import config as mnist_config
from hyperfast.experiments.hypernetworks.mnist.model import ConvNet
from hyperfast.experiments.hypernetworks.mnist.train import CLASSIFICATION as MNIST
from hyperfast.experiments.hypernetworks.wrn import config as wrn_config
from hyperfast.experiments.hypernetworks.wrn.model import Classifier
from hyperfast.experiments.hypernetworks.wrn.train import CLASSIFICATION as WRN
from hyperfast.experiments.hypernetworks.wrn.train import objective
from hyperfast.experiments.loop import BEST, CHECKPOINT
from hyperfast.experiments.training import EpochBatches, read_table
from hyperfast.nn import HyperConv2d

CPU = torch.device("cpu")
TASKS: dict[str, Classification] = {"mnist": MNIST, "coordinates": COORDINATES, "wrn": WRN}
KINDS = [("mnist", "hyper"), ("mnist", "plain"), ("coordinates", "coordinates"), ("coordinates", "direct"),
         ("wrn", "hyper"), ("wrn", "plain")]  # fmt: skip


def preset(task, net):
    found = [c for name, c in TASKS[task].presets.items() if name.startswith("small") and c.net == net]
    assert len(found) == 1
    return found[0]


def tiny(task, net):
    return replace(preset(task, net), batch=20, steps=6, validate_every=2, checkpoint_every=2, log_every=1)


def numbers(model):
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def parts():
    """{images: parts}, few of them."""

    def few(name):
        whole = load_pictures(name, None, 200)
        return replace(whole, training=whole.training[:70], validation=whole.validation[:40], test=whole.test[:40])

    return {name: few(name) for name in ("digits", "colour_digits")}


# ---- counts -----------------------------------------------------------------------------------------


def test_parameters_of_the_presets():
    """Sections 4.1 and 4.2 and appendix A.1; the digits after those that the paper prints are of its equations."""
    expected = {
        "mnist": {"paper": 12_910, "plain": 21_210},
        "wrn": {
            "paper": 96_570, "hyper_40_2": 147_578, "plain_40_1": 562_730, "plain_40_2": 2_235_498,
            "cifar10_small": 79_770, "cifar10_small_plain": 75_530,
        },
        "coordinates": {"paper": 801 + 256 + 2_570, "direct": 784 * 256 + 256 + 2_570},
    }  # fmt: skip
    for task, counts in expected.items():
        presets = TASKS[task].presets
        assert counts.keys() == {name for name in presets if not name.startswith("small")}
        assert {name: numbers(TASKS[task].model(presets[name])) for name in counts} == counts


def test_parts_of_the_counts():
    generated = ConvNet(mnist_config.Config()).second
    assert numbers(generated.generator) == 4_240
    assert generated.embedding.numel() == 4
    assert generated.weight.numel() == 12_544
    for name, tiles in (("paper", 242), ("hyper_40_2", 966)):
        model = Classifier(wrn_config.PRESETS[name])
        convolutions = [m for m in model.modules() if isinstance(m, HyperConv2d)]
        assert len(convolutions) == 36
        assert sum(m.embedding.numel() for m in convolutions) == 64 * tiles
        assert numbers(model.network.generator) == 75_920
    assert CoordinateMLP(coordinates_config.Config()).theta.shape == (1, 801)


def test_schedules():
    """Tables 7 and 8, and the author's for MNIST."""
    hyper, plain = wrn_config.PRESETS["paper"], wrn_config.PRESETS["plain_40_1"]
    ends = [(0, 2e-3), (167_999, 2e-3), (168_000, 1e-3), (336_000, 2e-4), (504_000, 5e-5), (671_999, 5e-5)]
    assert [hyper.learning_rate_at(step) for step, _ in ends] == [rate for _, rate in ends]
    ends = [(0, 0.1), (28_000, 0.02), (56_000, 0.004), (84_000, 8e-4), (112_000, 1.6e-4), (139_999, 1.6e-4)]
    assert [plain.learning_rate_at(step) for step, _ in ends] == [rate for _, rate in ends]
    assert (hyper.steps, plain.steps, hyper.batch, hyper.l2) == (672_000, 140_000, 128, 5e-6)
    kinds = [type(WRN.build(config, CPU)[1]) for config in (hyper, plain)]
    assert kinds == [torch.optim.Adam, torch.optim.SGD]
    assert WRN.build(plain, CPU)[1].param_groups[0]["nesterov"]
    mnist = mnist_config.Config()
    assert mnist.learning_rate_at(0) == 5e-3
    assert mnist.learning_rate_at(100) == pytest.approx(5e-3 * 0.999**100)
    assert mnist.learning_rate_at(5_000) == 1e-4
    assert mnist.steps == 50 * 55_000 // mnist.batch


# ---- networks ---------------------------------------------------------------------------------------


def test_the_small_net_for_mnist():
    """The equation, from the parameters; initial values as the author's code has them."""
    images = torch.rand(3, 1, 28, 28)
    for net in ("hyper", "plain"):
        model = ConvNet(mnist_config.Config(net=net))
        x = F.max_pool2d(F.conv2d(images, model.first.weight, model.first.bias, padding=3).relu(), 2)
        x = F.max_pool2d(F.conv2d(x, model.second.weight, model.second.bias, padding=3).relu(), 2)
        expected = x.flatten(1) @ model.last.weight.T
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-6)
        last = model.last.weight
        torch.testing.assert_close(last @ last.T, torch.eye(10), rtol=0, atol=1e-5)
        for name, value in model.named_parameters():
            if "bias" in name:
                assert not value.any()
            elif "last" not in name:
                assert value.abs().max() <= 0.02
                assert value.numel() < 100 or value.std().item() == pytest.approx(0.0088, rel=0.15)


def test_generated_weights_are_the_network_at_their_coordinates():
    model = CoordinateMLP(coordinates_config.Config())
    template = nn.Sequential(nn.Linear(4, 25), nn.ReLU(), nn.Linear(25, 25), nn.ReLU(), nn.Linear(25, 1))
    nn.utils.vector_to_parameters(model.theta[0].detach(), template.parameters())
    weight = model.weight()
    assert weight.shape == (784, 256)
    for y, x, v, u in ((0, 0, 0, 0), (27, 27, 15, 15), (3, 20, 11, 6), (0, 27, 15, 0)):
        place = torch.tensor([(2 * i + 1) / n - 1 for i, n in ((y, 28), (x, 28), (v, 16), (u, 16))])
        torch.testing.assert_close(weight[28 * y + x, 16 * v + u], template(place)[0], rtol=1e-4, atol=1e-6)
    assert weight.mean().item() == pytest.approx(0, abs=1e-4)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 784), rel=1e-3)
    images = torch.rand(3, 1, 28, 28)
    hidden = ((images.flatten(1) - 0.1307) @ weight + model.bias).relu()
    torch.testing.assert_close(model(images), hidden @ model.last.weight.T + model.last.bias, rtol=1e-4, atol=1e-4)
    model(images).square().sum().backward()
    assert model.theta.grad.abs().min() >= 0
    assert model.theta.grad.count_nonzero() > 600


# ---- training ---------------------------------------------------------------------------------------


def test_every_epoch_is_a_new_order():
    batches = EpochBatches(10, 3, seed=0)
    picks = [batches(step) for step in range(9)]
    epochs = [torch.cat(picks[i : i + 3]).tolist() for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 9 and max(epoch) < 10 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    again = EpochBatches(10, 3, seed=0)
    assert all(torch.equal(again(step), picks[step]) for step in (7, 0, 8, 3))
    assert not torch.equal(EpochBatches(10, 3, seed=1)(0), picks[0])
    with pytest.raises(ValueError, match=r"config\.batch must be at most the 10 images to train on; got 11"):
        EpochBatches(10, 11, 0)


@pytest.mark.parametrize(("task", "net"), KINDS)
def test_training_resumes_bitwise(task, net, parts, tmp_path):
    config, how = tiny(task, net), TASKS[task]
    data = parts[config.images]
    how.train(config, data, tmp_path / "whole", CPU)
    how.train(replace(config, steps=3), data, tmp_path / "parts", CPU)
    how.train(config, data, tmp_path / "parts", CPU, resume=True)
    metrics, validations = (
        [read_table(tmp_path / run / f"{name}.csv") for run in ("whole", "parts")] for name in ("metrics", "validation")
    )
    assert metrics[0] == metrics[1]
    assert validations[0] == [row for row in validations[1] if row["step"] != "3"]
    states = [how.load(tmp_path / run / CHECKPOINT, CPU)[0].state_dict() for run in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    start = how.build(config, CPU)[0].state_dict()
    assert any(not torch.equal(states[0][name], start[name]) for name in start)


@pytest.mark.parametrize("whole", [True, False])
def test_the_best_model_is_kept(whole, parts, tmp_path):
    """Early stopping: also over an interruption, after which an earlier validation is still the best."""
    config = replace(tiny("coordinates", "direct"), steps=60, learning_rate=2e-2)
    data, folder = parts["digits"], tmp_path / "run"
    if not whole:
        COORDINATES.train(replace(config, steps=40), data, folder, CPU)
    COORDINATES.train(config, data, folder, CPU, resume=not whole)
    errors = {int(row["step"]): float(row["error"]) for row in read_table(folder / "validation.csv")}
    first_best = min(errors, key=lambda step: (errors[step], step))
    assert len(set(errors.values())) > 2
    assert first_best < 60  # the last model would not do
    model, _, step = COORDINATES.load(folder / BEST, CPU)
    assert step == first_best
    assert measured(model, data.validation)[1] == pytest.approx(errors[step], abs=1e-6)


def test_an_earlier_best_survives_a_resumed_training(parts, tmp_path):
    config, data = replace(tiny("mnist", "plain"), steps=4), parts["digits"]
    MNIST.train(config, data, tmp_path, CPU)
    rows = (tmp_path / "validation.csv").read_text().replace("\r", "").splitlines()
    (tmp_path / "validation.csv").write_text("\n".join([*rows[:-1], "4,0.1,0"]) + "\n")  # nothing is below 0
    before = (tmp_path / BEST).read_bytes()
    MNIST.train(replace(config, steps=8), data, tmp_path, CPU, resume=True)
    assert (tmp_path / BEST).read_bytes() == before


@pytest.mark.parametrize(("task", "net"), KINDS)
def test_learning(task, net, tmp_path):
    """The small preset, cut short: from nine wrong in ten to below half of them at the least."""
    config = preset(task, net)
    steps = {"mnist": 40, "coordinates": 160, "wrn": 120}[task]
    config = replace(config, steps=steps, validate_every=steps)
    TASKS[task].train(config, load_pictures(config.images, None, config.held_out), tmp_path, CPU)
    (row,) = read_table(tmp_path / "validation.csv")
    assert float(row["error"]) < 0.45
    assert float(row["loss"]) < 1.5


def test_l2_falls_on_generated_kernels(parts):
    """With nothing but the penalty to descend, generated kernels shrink; without it they do not."""
    config = tiny("wrn", "hyper")
    batch = parts["colour_digits"].training[:20]
    images = batch.images.float() / 255
    model, _ = WRN.build(config, CPU)
    with_it, logits = objective(replace(config, l2=1.0), model, images, batch.labels)
    without, _ = objective(replace(config, l2=0.0), model, images, batch.labels)
    kernels = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, HyperConv2d))]
    assert len(kernels) == 7
    expected = sum(kernel.double().square().sum() for kernel in kernels)
    assert (with_it - without).item() == pytest.approx(expected.item(), rel=1e-4)
    assert without.item() == pytest.approx(F.cross_entropy(logits, batch.labels).item(), rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_30_kernels_train_as_the_reference_does(task, long_run, parts, tmp_path):
    """Row 30, of the nets with generated weights: both backends end within the seeds' spread."""
    net = KINDS[2 * list(TASKS).index(task)][1]
    config = preset(task, net) if long_run else replace(tiny(task, net), steps=8, validate_every=8)
    data = load_pictures(config.images, None, config.held_out) if long_run else parts[config.images]
    found = {}
    for how in ("cpp", "reference"):
        losses = []
        for seed in range(3):
            folder = tmp_path / f"{how}{seed}"
            with backend(how):
                TASKS[task].train(replace(config, seed=seed), data, folder, CPU)
            losses.append(float(read_table(folder / "validation.csv")[-1]["loss"]))
        found[how] = losses
    spread = max(found["reference"]) - min(found["reference"])
    assert spread > 0
    assert abs(sum(found["cpp"]) - sum(found["reference"])) / 3 <= spread, found


# ---- commands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_commands(task, tmp_path, capsys):
    """`hyperfast train` of both nets, `evaluate` of one beside the other, all figures."""
    name = f"hypernetworks/{task}"
    few = ["--config.steps", "2", "--config.batch", "10", "--config.log-every", "1"]
    presets = [key for key in find(name).presets if key.startswith("small")]
    for key in presets:
        assert cli.main(["train", name, "--preset", key, *few, "--out", str(tmp_path / key)]) == 0
    checkpoint = ["--checkpoint", str(tmp_path / presets[0] / BEST)]
    assert cli.main(["evaluate", name, *checkpoint, "--evaluation.beside", str(tmp_path / presets[1])]) == 0
    about = json.loads((tmp_path / presets[0] / "evaluation.json").read_text())
    assert about["step"] == 2
    assert 0 < about["test_error"] <= 1
    assert about["images"].startswith("scikit-learn's digits")
    assert {f"{path.stem}" for path in (tmp_path / presets[0]).glob("*.png")} == set(find(name).figures)
    assert cli.main(["sample", name, *checkpoint, "--members", "2", "--out", "x.safetensors"]) != 0
    assert "generates no networks" in capsys.readouterr().err


def test_real_form_of_mnist(parts, tmp_path, capsys):
    """The paper's preset on files in MNIST's form; what was trained on other images is not drawn beside it."""
    write_mnist(tmp_path / "data/mnist")
    few = ["--config.steps", "2", "--config.batch", "20", "--config.held-out", "40", "--config.validate-every", "1"]
    where = ["--data-root", str(tmp_path / "data")]
    assert cli.main(["train", "hypernetworks/mnist", *few, *where, "--out", str(tmp_path / "run")]) == 0
    checkpoint = ["--checkpoint", str(tmp_path / "run" / BEST)]
    assert cli.main(["evaluate", "hypernetworks/mnist", *checkpoint, *where, "--figures", "kernels"]) == 0
    assert json.loads((tmp_path / "run/evaluation.json").read_text())["images"] == "MNIST"
    MNIST.train(replace(tiny("mnist", "plain"), steps=1), parts["digits"], tmp_path / "other", CPU)
    beside = ["--evaluation.beside", str(tmp_path / "other")]
    assert cli.main(["evaluate", "hypernetworks/mnist", *checkpoint, *where, *beside]) != 0
    assert "same images; got run: mnist, other: digits" in capsys.readouterr().err


def test_mosaic():
    tiles = torch.arange(1.0, 25).view(2, 3, 2, 2)
    picture = mosaic(tiles, gap=1)
    assert picture.shape == (5, 8)
    assert torch.equal(picture[3:5, 6:8], tiles[1, 2])
    assert torch.equal(picture[0:2, 3:5], tiles[0, 1])
    assert picture[2].isnan().all()
    assert picture[:, [2, 5]].isnan().all()
    assert picture.nansum() == tiles.sum()


def test_settings_out_of_range():
    for config, settings in (
        (mnist_config.Config, {"embedding": 0, "padding": -1, "held_out": 0, "batch": 0}),
        (coordinates_config.Config, {"width": 0, "validate_every": 0}),
        (wrn_config.Config, {"blocks": 0, "hidden": 0, "until": (5, 4, 6), "rates": (0.1,), "std": (0.0, 1.0, 1.0)}),
    ):
        for name, value in settings.items():
            with pytest.raises(ValueError, match=rf"config\.({name}|until) must be"):
                config(**{name: value})
