"""HyperGAN: noise -> a code per layer -> the layer's weights, and a discriminator of codes (section 3, figure 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.target_net import TargetNet
from .filter_hypernetwork import NoiseStream


class HyperGAN(nn.Module):
    """theta = [G_1(q_1), ..., G_K(q_K)] with codes [q_1, ..., q_K] = Q(z), for a net of K layers with weights.

    The encoder Q, the generators G_k and the discriminator D, which sees one code at a time, are perceptrons with
    biases and ELU. G_k's output is layer k's weight, then its bias where it has one: theta's own order.

    z [B,noise_size], standard normal -> theta [B,P].
    """

    def __init__(
        self, net: TargetNet, noise_size: int = 256, code_size: int = 128, hidden: Sequence[int] = (512, 512)
    ) -> None:
        super().__init__()
        sizes = _layer_sizes(net)
        self.noise_size, self.code_size, self.layers = noise_size, code_size, len(sizes)
        self.encoder = _perceptron((noise_size, *hidden, code_size * len(sizes)))
        self.generators = nn.ModuleList(_perceptron((code_size, *hidden, size)) for size in sizes)
        self.discriminator = _perceptron((code_size, *hidden, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.generate(self.encode(z))

    def encode(self, z: Tensor) -> Tensor:
        """z [B,noise_size] -> codes [B,K,code_size]."""
        return self.encoder(z).unflatten(1, (self.layers, self.code_size))

    def generate(self, codes: Tensor) -> Tensor:
        """codes [B,K,code_size] -> theta [B,P]."""
        return torch.cat([generator(code) for generator, code in zip(self.generators, codes.unbind(1), strict=True)], 1)

    def discriminate(self, codes: Tensor) -> Tensor:
        """codes [...,code_size] -> logits [...]: positive where they look as if drawn from the prior N(0, I)."""
        return self.discriminator(codes).squeeze(-1)

    def sampler(self, seed: int = 0) -> Callable[[Tensor], Tensor]:
        """sampler(indices [m]) -> theta [m,P] for hf.ensemble.predict: member i depends on seed and i alone."""
        noise, like = self.noise(seed), next(self.parameters())
        return lambda indices: self(noise(indices).to(like))

    def noise(self, seed: int = 0) -> NoiseStream:
        """noise(indices [m]) -> [m,noise_size] standard normal: row i depends on seed and i alone."""
        return NoiseStream(self.noise_size, seed, normal=True)


def discriminator_loss(model: HyperGAN, codes: Tensor, prior: Tensor) -> Tensor:
    """L_D = -mean (log D(p) + log(1 - D(q))) over all codes q and p of N(0, I), both [B,K,code_size]; q gets no gradient.

    The paper sums over the K codes; the mean keeps its scale for any K.
    """
    real, fake = model.discriminate(prior), model.discriminate(codes.detach())
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def adversarial_loss(model: HyperGAN, codes: Tensor) -> Tensor:
    """-mean log D(q): low where the discriminator takes the codes [B,K,code_size] for the prior's."""
    return F.softplus(-model.discriminate(codes)).mean()


def moment_distance(codes: Tensor, prior: Tensor) -> Tensor:
    """Mean squared differences of the means and of the covariances, each code by itself, averaged over the K codes.

    codes and prior, a fresh draw of N(0, I): [B,K,code_size]; B must be at least 2.
    """
    if len(codes) < 2 or len(prior) < 2:
        raise ValueError(f"a covariance needs two codes; got {len(codes)} and {len(prior)} of the prior")
    by_code = [
        F.mse_loss(q.mean(0), p.mean(0)) + F.mse_loss(torch.cov(q.T), torch.cov(p.T))
        for q, p in zip(codes.unbind(1), prior.unbind(1), strict=True)
    ]
    return torch.stack(by_code).mean()


def _layer_sizes(net: TargetNet) -> list[int]:
    """Weights, bias included, of each layer, in theta's order."""
    sizes: dict[str, int] = {}
    for name, _, place in net.layout:
        layer = name.rpartition(".")[0]
        sizes[layer] = sizes.get(layer, 0) + place.stop - place.start
    return list(sizes.values())


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ELU()]
    return nn.Sequential(*layers[:-1])
