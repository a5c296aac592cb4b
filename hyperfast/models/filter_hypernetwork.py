"""Deutsch's hypernetwork: noise -> a code per filter -> the filter's weights (section 3.3, appendix A.7)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from ..nn.target_net import TargetNet


class FilterHypernetwork(nn.Module):
    """theta = G(z). An extractor E maps z to codes c_{l,i}; the generator W_l maps each code of layer l to a filter.

    Both are perceptrons without biases whose hidden layers are linear -> leaky ReLU 0.05 -> batch norm. A
    filter is the weights of one output unit or channel and its bias; `filters` splits a layer's units into that
    many groups with a code each (by default one per unit, and a single one for the last layer). Within a
    group's output the weights come first, its biases last; forward rearranges them to theta's layout.

    z [B,noise_size], uniform in [-1, 1] -> theta [B,P].
    """

    def __init__(
        self,
        net: TargetNet,
        noise_size: int = 300,
        extractor_hidden: Sequence[int] = (300, 300),
        code_size: int = 15,
        generator_hidden: Sequence[Sequence[int]] | None = None,
        filters: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        shapes = _layer_shapes(net)
        if filters is None:
            filters = [units for units, _, _ in shapes[:-1]] + [1]
        if generator_hidden is None:
            generator_hidden = [(code_size, code_size)] * len(shapes)
        for name, value in (("filters", filters), ("generator_hidden", generator_hidden)):
            if len(value) != len(shapes):
                raise ValueError(f"{name} must have one entry per layer, {len(shapes)}; got {len(value)}")
        for (units, _, _), groups in zip(shapes, filters, strict=True):
            if units % groups:
                raise ValueError(f"filters: {groups} groups do not divide a layer's {units} units")
        self.noise_size, self.code_size = noise_size, code_size
        self.shapes, self.filters = shapes, tuple(filters)
        self.extractor = _perceptron((noise_size, *extractor_hidden, code_size * sum(filters)))
        self.generators = nn.ModuleList(
            _perceptron((code_size, *hidden, units // groups * (fan_in + has_bias)))
            for hidden, groups, (units, fan_in, has_bias) in zip(generator_hidden, filters, shapes, strict=True)
        )

    def forward(self, z: Tensor) -> Tensor:
        batch = z.shape[0]
        codes = self.extractor(z).unflatten(1, (-1, self.code_size))
        pieces = []
        by_layer = codes.split(self.filters, 1)
        for code, generator, groups, (units, fan_in, _) in zip(
            by_layer, self.generators, self.filters, self.shapes, strict=True
        ):
            filters = generator(code.flatten(0, 1)).unflatten(0, (batch, groups))
            weights = units // groups * fan_in
            pieces += [filters[:, :, :weights].flatten(1), filters[:, :, weights:].flatten(1)]
        return torch.cat(pieces, 1)

    def sampler(self, seed: int = 0):
        """sampler(indices [m]) -> theta [m,P] for hf.ensemble.predict: member i depends on seed and i alone.

        It evaluates this module as it stands; call eval() first, so that batch norm uses its running statistics.
        """
        noise = NoiseStream(self.noise_size, seed)
        like = next(self.parameters())
        return lambda indices: self(noise(indices).to(like))


def deutsch_hypernetwork(net: TargetNet) -> FilterHypernetwork:
    """The hypernetwork of table 2 for net = TargetNet(targets.deutsch_mnist()): 633,640 parameters.

    E 300-300-300-855, W_l 15-40-40-26, 15-100-100-801, 15-100-100-785 and 15-60-60-90, and 2,400 gammas and betas
    of batch norm. Codes of 15 for 32, 16, 8 filters and for the whole last layer.
    """
    return FilterHypernetwork(
        net,
        noise_size=300,
        extractor_hidden=(300, 300),
        code_size=15,
        generator_hidden=((40, 40), (100, 100), (100, 100), (60, 60)),
    )


class NoiseStream:
    """Noise that can be entered anywhere: row i depends on (seed, i) alone. Uniform in [-1, 1), or standard normal.

    block: rows drawn at once. Another block draws other noise.
    """

    def __init__(self, size: int, seed: int = 0, normal: bool = False, block: int = 256) -> None:
        self.size, self.seed, self.normal, self.block = size, seed, normal, block

    def __call__(self, indices: Tensor) -> Tensor:
        """indices [m] int64 -> [m,size] float32."""
        blocks, inverse = torch.unique(indices // self.block, return_inverse=True)
        rows = torch.stack([self._block(int(block)) for block in blocks])
        return rows[inverse, indices % self.block]

    def _block(self, block: int) -> Tensor:
        # torch's CPU generator reads 32 bits of its seed; Philox is keyed by both numbers.
        generator = np.random.Generator(np.random.Philox(key=[self.seed, block]))
        shape = (self.block, self.size)
        if self.normal:
            return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
        return torch.from_numpy(generator.random(shape, dtype=np.float32)) * 2 - 1


def _layer_shapes(net: TargetNet) -> list[tuple[int, int, bool]]:
    """(units, fan-in, has a bias) of every layer with weights."""
    shapes: list[tuple[int, int, bool]] = []
    for entry in net.plan.layout:
        if entry.name.endswith("weight"):
            shapes.append((entry.shape[0], entry.fan_in, False))
        else:
            shapes[-1] = (*shapes[-1][:2], True)
    return shapes


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Batch norm *after* the activation, decay 0.98; truncated normal weights of standard deviation 0.1/sqrt(fan-in)."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs, bias=False)
        std = 0.1 / inputs**0.5
        nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
        layers += [linear, nn.LeakyReLU(0.05), nn.BatchNorm1d(outputs, eps=1e-7, momentum=0.02)]
    return nn.Sequential(*layers[:-2])
