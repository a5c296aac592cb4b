"""What tells HyperGAN's classification experiments apart: images, their scale, and the target network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data import Labelled, Parts, augmented, load_pictures
from ...nn import TargetNet
from .config import ClassifierConfig


@dataclass(frozen=True)
class Task:
    """One classification experiment."""

    name: str
    summary: str
    config: type[ClassifierConfig]
    presets: dict[str, ClassifierConfig]
    template: Callable[..., nn.Sequential]
    """The target network; takes bias=True, and dropout=p before its linear layers."""
    mean: tuple[float, ...]
    """Of each channel of images in [0, 1] ..."""
    std: tuple[float, ...]
    """... and its standard deviation: networks see (x - mean) / std."""
    shape: tuple[int, int, int]
    """[C,H,W] of an image."""
    outliers: Callable[[str, Parts, Path | None], tuple[str, Tensor]] | None = None
    """(name of the images, all their parts, data root) -> what the outliers are, and the outliers [N,C,H,W]."""
    classes: int = 10
    """Images of this class and later ones are left out."""

    def inputs(self, images: Tensor) -> Tensor:
        """What networks see of images [...,C,H,W], uint8 or floats in [0, 1]."""
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        mean, std = (images.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def net(self, config: ClassifierConfig) -> TargetNet:
        """The target network; the normalizing flows take one with biases."""
        return TargetNet(self.template(bias=config.method == "mnfg"))

    def read(self, config: ClassifierConfig, root: Path | None) -> Parts:
        """The images of config.images: training (of config.subset), validation and test. Raises what load_pictures does."""
        parts = self.everything(config, root)
        chosen = [self._chosen(part) for part in (parts.training, parts.validation, parts.test)]
        if config.subset is not None and config.subset > len(chosen[0]):
            raise ValueError(f"config.subset must be at most the {len(chosen[0])} training images; got {config.subset}")
        return Parts(chosen[0][: config.subset], chosen[1], chosen[2], parts.title)

    def everything(self, config: ClassifierConfig, root: Path | None) -> Parts:
        """The images of all classes, of the size that the target network takes."""
        parts = load_pictures(config.images, root, config.held_out)
        training, validation, test = (self._sized(part) for part in (parts.training, parts.validation, parts.test))
        return Parts(training, validation, test, parts.title)

    def _chosen(self, data: Labelled) -> Labelled:
        return data[data.labels < self.classes] if self.classes < 10 else data

    def _sized(self, data: Labelled) -> Labelled:
        """Embedded images are enlarged where they are smaller than the target network's."""
        if data.images.shape[1:] == self.shape:
            return data
        as_floats = data.images.float() / 255 if data.images.dtype == torch.uint8 else data.images
        return Labelled(F.interpolate(as_floats, self.shape[1:], mode="bilinear"), data.labels)


def drawn(config: ClassifierConfig, data: Labelled, picks: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """The images picked [...], augmented as the settings say, and their labels."""
    picks = picks.to(data.labels.device)
    images = augmented(data.images[picks.flatten()], config.padding, config.flip, draws)
    return images.unflatten(0, tuple(picks.shape)), data.labels[picks]
