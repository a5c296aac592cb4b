"""The papers' target networks, as templates for hf.nn.TargetNet."""

from __future__ import annotations

from typing import Literal

from torch import nn

from ..nn import Cos, PerTargetNorm, Residual


def deutsch_mnist() -> nn.Sequential:
    """Deutsch, "Generating neural networks with neural networks", section 4.1: 28x28 digits, 20,018 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(784, 8), nn.ReLU(),
        nn.Linear(8, 10),
    )  # fmt: skip


def hypergan_mnist(bias: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """HyperGAN, appendix: 28x28 digits, valid convolutions without biases, 31,520 weights.

    bias: of every layer. dropout: the probability of dropping what a linear layer reads. Neither is the paper's.
    """
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, bias=bias), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, bias=bias), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Flatten(), *_dropout(dropout),
        nn.Linear(512, 10, bias=bias),
    )  # fmt: skip


def hypergan_cifar(bias: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """HyperGAN, table 2: 32x32 colour images, valid convolutions without biases, 57,520 weights.

    bias and dropout: as in hypergan_mnist.
    """
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=bias), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, bias=bias), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, bias=bias), nn.LeakyReLU(0.01), nn.MaxPool2d(2),
        nn.Flatten(), *_dropout(dropout),
        nn.Linear(256, 128, bias=bias), nn.LeakyReLU(0.01), *_dropout(dropout),
        nn.Linear(128, 10, bias=bias),
    )  # fmt: skip


def hypergan_regression(units: int = 100) -> nn.Sequential:
    """HyperGAN, section 4.3: one hidden layer of ReLU units, a curve; 3 * units + 1 weights."""
    return nn.Sequential(nn.Linear(1, units), nn.ReLU(), nn.Linear(units, 1))


def klocek_mlp(
    inputs: int = 2,
    outputs: int = 2,
    norm: Literal["none", "per_target", "shared"] = "none",
    residual: bool = False,
    output: Literal["sigmoid", "identity"] = "sigmoid",
) -> nn.Sequential:
    """Klocek et al., "Multi-task hypernetworks", section 3.1: widths up and down again, cosines.

    inputs -> 32 -> 64 -> 256 -> 64 -> outputs: 35,426 weights for 2 -> 2, points of the plane to points of the unit
    square; 35,523 for 3 -> 3, coordinates and scale to a colour. norm: PerTargetNorm of that mode between each hidden
    linear layer and its cosine, whose gamma and beta are not generated. residual: the layers of 256 and 64 as y = x +
    f(x).
    """

    def hidden(i: int, o: int) -> list[nn.Module]:
        return [nn.Linear(i, o), *([] if norm == "none" else [PerTargetNorm(o, mode=norm)]), Cos()]

    middle = [*hidden(64, 256), *hidden(256, 64)]
    last = [nn.Sigmoid()] if output == "sigmoid" else []
    return nn.Sequential(
        *hidden(inputs, 32), *hidden(32, 64), *([Residual(nn.Sequential(*middle))] if residual else middle),
        nn.Linear(64, outputs), *last,
    )  # fmt: skip


def _dropout(p: float) -> tuple[nn.Module, ...]:
    return (nn.Dropout(p),) if p else ()
