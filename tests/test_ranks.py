"""Training on several ranks: every experiment's is that of one process; one writer; stops and losses."""

import copy
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from rank_cases import CASES, LOOPS, SAME_CODE
from ranks import on_ranks
from torch import nn

from hyperfast.experiments import checkpoint, loop, ranks, ranks_norms
from hyperfast.experiments.experiment import names
from hyperfast.experiments.loop import Training, run
from hyperfast.experiments.settings import LoopConfig
from hyperfast.experiments.training import descend_unclipped, read_table
from hyperfast.nn import PerTargetNorm

# ---- every experiment in two steps ------------------------------------------------------------------


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
    """(the state before the first step, names of the parameters in it)"""
    state, parameters = {}, []

    def keep(training, out, resume, after_step):
        state.update({k: v.clone() for k, v in checkpoint.training_state(training.model, training.optimizer).items()})
        parameters.extend(f"model.{name}" for name, _ in training.model.named_parameters())
        raise KeyboardInterrupt

    for module in LOOPS:
        monkeypatch.setattr(module, "run_loop", keep)
    monkeypatch.setattr("hyperfast.experiments.hypergan.baselines.run_loop", keep)
    monkeypatch.setattr("hyperfast.experiments.hypernetworks.classification.run_loop", keep)
    with pytest.raises(KeyboardInterrupt):
        CASES[name](folder)
    return state, parameters


# Eight of float32's.
ROUNDING = 2**-21


@pytest.mark.parametrize("name", CASES)
def test_20_two_ranks_train_as_one_process(name, work, tmp_path, monkeypatch):
    """What two steps change, of parameters and of statistics, but for float32's rounding: of the change, of the value itself,
    and of gradients that are sums of much that cancels; and the tables.
    """
    one, two = (folder / name.replace("/", "_") for folder in work[:2])
    before, parameters = initial(name, tmp_path, monkeypatch)
    alone, shared = (checkpoint.load(folder / loop.CHECKPOINT)[0] for folder in (one, two))
    assert alone.keys() == shared.keys() == before.keys()
    counters = [key for key, value in before.items() if not value.is_floating_point()]
    assert all(torch.equal(shared[key], alone[key]) for key in counters)
    whole = sum(float((alone[k] - before[k]).double().square().sum()) for k in parameters) ** 0.5
    assert whole > 0
    for key in before.keys() - counters:
        pairs = (alone, before), (shared, alone)
        change, error = (float((state[key] - other[key]).double().norm()) for state, other in pairs)
        assert error <= 1e-5 * change + ROUNDING * (float(before[key].double().norm()) + whole), key
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


def begun_alone(rank, out):
    """One process's checkpoint, gone on with by two."""
    if not rank:
        with ranks.sharing(None):
            small(out, rank, after_step=lambda step: step == 2 and signal.raise_signal(signal.SIGINT))
    ranks.meet()
    return small(out, rank, resume=True)


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
    for check in (uneven, not_shared, not_finite_on_one, stopped_on_one, begun_alone, other_steps, validated, norms)
}


def test_20_ranks_agree(work):
    first, second = work[2]
    assert first["uneven"] == second["uneven"] == "ValueError: config.batch must be a multiple of the 2 ranks; got 5"
    for found in (first, second):
        assert found["not_shared"].endswith("trained by one process with these settings; start it without torchrun")
        assert found["not_finite_on_one"].startswith(
            "ValueError: the loss is nan at step 3; there is no checkpoint yet"
        )
        assert found["stopped_on_one"] == ["2", "4", "6"]
        assert found["begun_alone"] == "6"
        assert found["other_steps"].endswith("must be the same; they are of the steps [1, 2]")
        assert found["norms"] < 1e-5
    assert first["validated"] == ["6", "[1, 1, 1]"]
    assert second["validated"] == ["6", "[]"]


def test_the_first_ranks_tables_are_everyones(work):
    folder = work[0].parent
    for name in ("stopped_on_one", "begun_alone"):
        losses = [row["loss"] for row in read_table(folder / name / "metrics.csv")]
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
        "diverse_networks/toy",
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
