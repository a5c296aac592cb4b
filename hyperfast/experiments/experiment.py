"""What the command line needs of an experiment, and the registry of them all."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn import TargetNet

# name -> the module that has its EXPERIMENT. A module is imported when its experiment is asked for.
_REGISTRY = {
    "diverse_networks/mnfg": "hyperfast.experiments.diverse_networks.mnfg",
    "diverse_networks/mnist": "hyperfast.experiments.diverse_networks.mnist",
    "diverse_networks/toy": "hyperfast.experiments.diverse_networks.toy",
    "functional_images/faces": "hyperfast.experiments.functional_images.faces",
    "functional_images/super_resolution": "hyperfast.experiments.functional_images.super_resolution",
    "functional_images/shapes": "hyperfast.experiments.functional_images.shapes",
    "hypergan/cifar10": "hyperfast.experiments.hypergan.cifar10",
    "hypergan/cifar5": "hyperfast.experiments.hypergan.cifar5",
    "hypergan/mnist": "hyperfast.experiments.hypergan.mnist",
    "hypergan/regression": "hyperfast.experiments.hypergan.regression",
    "hypernetworks/char_lm": "hyperfast.experiments.hypernetworks.char_lm",
    "hypernetworks/coordinates": "hyperfast.experiments.hypernetworks.coordinates",
    "hypernetworks/handwriting": "hyperfast.experiments.hypernetworks.handwriting",
    "hypernetworks/mnist": "hyperfast.experiments.hypernetworks.mnist",
    "hypernetworks/wrn": "hyperfast.experiments.hypernetworks.wrn",
}


@dataclass(frozen=True)
class Trained:
    """What a checkpoint generates networks with."""

    net: TargetNet
    sampler: Callable[[Tensor], Tensor]
    """indices [m] int64 -> theta [m,P]; member i depends on i alone, up to rounding."""
    step: int
    """Training steps taken."""
    noise: Callable[[Tensor], Tensor] | None = None
    """Where sampler(i) = generate(noise(i)): indices [m] -> noise [m,Z] ..."""
    generate: Callable[[Tensor], Tensor] | None = None
    """... and any noise [m,Z] -> theta [m,P]."""
    members: int | None = None
    """How many there are; None: as many as are asked for."""

    @staticmethod
    def of_noise(
        net: TargetNet, noise: Callable[[Tensor], Tensor], generate: Callable[[Tensor], Tensor], step: int
    ) -> Trained:
        """With sampler(i) = generate(noise(i))."""
        return Trained(net, lambda indices: generate(noise(indices)), step, noise, generate)


@dataclass(frozen=True)
class Experiment:
    """One experiment. Its functions raise ValueError or OSError, with a message for the user, and nothing else."""

    name: str
    summary: str
    presets: Mapping[str, Any]
    """Configs by name; "paper" is the config dataclass's defaults."""
    train: Callable[[Any, Path, Path | None, torch.device, bool], None]
    """(config, folder to write to, data root, device, resume)."""
    evaluation: Callable[[Path], Any]
    """The settings that evaluate takes, as the checkpoint's config has them."""
    evaluate: Callable[[Any, Path, Path, Path | None, torch.device, tuple[str, ...]], None]
    """(settings, checkpoint, folder to write to, data root, device, names of figures)."""
    figures: tuple[str, ...]
    load: Callable[[Path, torch.device, int], Trained] | None = None
    """(checkpoint, device, seed of the samples); None: it generates no networks that could be sampled."""
    read_inputs: Callable[[Path], Tensor] | None = None
    """A file of the user's -> inputs [N,...] of the networks; None: nothing is predicted with them."""


def names() -> list[str]:
    """Every experiment."""
    return sorted(_REGISTRY)


def find(name: str) -> Experiment:
    """The experiment of that name. Raises ValueError that lists the known ones."""
    if name not in _REGISTRY:
        raise ValueError(f"there is no experiment {name!r}; known: {', '.join(names())}")
    return importlib.import_module(_REGISTRY[name]).EXPERIMENT
