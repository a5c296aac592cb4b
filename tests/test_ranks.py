"""Training on several ranks: every experiment's is that of one process; one writer; stops and losses."""

import copy
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from made_up import digits
from ranks import on_ranks
from torch import nn

from hyperfast.data import Handwriting, Labelled, Parts, Text
from hyperfast.experiments import checkpoint, loop, ranks, ranks_norms
from hyperfast.experiments.diverse_networks.mnfg import train as mnfg
from hyperfast.experiments.diverse_networks.mnist import train as mnist
from hyperfast.experiments.diverse_networks.toy import train as toy
from hyperfast.experiments.experiment import names
from hyperfast.experiments.functional_images.shapes import train as shapes
from hyperfast.experiments.functional_images.super_resolution import train as super_resolution
from hyperfast.experiments.hypergan import mnist as hypergan_mnist
from hyperfast.experiments.hypergan import train as hypergan
from hyperfast.experiments.hypergan.config import Baseline
from hyperfast.experiments.hypergan.mnist.config import Config as HyperGANConfig
from hyperfast.experiments.hypergan.regression import train as regression
from hyperfast.experiments.hypernetworks.char_lm import train as char_lm
from hyperfast.experiments.hypernetworks.coordinates.train import CLASSIFICATION as COORDINATES
from hyperfast.experiments.hypernetworks.handwriting import train as handwriting
from hyperfast.experiments.hypernetworks.mnist.train import CLASSIFICATION as CONVOLUTION
from hyperfast.experiments.hypernetworks.wrn.train import CLASSIFICATION as WRN
from hyperfast.experiments.loop import Training, run
from hyperfast.experiments.settings import LoopConfig
from hyperfast.experiments.training import descend_unclipped, generator_at, read_table
from hyperfast.nn import PerTargetNorm

CPU = torch.device("cpu")
EVERY_STEP = {"log_every": 1, "checkpoint_every": 100}
VALIDATED = {**EVERY_STEP, "validate_every": 2}


# ---- every experiment in two steps ------------------------------------------------------------------


def some_digits(count, seed):
    images, labels = digits(count, seed)
    return Labelled(torch.from_numpy(images).unsqueeze(1).float() / 255, torch.from_numpy(labels).long())


def some_parts(images, classes=10):
    labels = torch.arange(60) % classes
    made = [Labelled(torch.rand(n, *images, generator=generator_at(7, n)), labels[:n]) for n in (40, 10, 10)]
    return Parts(*made, "made up")


def train_mnist(out):
    config = mnist.Config(
        networks=4, images=4, steps=2, learning_rate=1e-6, accuracy_weight=10.0, validation_networks=4, **VALIDATED
    )  # fmt: skip
    mnist.train(config, some_digits(40, 1), some_digits(10, 2), out, CPU)


def train_mnfg(out):
    config = mnfg.Config(
        networks=4, images=8, epochs=1, learning_rate=3e-3, validation_networks=3, **VALIDATED
    )  # fmt: skip
    mnfg.train(config, some_digits(16, 1), some_digits(10, 2), out, CPU)


def train_toy(out):
    toy.train(toy.Config(points=6, steps=2, **EVERY_STEP), out, CPU)


GAN = {
    "noise": 8, "code": 8, "hidden": 16, "networks": 4, "steps": 2, "pretraining_codes": 20, "pretraining_steps": 2,
    "weight_decay": 0.0, **EVERY_STEP,
}  # fmt: skip


def train_hypergan(out, **settings):
    config = HyperGANConfig(
        **GAN | settings, images_a_network=4, validate_every=2, validation_networks=3,
        baseline=Baseline(epochs=1, images=20, networks=4, q_hidden=4, r_hidden=4),
    )  # fmt: skip
    hypergan.train(hypergan_mnist.TASK, config, some_parts((1, 28, 28)), out, CPU)


def train_regression(out):
    regression.train(regression.Config(**GAN, units=10), out, CPU)


def train_char_lm(out, dropout=0.0):
    drawn = torch.randint(0, 9, (220,), generator=generator_at(0, 0), dtype=torch.uint8)
    config = char_lm.Config(
        units=12, hyper_units=6, embedding=2, batch=4, length=10, steps=4, input_dropout=dropout,
        recurrent_dropout=dropout, output_dropout=dropout, **EVERY_STEP, validate_every=4,
    )  # fmt: skip
    char_lm.train(config, Text(drawn[:180], drawn[180:200], drawn[200:], b"abcdefghi"), out, CPU)


