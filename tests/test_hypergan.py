"""HyperGAN's classifiers on made-up digits: training by every method, checkpoints, evaluation, and the commands."""

import csv
import json
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from made_up import digits, write_idx, write_mnist

from hyperfast import cli, ensemble
from hyperfast.data import load_notmnist, load_photo_patches
from hyperfast.experiments import checkpoint, experiment
from hyperfast.experiments.checkpoint import config_from, plain
from hyperfast.experiments.experiment import Trained
from hyperfast.experiments.hypergan import baselines, evaluate, norms, outliers
from hyperfast.experiments.hypergan.cifar5 import TASK as CIFAR5
from hyperfast.experiments.hypergan.cifar10 import TASK as CIFAR10
from hyperfast.experiments.hypergan.config import Baseline, Evaluation
from hyperfast.experiments.hypergan.mnist import TASK
from hyperfast.experiments.hypergan.mnist.config import NAME, PRESETS, Config
from hyperfast.experiments.hypergan.train import batch, build, load, train, train_step
from hyperfast.experiments.training import generator_at, read_table
from hyperfast.models import targets
from hyperfast.nn import TargetNet

CPU = torch.device("cpu")
TINY = Config(
    noise=16, code=8, hidden=16, networks=4, images_a_network=16, steps=6, pretraining_codes=20, pretraining_steps=3,
    held_out=40, validate_every=3, validation_networks=3, log_every=1, checkpoint_every=2,
    generator_learning_rate=2e-3, encoder_learning_rate=2e-3,
    baseline=Baseline(epochs=1, images=20, members=3, members_at_once=2, networks=4, q_hidden=4, r_hidden=4),
    evaluation=Evaluation(
        ensemble_sizes=(1, 2), networks=4, repeats=2, norm_networks=3, outlier_networks=3, attack_images=20,
        attack_sizes=(0.1, 0.5), pgd_steps=2, transfer_networks=3, attack_ensembles=(2,), filter_samples=3, atypical=3,
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
    folder = write_mnist(tmp_path_factory.mktemp("data"), 300, 60)
    letters = folder / "notmnist"
    letters.mkdir()
    images, labels = digits(30, 9)
    write_idx(letters / "t10k-images-idx3-ubyte.gz", 255 - images)
    write_idx(letters / "t10k-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture(scope="module")
def parts(root):
    return TASK.read(TINY, root)


# ---- settings and data ------------------------------------------------------------------------------


def test_the_defaults_are_the_papers():
    config = PRESETS["paper"]
    assert config == Config()
    assert (config.noise, config.code, config.hidden) == (256, 128, 512)
    assert (config.networks, config.images_a_network, config.own_images) == (32, 32, False)
    assert config.learning_rates_at(9) == {"encoder": 5e-4, "generators": 1e-4, "discriminator": 1e-4}
    assert (config.adam_betas, config.weight_decay) == ((0.5, 0.9), 1e-4)
    assert (config.pretraining_codes, config.pretraining_steps, config.pretraining_stop) == (1_000, 100, 0.1)
    assert config.evaluation.attack_sizes == (0.01, 0.03, 0.08, 0.1, 0.3, 0.5, 1.0)
    assert config.evaluation.attack_ensembles == (5, 10, 100, 1_000)
    cifar = CIFAR10.presets["paper"]
    assert (cifar.noise, cifar.code, cifar.padding, cifar.flip) == (256, 256, 4, True)
    assert asdict(CIFAR5.presets["paper"]) == asdict(cifar)
    assert all(task.presets["5000"].subset == 5_000 for task in (TASK, CIFAR10))
    for task in (TASK, CIFAR10, CIFAR5):
        for preset in task.presets.values():
            assert config_from(task.config, json.loads(json.dumps(plain(preset))), None) == preset


def test_networks_see_images_of_mean_0_and_deviation_1():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    seen = CIFAR10.inputs(images)
    torch.testing.assert_close(seen[:, 1], (images[:, 1].float() / 255 - 0.4822) / 0.1994)
    torch.testing.assert_close(CIFAR10.inputs(images.float() / 255), seen)


def test_subsets_and_classes(root):
    whole, few = (TASK.read(replace(TINY, subset=n), root).training for n in (None, 50))
    assert torch.equal(few.images, whole.images[:50])
    with pytest.raises(ValueError, match=r"config.subset must be at most the 260 training images; got 261"):
        TASK.read(replace(TINY, subset=261), root)
    config = CIFAR5.presets["small"]
    found = CIFAR5.read(config, None)
    assert set(found.training.labels.tolist()) == set(found.test.labels.tolist()) == {0, 1, 2, 3, 4}
    assert found.training.images.shape[1:] == (3, 32, 32)
    name, others = CIFAR5.outliers(config.images, CIFAR5.everything(config, None), None)
    assert (name, len(others) + len(found.test)) == ("classes 5 to 9", 597)


def test_22_what_is_no_notmnist_is_refused(root, tmp_path):
    assert load_notmnist(root).images.shape == (30, 1, 28, 28)
    with pytest.raises(FileNotFoundError, match=r"notmnist-small10k-images.* were expected in .*notmnist"):
        load_notmnist(tmp_path)
    (tmp_path / "notmnist").mkdir()
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        whole = (root / "notmnist" / name).read_bytes()
        (tmp_path / "notmnist" / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz is a truncated or damaged gzip file"):
        load_notmnist(tmp_path)


def test_patches_are_cut_from_the_photographs():
    from sklearn.datasets import load_sample_images

    patches = load_photo_patches()
    photo = load_sample_images().images[0].mean(2) / 255
    assert patches.shape == (2 * (427 // 28) * (640 // 28), 1, 28, 28)
    np.testing.assert_allclose(patches[23, 0], photo[28:56, 28:56], atol=1e-6)


# ---- training ---------------------------------------------------------------------------------------


def test_networks_share_a_steps_images_or_have_their_own(parts):
    shared, labels = batch(TASK, TINY, parts.training, generator_at(0, 1))
    assert (shared.shape, labels.shape) == ((16, 1, 28, 28), (16,))
    own, labels = batch(TASK, replace(TINY, own_images=True), parts.training, generator_at(0, 1))
    assert (own.shape, labels.shape) == ((4, 16, 1, 28, 28), (4, 16))
    for m in (0, 3):  # each image has its own label
        at = (TASK.inputs(parts.training.images) - own[m, 5]).abs().amax((1, 2, 3)).argmin()
        assert parts.training.labels[at] == labels[m, 5]
    assert not torch.equal(own[0], own[1])


@pytest.mark.parametrize("own", [False, True])
def test_training_lowers_the_cross_entropy(parts, own):
    config = replace(TINY, own_images=own, hidden=64)
    net, model, optimizer = build(TASK, config, CPU)
    found = [train_step(TASK, config, net, model, optimizer, parts.training, step) for step in range(40)]
    mean = lambda name, some: sum(float(step[name]) for step in some) / len(some)
    assert mean("cross_entropy", found[-5:]) < 0.6 * mean("cross_entropy", found[:5])
    assert mean("batch_accuracy", found[-5:]) > 0.6
    one = found[0]
    assert float(one["loss"]) == pytest.approx(float(one["cross_entropy"] + one["adversarial_loss"]))


@pytest.mark.parametrize("method", ["hypergan", "ensemble", "mnfg"])
def test_21_resumed_training_is_bitwise_the_same(method, parts, tmp_path):
    config, stop = replace(TINY, method=method), 1 if method == "ensemble" else 3
    whole = train(TASK, config, parts, tmp_path / "whole", CPU)

    def interrupt(step):
        if step == stop:
            signal.raise_signal(signal.SIGINT)

    assert train(TASK, config, parts, tmp_path / "parts", CPU, after_step=interrupt) == (stop, whole[1])
    assert train(TASK, config, parts, tmp_path / "parts", CPU, resume=True) == whole
    a, b = (checkpoint.load(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (tmp_path / "whole" / "metrics.csv").read_bytes() == (tmp_path / "parts" / "metrics.csv").read_bytes()
    if method == "hypergan":
        with pytest.raises(ValueError, match=r"adversarial_weight: 1\.0 in the checkpoint, 2\.0 here"):
            train(TASK, replace(config, adversarial_weight=2.0), parts, tmp_path / "parts", CPU, resume=True)


def test_the_ensembles_networks_are_trained_one_by_one(parts, tmp_path):
    config = replace(TINY, method="ensemble")
    assert train(TASK, config, parts, tmp_path, CPU) == (2, 2)
    trained = load(TASK, tmp_path / "checkpoint.safetensors", CPU, 0)
    assert trained.members == 3
    theta = trained.sampler(torch.tensor([2, 0]))
    seed = generator_at(0, 1).initial_seed()

    def of_second_group(step):
        draws = generator_at(seed, step)
        picks = torch.randint(260, (1, 20), generator=draws)
        return TASK.inputs(parts.training.images[picks]), parts.training.labels[picks]

    expected = ensemble.train(
        targets.hypergan_mnist(), 1, of_second_group, baselines.cross_entropies, steps=13, seed=seed, lr=1e-3
    )
    torch.testing.assert_close(theta[:1], expected)
    assert len(read_table(tmp_path / "metrics.csv")) == 2


class Times(torch.nn.Module):
    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, x):
        return x * self.factors


def test_a_thinned_network_is_one_with_dropped_inputs():
    """The template's dropout layer is replaced by the mask."""
    net, p = TargetNet(targets.hypergan_cifar()), 0.3
    theta, z = net.init(1)[0], torch.rand(3, 256 + 128) * 2 - 1
    assert baselines.thinned_inputs(net) == 256 + 128
    thinned, x = baselines.thinned(net, theta, z, p), torch.randn(2, 3, 32, 32)
    for m in range(3):
        kept = [(part >= 2 * p - 1).float() / 0.7 for part in z[m].split([256, 128])]
        template = targets.hypergan_cifar(dropout=p)
        torch.nn.utils.vector_to_parameters(theta, template.parameters())
        for at, layer in enumerate(template):
            if isinstance(layer, torch.nn.Dropout):
                template[at] = Times(kept.pop(0))
        torch.testing.assert_close(net(x, thinned[m : m + 1])[0], template(x), rtol=1e-4, atol=1e-5)
    many = baselines.thinned(net, torch.ones_like(theta), torch.rand(500, 384) * 2 - 1, p)
    assert (many[:, -1280:] == 0).float().mean() == pytest.approx(p, abs=0.01)


# ---- what is measured -------------------------------------------------------------------------------


def test_norms_are_torchs():
    net = TargetNet(targets.hypergan_mnist(bias=True))
    theta = net.init(5)
    rows = norms.layer_norms(Trained(net, lambda i: theta[i], 0), 4)
    weights = net.unflatten(theta[:4])
    assert [row["weights"] for row in rows] == [800, 25_600, 5_120]
    expected = torch.stack([w.norm() for w in weights["3.weight"]])
    assert rows[1]["mean"] == pytest.approx(expected.mean().item(), rel=1e-5)
    assert rows[1]["std"] == pytest.approx(expected.std().item(), rel=1e-4)


def test_entropies_and_their_summary():
    low, high = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.2, 1.0])
    assert outliers.auroc(low, high) == pytest.approx((1 + 0.5 + 0 + 3) / 6)
    told = outliers.summary(low, high)
    assert told["inliers"]["share_below_0.8"] == pytest.approx(2 / 3)
    assert told["outliers"]["mean"] == pytest.approx(0.6)
    values, share = outliers.ecdf(torch.tensor([3.0, 1.0, 2.0, 2.0]))
    assert values.tolist() == [1, 2, 2, 3]
    assert share.tolist() == [0.25, 0.5, 0.75, 1]


def test_filters_drawn_are_the_templates():
    net = TargetNet(targets.hypergan_mnist())
    theta = net.init(2)
    found = evaluate.slices(net, theta)
    assert list(found) == [f"layer {l}, filter {f}" for l in (1, 2) for f in (1, 2)]
    torch.testing.assert_close(found["layer 2, filter 2"][1], net.unflatten(theta)["3.weight"][1, 1, 0])


# ---- the commands -----------------------------------------------------------------------------------


def test_the_commands_end_to_end(root, parts, tmp_path, capsys):
    run, data = tmp_path / "run", ["--data-root", str(root), "--device", "cpu"]
    train(TASK, TINY, parts, run, CPU)
    file = str(run / "checkpoint.safetensors")
    assert cli.main(["evaluate", NAME, "--checkpoint", file, *data, "--figures", "all"]) == 0
    for name in ("ensembles", "outliers", "atypical", "transfer", "attacks", "detection", "filters", "training"):
        assert (run / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    about = json.loads((run / "evaluation.json").read_text())
    assert (about["step"], about["method"]) == (6, "hypergan")
    assert {row["networks"] for row in about["rows"]} == {1, 2}
    assert json.loads((run / "outliers.json").read_text())["outliers_name"] == "notMNIST"
    with (run / "outliers.csv").open() as table:
        assert [row["set"] for row in csv.DictReader(table)] == ["inliers"] * 60 + ["outliers"] * 30
    out = tmp_path / "theta.safetensors"
    assert cli.main(["sample", NAME, "--checkpoint", file, "--members", "5", "--out", str(out), "--seed", "3"]) == 0
    theta, trained = checkpoint.load(out)[0]["theta"], load(TASK, run / "checkpoint.safetensors", CPU, seed=3)
    torch.testing.assert_close(theta, trained.sampler(torch.arange(5)))
    images, _ = digits(6, 3)
    np.save(tmp_path / "images.npy", images)
    found, of = tmp_path / "found.npz", ["--data", str(tmp_path / "images.npy"), "--reduce", "mean_prob"]
    assert cli.main(["predict", "--checkpoint", file, "--members", "5", *of, "--out", str(found), "--seed", "3"]) == 0
    seen = TASK.inputs(torch.from_numpy(images).unsqueeze(1))
    expected = trained.net(seen, theta).softmax(2).mean(0)
    torch.testing.assert_close(torch.from_numpy(np.load(found)["mean_prob"]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["dropout", "ensemble", "mnfg"])
def test_what_it_is_compared_with_is_measured_in_the_same_way(method, root, parts, tmp_path, capsys):
    train(TASK, replace(TINY, method=method), parts, tmp_path, CPU)
    file = str(tmp_path / "checkpoint.safetensors")
    figures = ["--figures", "norms,outliers,attacks", "--data-root", str(root)]
    assert cli.main(["evaluate", NAME, "--checkpoint", file, *figures]) == 0
    if method == "dropout":
        beside = ["--evaluation.beside", str(tmp_path), "--out", str(tmp_path / "again")]
        assert cli.main(["evaluate", NAME, "--checkpoint", file, *figures, *beside]) == 0
        one, both = ((tmp_path / place / "attacks.png").read_bytes() for place in (".", "again"))
        assert one != both
    rows = list(csv.DictReader((tmp_path / "attacks.csv").open()))
    assert {row["fresh"] for row in rows} <= {str(method != "ensemble")}
    trained = load(TASK, tmp_path / "checkpoint.safetensors", CPU, 5)
    whole = trained.sampler(torch.arange(3))
    torch.testing.assert_close(trained.sampler(torch.tensor([2, 0])), whole[[2, 0]])
    sample = ["sample", NAME, "--checkpoint", file, "--out", str(tmp_path / "theta.safetensors"), "--members", "4"]
    assert cli.main(sample) == (1 if method == "ensemble" else 0)
    if method == "ensemble":
        assert "--members must be at most 3, the networks in the checkpoint; got 4" in capsys.readouterr().err


def test_small_presets_need_no_data_root():
    for name in ("hypergan/mnist", "hypergan/cifar10", "hypergan/cifar5"):
        config = experiment.find(name).presets["small"]
        task = {"hypergan/mnist": TASK, "hypergan/cifar10": CIFAR10, "hypergan/cifar5": CIFAR5}[name]
        found = task.read(config, None)
        config = replace(config, hidden=64, networks=2)
        values = train_step(task, config, *build(task, config, CPU), found.training, 0)
        assert found.training.images.shape[1:] == found.test.images.shape[1:] == task.shape
        assert values["cross_entropy"].isfinite()


def test_cifar5_is_measured_on_the_classes_that_it_has_not_seen(tmp_path):
    config = replace(
        CIFAR5.presets["small"], hidden=16, networks=2, steps=2, pretraining_steps=2, validation_images=20, padding=2,
        flip=True, evaluation=replace(TINY.evaluation, images=40),
    )  # fmt: skip
    assert train(CIFAR5, config, CIFAR5.read(config, None), tmp_path, CPU) == (2, 2)
    file = str(tmp_path / "checkpoint.safetensors")
    assert cli.main(["evaluate", CIFAR5.name, "--checkpoint", file, "--figures", "outliers,atypical,filters"]) == 0
    assert json.loads((tmp_path / "outliers.json").read_text())["outliers_name"] == "classes 5 to 9"
    assert list(json.loads((tmp_path / "filters.json").read_text())) == [
        f"layer {l}, filter {f}" for l in (1, 2, 3) for f in (1, 2)
    ]
    assert "outliers" not in experiment.find(CIFAR10.name).figures
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    what = ["--data", str(tmp_path / "images.npy"), "--members", "2", "--out", str(tmp_path / "found.npz")]
    assert cli.main(["predict", "--checkpoint", file, *what]) == 0
    assert np.load(tmp_path / "found.npz")["mean_prob"].shape == (3, 10)
    np.save(tmp_path / "images.npy", images[:, :1])
    assert cli.main(["predict", "--checkpoint", file, *what]) == 1
