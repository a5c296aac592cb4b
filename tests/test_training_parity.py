"""Row 30: training with the fused kernels ends where training on the plain reference ends, within the seeds' spread."""

from dataclasses import replace

import pytest
import torch
from made_up import digits

from hyperfast import backend
from hyperfast.data import Labelled, Parts
from hyperfast.experiments.diverse_networks.mnfg import config as mnfg_config
from hyperfast.experiments.diverse_networks.mnfg import train as mnfg
from hyperfast.experiments.diverse_networks.mnist import config as mnist_config
from hyperfast.experiments.diverse_networks.mnist import train as mnist
from hyperfast.experiments.hypergan import train as hypergan
from hyperfast.experiments.hypergan.mnist import TASK
from hyperfast.experiments.training import read_table

SEEDS = (0, 1, 2)
SHORT = {
    "mnist": replace(mnist_config.PRESETS["small"], networks=4, images=8, steps=60, validation_networks=8),
    "mnfg": replace(mnfg_config.PRESETS["small"], images=40, networks=4, epochs=1, validation_networks=4),
    "hypergan": replace(
        TASK.presets["small"], hidden=64, networks=4, images_a_network=8, steps=20, validation_networks=4,
        validation_images=100, pretraining_steps=5,
    ),
}  # fmt: skip
FULL = {"mnist": mnist_config.PRESETS["small"], "mnfg": replace(mnfg_config.PRESETS["small"], epochs=30),
        "hypergan": TASK.presets["small"]}  # fmt: skip


def labelled(count, seed):
    pixels, labels = digits(count, seed)
    return Labelled(torch.from_numpy(pixels).unsqueeze(1).float() / 255, torch.from_numpy(labels).long())


def last_validation(name, config, backend_name, count, folder):
    """The last row of validation.csv, after training on made-up digits."""
    training, validation = labelled(count, 1), labelled(200, 2)
    with backend(backend_name):
        if name == "hypergan":
            hypergan.train(TASK, config, Parts(training, validation, validation, ""), folder, torch.device("cpu"))
        else:
            module = {"mnist": mnist, "mnfg": mnfg}[name]
            module.train(config, training, validation, folder, torch.device("cpu"))
    return {key: float(value) for key, value in read_table(folder / "validation.csv")[-1].items()}


@pytest.mark.parametrize("name", ["mnist", "mnfg", "hypergan"])
def test_30_kernels_train_as_the_reference_does(name, long_run, tmp_path):
    config, count = ((FULL if long_run else SHORT)[name], 4_000 if long_run else 2_000)
    found = {
        how: [
            last_validation(name, replace(config, seed=seed), how, count, tmp_path / f"{how}{seed}") for seed in SEEDS
        ]
        for how in ("cpp", "reference")
    }
    for metric in ("loss",) if name == "hypergan" else ("loss", "cross_entropy"):
        fused, plain = ([row[metric] for row in found[how]] for how in ("cpp", "reference"))
        spread = max(plain) - min(plain)
        assert spread > 0
        assert abs(sum(fused) - sum(plain)) / len(SEEDS) <= spread, (metric, fused, plain)