def train_handwriting(out):
    draws = generator_at(1, 1)
    lines = tuple(torch.randn(n, 3, generator=draws) for n in (9, 23, 14, 30, 11, 17))
    lines = tuple(torch.cat([line[:, :2], (line[:, 2:] > 0).float()], 1) for line in lines)
    config = handwriting.Config(
        units=12, hyper_units=6, embedding=2, mixtures=3, min_length=5, batch=4, steps=2, learning_rate=1e-2, clip=0.5,
        recurrent_dropout=0.0, output_dropout=0.0, **VALIDATED,
    )  # fmt: skip
    handwriting.train(config, Handwriting(lines, lines[:2], lines[2:]), out, CPU)


def train_classifier(out, task, images, **settings):
    preset = task.presets["small"]
    config = replace(preset, batch=8, padding=1, steps=2, **VALIDATED, **settings)
    task.train(config, some_parts(images), out, CPU)


def train_shapes(out):
    config = shapes.Config(
        data="embedded", points=20, sigma=0.05, width=4, branch_width=8, batch=4, steps=2, learning_rate=0.1, **VALIDATED
    )  # fmt: skip
    pictures = torch.rand(40, 1, 8, 8, generator=generator_at(2, 2))
    shapes.train(config, shapes.Pictures(pictures[:20], pictures[20:30], pictures[30:]), out, CPU)


def train_super_resolution(out, **settings):
    config = super_resolution.Config(
        width=4, branch_width=8, patch=4, points=12, scales=(2, 3), batch=4, steps=2, held_out=1, learning_rate=0.1,
        **VALIDATED, **settings,
    )  # fmt: skip
    pictures = [torch.randint(0, 256, (3, 30, 24), generator=generator_at(3, i), dtype=torch.uint8) for i in range(3)]
    super_resolution.train(config, pictures, out, CPU)


CASES = {
    "diverse_networks/mnist": train_mnist,
    "diverse_networks/mnfg": train_mnfg,
    "diverse_networks/toy": train_toy,
    "hypergan/mnist": train_hypergan,
    "hypergan/mnist, own images": lambda out: train_hypergan(out, own_images=True, padding=2, flip=True),
    "hypergan/mnist, mnfg": lambda out: train_hypergan(out, method="mnfg"),
    "hypergan/regression": train_regression,
    "hypernetworks/char_lm": train_char_lm,
    "hypernetworks/handwriting": train_handwriting,
    "hypernetworks/mnist": lambda out: train_classifier(out, CONVOLUTION, (1, 28, 28)),
    "hypernetworks/coordinates": lambda out: train_classifier(out, COORDINATES, (1, 28, 28)),
    "hypernetworks/wrn": lambda out: train_classifier(out, WRN, (3, 8, 8), rates=(0.1,), until=()),
    "functional_images/shapes": train_shapes,
    "functional_images/super_resolution": lambda out: train_super_resolution(out, norm="shared", missing=0.4),
    "functional_images/super_resolution, residual": lambda out: train_super_resolution(out, predicts="residual"),
}
# hypergan's CIFAR experiments are hypergan/mnist with other images and another target network.
SAME_CODE = {"hypergan/cifar5", "hypergan/cifar10"}


def gradient_descent(parameters, lr=1e-3, **of_adam):
    """In Adam's place, which makes a whole step of the rounding of a gradient that is zero."""
    return torch.optim.SGD(parameters, lr)


def trained(folder):
    """Every case's checkpoint and tables, in `folder`."""
    adam, torch.optim.Adam = torch.optim.Adam, gradient_descent
    try:
        for name, train in CASES.items():
            train(folder / name.replace("/", "_"))
    finally:
        torch.optim.Adam = adam


def work_of_a_rank(rank, world, folder):
    with ranks.sharing(dist.group.WORLD):
        trained(Path(folder) / f"of_{rank}")
        return {name: check(rank, Path(folder) / name) for name, check in CHECKS.items()}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """(folder of one process, folder of two ranks, what the ranks' checks returned)"""
    folder, threads = tmp_path_factory.mktemp("ranks"), torch.get_num_threads()
    torch.set_num_threads(1)
    trained(folder / "one")
    torch.set_num_threads(threads)
    found = on_ranks(work_of_a_rank, 2, folder, str(folder))
    assert not (folder / "of_1").exists()  # the first alone writes
    return folder / "one", folder / "of_0", found


