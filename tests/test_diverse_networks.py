"""Deutsch's MNIST experiment on made-up digits: training, checkpoints, evaluation, and the commands."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from made_up import digits, write_mnist

from hyperfast import cli, ensemble
from hyperfast.data import Labelled, load_mnist
from hyperfast.experiments import checkpoint, experiment
from hyperfast.experiments.accuracy import score
from hyperfast.experiments.diverse_networks.mnist.config import NAME, PRESETS, Config, Evaluation
from hyperfast.experiments.diverse_networks.mnist.train import build, load, train, train_step, validate
from hyperfast.experiments.training import Table, read_table
from hyperfast.reference.gauge import fix_gauge

CPU = torch.device("cpu")
TINY = Config(
    networks=4, images=8, steps=6, held_out=40, validate_every=3, validation_networks=3, log_every=1, checkpoint_every=2,
    evaluation=Evaluation(networks=7, ensemble_sizes=(2, 3), repeats=2),
)  # fmt: skip
SETTINGS = [
    *("--config.networks", "4", "--config.images", "8", "--config.held-out", "40", "--config.validation-networks", "3"),
    *("--config.evaluation.networks", "7", "--config.evaluation.ensemble-sizes", "2", "3"),
    *(
        "--config.evaluation.scatter-networks",
        "9",
        "--config.evaluation.path-pairs",
        "1",
        "--config.evaluation.path-points",
        "3",
    ),
    *("--config.evaluation.adversarial-images", "40", "--config.evaluation.adversarial-networks", "3"),
]


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


def state_of(folder):
    return checkpoint.load(folder / "checkpoint.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_defaults_are_the_papers():
    config = PRESETS["paper"]
    assert config == Config()
    assert (config.accuracy_weight, config.networks, config.images, config.steps) == (1e3, 32, 32, 13_000)
    assert (config.learning_rate_at(0), config.entropy_dim, config.entropy_epsilon) == (3e-4, 300, 1e-8)
    assert config.learning_rate_at(2) == 3e-4 * 0.99998**2
    assert (config.held_out, config.validate_every, config.validation_networks) == (5_000, 1_000, 200)
    assert config.evaluation == Evaluation(networks=4_000, repeats=20)
    assert 200 in config.evaluation.ensemble_sizes


def test_a_step_is_the_papers_loss(parts):
    """Against the equations written out: other images for each network, gauged weights in both terms."""
    config = replace(TINY, accuracy_weight=7.0)
    net, hypernetwork, optimizer = build(config, CPU)
    before = [p.detach().clone() for p in hypernetwork.parameters()]
    found = {key: float(value) for key, value in train_step(config, net, hypernetwork, optimizer, parts[0], 5).items()}
    assert any(not torch.equal(a, b) for a, b in zip(before, hypernetwork.parameters(), strict=True))

    from hyperfast.experiments.training import generator_at

    net, hypernetwork, _ = build(config, CPU)
    draws = generator_at(config.seed, 5)
    z = torch.rand(4, 300, generator=draws) * 2 - 1
    picks = torch.randint(260, (4, 8), generator=draws)
    theta = fix_gauge(hypernetwork(z), net.plan)
    p = torch.stack([net(parts[0].images[picks[b]], theta[b : b + 1])[0] for b in range(4)]).softmax(-1)
    cross_entropy = -p.gather(2, parts[0].labels[picks].unsqueeze(2)).log().mean()
    distances = (theta.unsqueeze(0) - theta.unsqueeze(1)).norm(dim=2).fill_diagonal_(torch.inf)
    entropy = torch.digamma(torch.tensor(4.0)) + 300 * torch.log(distances.min(1).values + 1e-8).mean()
    assert found["cross_entropy"] == pytest.approx(cross_entropy.item(), rel=1e-5)
    assert found["entropy"] == pytest.approx(entropy.item(), rel=1e-5)
    assert found["loss"] == pytest.approx(7 * cross_entropy.item() - entropy.item(), rel=1e-5)
    l1 = train_step(replace(config, entropy_distance="l1"), *build(config, CPU), parts[0], 5)
    distances = (theta.unsqueeze(0) - theta.unsqueeze(1)).abs().sum(2).fill_diagonal_(torch.inf)
    entropy = torch.digamma(torch.tensor(4.0)) + 300 * torch.log(distances.min(1).values + 1e-8).mean()
    assert float(l1["entropy"]) == pytest.approx(entropy.item(), rel=1e-5)


def test_the_loss_falls_and_the_networks_learn(parts, tmp_path):
    config = replace(TINY, networks=8, images=16, steps=120, validate_every=120, validation_networks=8)
    assert train(config, parts[0], parts[1], tmp_path, CPU) == 120
    rows = read_table(tmp_path / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 121))
    losses = [float(row["loss"]) for row in rows]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 600
    (last,) = read_table(tmp_path / "validation.csv")
    assert float(last["accuracy"]) > 0.35  # 0.1 by chance


def test_21_resumed_training_is_bitwise_the_same(parts, tmp_path):
    training, validation, _ = parts
    train(TINY, training, validation, tmp_path / "whole", CPU)

    def interrupt(step):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    assert train(TINY, training, validation, tmp_path / "parts", CPU, after_step=interrupt) == 3
    assert train(TINY, training, validation, tmp_path / "parts", CPU, resume=True) == 6
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    for name in ("metrics.csv", "validation.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    # Fewer steps first, and then more: the steps taken do not depend on how many are wanted.
    train(replace(TINY, steps=4), training, validation, tmp_path / "longer", CPU)
    train(TINY, training, validation, tmp_path / "longer", CPU, resume=True)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "longer"))


def test_21_killed_in_mid_write_leaves_the_last_good_checkpoint(parts, tmp_path, monkeypatch):
    """The process dies half-way through its second checkpoint, of step 4; rows of the CSV files go on to step 4."""
    training, validation, _ = parts
    train(TINY, training, validation, tmp_path / "whole", CPU)
    from safetensors import torch as safetensors

    whole_write, writes = safetensors.save_file, []

    def killed(tensors, path, metadata):
        writes.append(path)
        whole_write(tensors, path, metadata)
        if len(writes) == 2:
            path.write_bytes(path.read_bytes()[:5000])
            raise MemoryError

    monkeypatch.setattr(safetensors, "save_file", killed)
    with pytest.raises(MemoryError):
        train(TINY, training, validation, tmp_path / "killed", CPU)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "killed" / "checkpoint.safetensors")[1]["step"] == 2
    assert len(read_table(tmp_path / "killed" / "metrics.csv")) == 4
    train(TINY, training, validation, tmp_path / "killed", CPU, resume=True)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "killed" / "metrics.csv").read_bytes()


def test_21_checkpoints_that_do_not_fit_are_refused(parts, tmp_path):
    run = partial(train, training=parts[0], validation=parts[1], out=tmp_path, device=CPU)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        run(TINY, resume=True)
    run(replace(TINY, steps=1))
    with pytest.raises(ValueError, match=r"exists: go on from it with --resume, or write elsewhere with --out"):
        run(TINY)
    other = replace(TINY, networks=5, learning_rate=1.0, evaluation=Evaluation())
    with pytest.raises(ValueError, match="another configuration") as refused:
        run(other, resume=True)
    assert "networks: 4 in the checkpoint, 5 here; learning_rate: 0.0003 in the checkpoint, 1.0 here." in str(
        refused.value
    )
    assert "evaluation" not in str(refused.value)
    path = tmp_path / "checkpoint.safetensors"
    state, about = checkpoint.load(path)
    checkpoint.save(path, state, about | {"config": {**about["config"], "colour": 1}})
    with pytest.raises(ValueError, match="another version of hyperfast: its configuration differs in colour"):
        load(path, CPU, 0)
    checkpoint.save(path, state, about | {"experiment": "demo"})
    with pytest.raises(ValueError, match="no checkpoint of diverse_networks/mnist, but of demo"):
        run(TINY, resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a readable safetensors checkpoint"):
        run(TINY, resume=True)


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(parts, tmp_path):
    spoiled = Labelled(parts[0].images.clone(), parts[0].labels)

    def spoil(step):
        if step == 4:
            spoiled.images.fill_(torch.nan)

    with pytest.raises(ValueError, match=r"the loss is \S+ at step 5; \S+checkpoint.safetensors has step 4"):
        train(TINY, spoiled, parts[1], tmp_path, CPU, after_step=spoil)
    assert all(tensor.isfinite().all() for tensor in state_of(tmp_path).values())


def test_a_table_goes_on_where_the_checkpoint_is(tmp_path):
    path = tmp_path / "t.csv"
    table = Table(path, ("a",), 0)
    for step in (1, 2, 3):
        table.add(step, {"a": step / 3})
    path.write_text(path.read_text() + "4")  # killed in mid-row
    Table(path, ("a",), 2).add(3, {"a": 9.0})
    assert path.read_text().split() == ["step,a", "1,0.3333333", "2,0.6666667", "3,9"]


def test_scores_are_those_of_the_ensembles_one_by_one(parts, tmp_path):
    """One pass against hf.ensemble.predict on each ensemble, with chunks that cut through ensembles."""
    train(replace(TINY, steps=2), *parts[:2], tmp_path, CPU)
    trained = load(tmp_path / "checkpoint.safetensors", CPU, seed=1)
    theta, test = trained.sampler(torch.arange(40)), parts[2]
    found = score(
        trained.net, trained.sampler, test, Evaluation(networks=40, ensemble_sizes=(1, 3, 18, 40, 41), repeats=4)
    )
    assert {size: len(accuracies) for size, accuracies in found.vote.items()} == {1: 4, 3: 4, 18: 2, 40: 1}
    for size, accuracies in found.vote.items():
        for i, accuracy in enumerate(accuracies):
            r = ensemble.predict(
                trained.net, test.images, theta[i * size : (i + 1) * size], ("votes", "mean_prob", "member_accuracy"),
                targets=test.labels,
            )  # fmt: skip
            assert accuracy == pytest.approx((r.votes.argmax(1) == test.labels).double().mean().item())
            by_mean = (r.mean_prob.argmax(1) == test.labels).double().mean().item()
            assert found.mean_prob[size][i] == pytest.approx(by_mean, abs=1 / 60 + 1e-9)  # rounding may move a tie
            torch.testing.assert_close(
                found.member_accuracy[i * size : (i + 1) * size].float(), r.member_accuracy, rtol=0, atol=1 / 60 + 1e-6
            )


def test_validation_changes_nothing_and_repeats(parts):
    net, hypernetwork, _ = build(TINY, CPU)
    before = {key: value.clone() for key, value in hypernetwork.state_dict().items()}
    first = validate(TINY, net, hypernetwork, parts[1])
    assert hypernetwork.training
    assert same(before, hypernetwork.state_dict())
    assert validate(TINY, net, hypernetwork, parts[1]) == first
    assert first["loss"] == pytest.approx(1e3 * first["cross_entropy"] - first["entropy"])


def test_the_commands_end_to_end(root, tmp_path, capsys):
    run, data = tmp_path / "run", ["--data-root", str(root), "--device", "cpu"]
    assert cli.main(["train", NAME, *SETTINGS, *data, "--config.steps", "3", "--out", str(run)]) == 0
    assert cli.main(["train", NAME, *SETTINGS, *data, "--config.steps", "5", "--out", str(run), "--resume"]) == 0
    file = str(run / "checkpoint.safetensors")
    assert f"hyperfast evaluate {NAME} --checkpoint {file}" in capsys.readouterr().out.replace("\n", " ")

    assert cli.main(["evaluate", NAME, "--checkpoint", file, *data, "--figures", "all"]) == 0
    about = json.loads((run / "evaluation.json").read_text())
    assert about["step"] == 5
    assert [(r["set"], r["networks"], r["decision"], r["repeats"]) for r in about["rows"]][:3] == [
        ("validation", 1, "alone", 7), ("validation", 2, "majority vote", 3), ("validation", 2, "mean probability", 3),
    ]  # fmt: skip
    with (run / "accuracies.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 7
    assert np.mean([float(row["test"]) for row in rows]) == pytest.approx(
        next(r["mean"] for r in about["rows"] if r["set"] == "test" and r["networks"] == 1)
    )
    drawn = ["histogram_validation", "histogram_test", "ensembles_validation", "ensembles_test", "filters", "training"]
    drawn += ["paths", "adversarial", "scatter_network", *(f"scatter_layer{i}" for i in range(1, 5))]
    for name in drawn:
        assert (run / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    some = tmp_path / "some"
    options = ["--evaluation.networks", "2", "--evaluation.images", "9", "--out", str(some)]
    for figures, written in (
        ("filters", ["filters.csv", "filters.json", "filters.png"]),
        ("none", ["accuracies.csv", "ensembles.csv", "evaluation.json"]),
    ):
        assert cli.main(["evaluate", NAME, "--checkpoint", file, *data, *options, "--figures", figures]) == 0
        assert sorted(path.name for path in some.iterdir()) == written
        for path in some.iterdir():
            path.unlink()

    out = tmp_path / "theta.safetensors"
    assert cli.main(["sample", NAME, "--checkpoint", file, "--members", "5", "--out", str(out), "--seed", "3"]) == 0
    theta, about = checkpoint.load(out)
    trained = load(run / "checkpoint.safetensors", CPU, seed=3)
    torch.testing.assert_close(theta["theta"], trained.sampler(torch.arange(5)))
    assert about["layout"][0] == ["0.weight", [32, 1, 5, 5]]

    np.save(tmp_path / "images.npy", digits(600, 7)[0])  # more than one batch
    command = ["predict", "--checkpoint", file, "--members", "5", "--seed", "3", "--device", "cpu",
               "--data", str(tmp_path / "images.npy"), "--reduce", "mean_prob,entropy,votes", "--out"]  # fmt: skip
    for out in (tmp_path / "p.npz", tmp_path / "p.safetensors"):
        assert cli.main([*command, str(out)]) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "hyperfast.cli", *command, tmp_path / "ranks.npz"], capture_output=True, text=True,
        check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("5 networks on 600 inputs: mean_prob, entropy, votes in") == 1
    assert not list(tmp_path.glob("*.partial*"))
    arrays = np.load(tmp_path / "p.npz")
    images = torch.from_numpy(digits(600, 7)[0]).unsqueeze(1).float() / 255
    expected = ensemble.predict(trained.net, images, theta["theta"], ("mean_prob", "entropy", "votes"))
    np.testing.assert_allclose(arrays["mean_prob"], expected.mean_prob, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(arrays["entropy"], expected.entropy, rtol=1e-4, atol=1e-4)
    assert arrays["votes"].sum() == 5 * 600
    of_ranks = np.load(tmp_path / "ranks.npz")
    np.testing.assert_array_equal(of_ranks["votes"], arrays["votes"])
    np.testing.assert_allclose(of_ranks["mean_prob"], arrays["mean_prob"], rtol=1e-6, atol=1e-7)
    assert torch.equal(checkpoint.load(tmp_path / "p.safetensors")[0]["entropy"], torch.from_numpy(arrays["entropy"]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "diverse_networks/nothing"], "no experiment 'diverse_networks/nothing'; known: diverse_networks/mnfg, diverse_networks/mnist"),
        (["train"], "name an experiment first"),
        (["train", NAME, "--preset", "huge"], "no preset 'huge'"),
        (["train", NAME, "--data-root", "/nowhere"], "/nowhere"),
        (["train", NAME, "--device", "cuda:99"], "--device cuda:99 is not available"),
        (["evaluate", NAME, "--checkpoint", "/nowhere/c"], "there is no checkpoint /nowhere/c"),
        (["sample", NAME, "--checkpoint", "/nowhere/c", "--members", "0", "--out", "x"], "--members must be at least 1"),
        (["predict", "--checkpoint", "c", "--members", "2", "--data", "d", "--out", "o.txt"], "must end in .npz or"),
        (
            ["predict", "--checkpoint", "c", "--members", "2", "--data", "d", "--out", "o.npz", "--reduce", "mode"],
            "--reduce: unknown 'mode'; known: mean_prob, votes",
        ),
        (["predict", "--checkpoint", __file__, "--members", "2", "--data", "d", "--out", "o.npz"], "not a readable"),
    ],
)  # fmt: skip
def test_user_errors_are_messages_with_status_1(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    assert words in capsys.readouterr().err


def test_inputs_that_are_no_images_are_refused(tmp_path):
    read = experiment.find(NAME).read_inputs
    for values in (np.zeros((2, 27, 28), np.uint8), np.zeros((2, 28, 28), np.int64)):
        np.save(tmp_path / "x.npy", values)
        with pytest.raises(ValueError, match=r"x.npy: images \[N,28,28\] or .* were expected"):
            read(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"text")
    with pytest.raises(ValueError, match=r"x.npy is not a readable .npy"):
        read(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.full((2, 1, 28, 28), 0.5))
    assert torch.equal(read(tmp_path / "x.npy"), torch.full((2, 1, 28, 28), 0.5))


@pytest.mark.parametrize("missing", ["tyro", "safetensors", "rich"])
def test_a_missing_extra_is_a_hint(missing, root, tmp_path):
    """In a process of its own, where nothing has been imported yet."""
    code = f"import sys; sys.modules[{missing!r}] = None; from hyperfast.cli import main; raise SystemExit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "train", NAME, *SETTINGS, "--config.steps", "1"]
    command += ["--data-root", str(root), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"hyperfast train needs {missing}: pip install 'hyperfast[experiments]'\n"


def test_ctrl_c_leaves_a_usable_checkpoint(root, tmp_path):
    command = [sys.executable, "-m", "hyperfast.cli", "train", NAME, *SETTINGS, "--config.steps", "1000000"]
    command += ["--data-root", str(root), "--out", str(tmp_path), "--config.log-every", "1", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 60
    metrics = tmp_path / "metrics.csv"
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "--resume goes on from it" in out.replace("\n", " ")
    assert load(tmp_path / "checkpoint.safetensors", CPU, 0).step >= 3
