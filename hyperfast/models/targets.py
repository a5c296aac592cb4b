"""The papers' convolutional target networks, as templates for hf.nn.TargetNet."""

from __future__ import annotations

from torch import nn


def deutsch_mnist() -> nn.Sequential:
    """Deutsch, "Generating neural networks with neural networks", section 4.1: 28x28 digits, 20,018 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(784, 8), nn.ReLU(),
        nn.Linear(8, 10),
    )  # fmt: skip


def hypergan_mnist() -> nn.Sequential:
    """HyperGAN, appendix: 28x28 digits, valid convolutions without biases, 31,520 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, bias=False), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, bias=False), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(512, 10, bias=False),
    )  # fmt: skip


def hypergan_cifar() -> nn.Sequential:
    """HyperGAN, table 2: 32x32 colour images, valid convolutions without biases, 57,520 weights."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, bias=False), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, bias=False), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 128, bias=False), nn.LeakyReLU(0.01),
        nn.Linear(128, 10, bias=False),
    )  # fmt: skip