def initial(name, folder, monkeypatch):
    """The state before the first step."""
    kept = {}

    def keep(training, out, resume, after_step):
        kept.update({k: v.clone() for k, v in checkpoint.training_state(training.model, training.optimizer).items()})
        raise KeyboardInterrupt

    for module in (mnist, mnfg, toy, hypergan, regression, char_lm, handwriting, shapes, super_resolution):
        monkeypatch.setattr(module, "run_loop", keep)
    monkeypatch.setattr("hyperfast.experiments.hypergan.baselines.run_loop", keep)
    monkeypatch.setattr("hyperfast.experiments.hypernetworks.classification.run_loop", keep)
    with pytest.raises(KeyboardInterrupt):
        CASES[name](folder)
    return kept


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one_process(name, work, tmp_path, monkeypatch):
    """What two steps change, of parameters and of statistics, but for float32's rounding: of the change, of the parameter
    itself, and of gradients that are sums of much that cancels; and the tables.
    """
    one, two = (folder / name.replace("/", "_") for folder in work[:2])
    before = initial(name, tmp_path, monkeypatch)
    alone, shared = (checkpoint.load(folder / loop.CHECKPOINT)[0] for folder in (one, two))
    assert alone.keys() == shared.keys() == before.keys()
    whole = sum(float((alone[k] - before[k]).double().square().sum()) for k in before) ** 0.5
    assert whole > 0
    for key in before:
        pairs = (alone, before), (shared, alone)
        change, error = (float((state[key] - other[key]).double().norm()) for state, other in pairs)
        assert error <= 1e-5 * change + 1e-7 * (float(before[key].double().norm()) + whole), key
    for table in one.glob("*.csv"):
        if table.name != loop.SECONDS:
            expected, found = read_table(table), read_table(two / table.name)
            assert len(expected) == len(found) > 0
            for row, other in zip(expected, found, strict=True):
                for column, value in row.items():
                    assert float(other[column]) == pytest.approx(float(value), rel=2e-5, abs=1e-6), (table.name, column)


def test_every_experiment_is_among_them():
    assert {name.split(",")[0] for name in CASES} | SAME_CODE == set(names())


# ---- what ranks agree on ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Small(LoopConfig):
    batch: int = 4
    log_every: int = 1
    checkpoint_every: int = 100
    validate_every: int = 2


def small(out, rank, config=None, step=None, after_step=lambda step: None, resume=False, **more):
    """The loop on one weight, driven to the mean of the batch; what it returned or raised."""
    config = config or Small()
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)

    def descend(number):
        loss = (model(torch.ones(1, 1)) - ranks.own(torch.arange(4.0))).square().mean()
        descend_unclipped(model, optimizer, loss)
        return {"loss": loss.detach()}

    job = Training(
        "small", config, (), 6, model, optimizer, step or descend, ("loss",), "", **{"shares": "batch"} | more
    )
    try:
        return str(run(job, out, resume, after_step))
    except (ValueError, ConnectionError) as problem:
        return f"{type(problem).__name__}: {problem}"


def uneven(rank, out):
    return small(out, rank, Small(batch=5))


def not_shared(rank, out):
    return small(out, rank, shares="")


def not_finite_on_one(rank, out):
    return small(out, rank, step=lambda step: {"loss": float("nan") if rank and step == 2 else 1.0})


def stopped_on_one(rank, out):
    """By a signal each time; then gone on with."""
    signals = {2: signal.SIGINT, 4: signal.SIGTERM}

    def interrupt(step):
        if rank and step in signals:
            signal.raise_signal(signals[step])

    return [small(out, rank, after_step=interrupt, resume=at > 0) for at in (0, 2, 4)]


def other_steps(rank, out):
    own = out / str(rank)
    with ranks.sharing(None):
        small(own, rank, after_step=lambda step: step == 1 + rank and signal.raise_signal(signal.SIGINT))
    return small(own, rank, resume=True)


def validated(rank, out):
    """Each rank would measure something else."""
    asked = []

    def validate():
        asked.append(ranks.count())
        return {"loss": 7.0 - len(asked) + rank}

    reached = small(out, rank, validate=validate, validation=("loss",), tells="{loss}", best_by="loss")
    return [reached, str(asked)]


