"""Labelled images by name, in three parts: what image classifiers are trained on."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .cifar import CIFAR10, load_cifar10, load_cifar10_subset
from .digits import load_digits
from .labelled import Labelled, Parts, held_out
from .mnist import load_mnist

PICTURES = ("mnist", "digits", "cifar10", "cifar10_subset", "colour_digits")
_SEED = 0  # of the images that are held out, and of colours: the parts are the same in every training


def load_pictures(name: str, root: str | Path | None = None, validation: int = 5_000) -> Parts:
    """The images of that name, `validation` of the training images held out.

    - "mnist" [N,1,28,28] float32 (load_mnist): the last ones held out,
    - "cifar10", "cifar10_subset" [N,3,32,32] uint8 (load_cifar10, load_cifar10_subset): held out at random,
    - "digits" [N,1,28,28] float32 and "colour_digits" [N,3,16,16] uint8: scikit-learn's, enlarged; these need no root.

    Raises ValueError where the name is unknown or too many are held out, and what the readers raise.
    """
    if name == "mnist":
        return Parts(*load_mnist(root).split(validation), "MNIST")
    if name == "cifar10":
        return _shuffled(load_cifar10(root), validation)
    if name == "cifar10_subset":
        return _shuffled(load_cifar10_subset(root), validation)
    if name in ("digits", "colour_digits"):
        digits = load_digits(seed=_SEED)
        draw = _grey if name == "digits" else _coloured
        train = Labelled(draw(digits.train_images), digits.train_labels)
        title = "scikit-learn's digits" if name == "digits" else "scikit-learn's digits in colour"
        return Parts(*held_out(train, validation), Labelled(draw(digits.test_images), digits.test_labels), title)
    raise ValueError(f"there are no pictures {name!r}; known: {', '.join(PICTURES)}")


def _shuffled(data: CIFAR10, validation: int) -> Parts:
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(_SEED))
    return Parts(*held_out(data.train[order], validation), data.test, data.title)


def _enlarged(images: Tensor, side: int) -> Tensor:
    """[N,64] -> [N,1,side,side]"""
    return F.interpolate(images.view(-1, 1, 8, 8), (side, side), mode="bilinear", antialias=False)


def _grey(images: Tensor) -> Tensor:
    """[N,64] -> [N,1,28,28]: 20x20 pixels in a frame of 4, as MNIST's digits are."""
    return F.pad(_enlarged(images, 20), (4, 4, 4, 4))


def _coloured(images: Tensor) -> Tensor:
    """[N,64] -> [N,3,16,16] uint8: a light colour of its own on a dark one for each."""
    ink = _enlarged(images, 16)
    light, dark = torch.rand(2, len(images), 3, 1, 1, generator=torch.Generator().manual_seed(_SEED)).unbind()
    light, dark = 0.5 + 0.5 * light, 0.5 * dark
    return (255 * (dark + ink * (light - dark))).round().to(torch.uint8)