def norms(rank, out):
    """Batch norms that share against those of a process that has everything, in training and then in eval mode."""
    with ranks.sharing(None):
        torch.manual_seed(3)
        whole, x = batch_norms(), [3 + torch.randn(6, 5), torch.randn(4, 3, 5, 2), torch.randn(4, 7, 5)]
    model = copy.deepcopy(whole)
    ranks_norms.share_statistics(model)
    found = []
    for norm, own, values in zip(whole, model, x, strict=True):
        parts = values.requires_grad_(), ranks.own(values.detach()).requires_grad_()
        for module, part in zip((norm, own), parts, strict=True):
            module(part).sin().sum().backward()
        found += [parts[1].grad - ranks.own(parts[0].grad), own.running_var - norm.running_var]
        found += [own.running_mean - norm.running_mean, own.eval()(parts[1]) - ranks.own(norm.eval()(parts[0]))]
    return torch.cat([part.flatten() for part in found]).abs().max().item()


def batch_norms():
    return nn.ModuleList([nn.BatchNorm1d(5), nn.BatchNorm2d(3, momentum=None), PerTargetNorm(5, "shared")])


CHECKS = {
    check.__name__: check
    for check in (uneven, not_shared, not_finite_on_one, stopped_on_one, other_steps, validated, norms)
}


def test_ranks_agree(work):
    first, second = work[2]
    assert first["uneven"] == second["uneven"] == "ValueError: config.batch must be a multiple of the 2 ranks; got 5"
    for found in (first, second):
        assert found["not_shared"].endswith("trained by one process with these settings; start it without torchrun")
        assert found["not_finite_on_one"].startswith(
            "ValueError: the loss is nan at step 3; there is no checkpoint yet"
        )
        assert found["stopped_on_one"] == ["2", "4", "6"]
        assert found["other_steps"].endswith("must be the same; they are of the steps [1, 2]")
        assert found["norms"] < 1e-5
    assert first["validated"] == ["6", "[1, 1, 1]"]
    assert second["validated"] == ["6", "[]"]


def test_the_first_ranks_tables_are_everyones(work):
    folder = work[0].parent
    losses = [row["loss"] for row in read_table(folder / "stopped_on_one" / "metrics.csv")]
    assert losses == ["1.5"] + ["1.25"] * 5  # of all four numbers, not of two
    assert checkpoint.load(folder / "stopped_on_one" / loop.CHECKPOINT)[1]["step"] == 6
    assert [row["loss"] for row in read_table(folder / "validated" / "validation.csv")] == ["6", "5", "4"]
    assert checkpoint.load(folder / "validated" / loop.BEST)[1]["step"] == 6


# ---- the command ------------------------------------------------------------------------------------


def torchrun(out, *more):
    """(torchrun's process, the ranks' process ids), once three steps are logged that were not before."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "hyperfast.cli",
        "train",
        toy.NAME,
        "--config.points",
        "6",
        "--config.log-every",
        "1",
        "--device",
        "cpu",
    ]
    command += ["--config.checkpoint-every", "1", "--out", str(out), *more]
    metrics = out / "metrics.csv"
    before = len(metrics.read_text().splitlines()) if metrics.exists() else 1
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 240
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > before + 2) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    return process, [int(pid) for pid in children.stdout.split()]


def test_20_a_killed_rank_is_an_error_and_a_stopped_one_stops_all(tmp_path):
    process, pids = torchrun(tmp_path)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    _, words = process.communicate(timeout=120)
    assert process.returncode != 0
    assert words.count("another rank was lost or does not answer; --resume goes on from the last checkpoint") == 1
    kept = checkpoint.load(tmp_path / loop.CHECKPOINT)[1]["step"]
    assert kept >= 1
    process, pids = torchrun(tmp_path, "--resume")
    os.kill(pids[1], signal.SIGTERM)
    told, words = process.communicate(timeout=120)
    assert process.returncode == 0, words
    reached = checkpoint.load(tmp_path / loop.CHECKPOINT)[1]["step"]
    assert reached > kept
    assert told.replace("\n", " ").count(f"stopped after {reached} of 100000 steps") == 1
    steps = [int(row["step"]) for row in read_table(tmp_path / "metrics.csv")]
    assert steps == list(range(1, reached + 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [loop.CHECKPOINT, "metrics.csv", loop.SECONDS]
