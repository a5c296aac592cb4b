"""Multiplicative normalizing flows over a target network's weights (Louizos & Welling 2017), MNFG for short."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn.target_net import TargetNet
from .filter_hypernetwork import NoiseStream
from .masked_flow import MaskedFlow

Drawn = tuple[Tensor, Tensor, Tensor, Tensor]  # z, log det, weight, bias of a layer, see _Layer.draw


class MultiplicativeFlows(nn.Module):
    """noise [B,noise_size], standard normal -> theta [B,P]. For each layer by itself:

        z_0 ~ N(m, s^2)    z = flow_q(z_0)    W ~ N(z M, S^2)    b ~ N(m_b, s_b^2)

    z scales the means of a convolution's filters (and of their biases), or of what a linear layer reads of each
    input. M, S, m, s, m_b, s_b and the flows' maps are learned. A sample's noise holds, layer by layer, z_0's, the
    flow's masks (1 where it is negative), W's and b's, so that any two samples can be interpolated.
    """

    def __init__(self, net: TargetNet, q_hidden: int = 50, r_hidden: int = 100, q_steps: int = 2, r_steps: int = 2):
        super().__init__()
        shapes = [(e.name, e.shape) for e in net.plan.layout]
        for (name, shape), (bias, _) in zip(shapes[::2], shapes[1::2], strict=True):
            if len(shape) == 1 or not bias.endswith("bias"):
                raise ValueError(f"every layer must have weights and a bias; {name!r} and {bias!r} follow each other")
        self.layers = nn.ModuleList(_Layer(shape, q_hidden, r_hidden, q_steps, r_steps) for _, shape in shapes[::2])
        self._sizes = [layer.noise_size for layer in self._typed()]
        self.noise_size = sum(self._sizes)

    def _typed(self) -> Sequence[_Layer]:
        return self.layers  # type: ignore[return-value]

    def forward(self, noise: Tensor) -> Tensor:
        return self._draw(noise)[0]

    def draw(self, noise: Tensor, masks: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(theta [B,P], kl [B] in nats): the weights, and a one-sample bound of their divergence from the prior N(0, 1).

            kl = KL(q(W,b|z) || p) + log q(z) - log r(z|W)    E[kl] >= KL(q(W,b) || p)

        masks: of r's flows, None: new ones.
        """
        theta, drawn = self._draw(noise)
        masks = self.masks(len(noise)) if masks is None else masks
        return theta, torch.stack(
            [layer.divergence(*d, m) for layer, d, m in zip(self._typed(), drawn, masks, strict=True)]
        ).sum(0)

    def masks(self, samples: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Random masks of each layer's r's flow, [r_steps,samples,size] of zeros and ones, on the generator's device."""
        return [layer.masks(samples, generator) for layer in self._typed()]

    def _draw(self, noise: Tensor) -> tuple[Tensor, list[Drawn]]:
        pieces: list[Tensor] = []
        drawn: list[Drawn] = []
        for layer, part in zip(self._typed(), noise.split(self._sizes, 1), strict=True):
            drawn.append(layer.draw(part))
            _, _, weight, bias = drawn[-1]
            pieces += [weight.flatten(1), bias]
        return torch.cat(pieces, 1), drawn

    @torch.no_grad()
    def bound_deviations(self, largest: float) -> None:
        """S and s_b to at most `largest`: a weight that the data say nothing of would else become the prior's noise."""
        for layer in self._typed():
            layer.log_std.clamp_(max=math.log(largest))
            layer.bias_log_std.clamp_(max=math.log(largest))

    def noise(self, seed: int = 0) -> NoiseStream:
        """noise(indices [m]) -> [m,noise_size] standard normal: row i depends on seed and i alone."""
        return NoiseStream(self.noise_size, seed, normal=True, block=16)


class _Layer(nn.Module):
    """One layer's q(z), q(W,b|z) and r(z|W). Weights are [outputs, fan-in]."""

    def __init__(self, shape: Sequence[int], q_hidden: int, r_hidden: int, q_steps: int, r_steps: int) -> None:
        super().__init__()
        self.shape = (shape[0], math.prod(shape[1:]))
        outputs, fan_in = self.shape
        self.is_convolution = len(shape) > 2
        size = outputs if self.is_convolution else fan_in
        self.size, self.q_steps, self.r_steps = size, q_steps, r_steps
        self.mean = nn.Parameter(torch.randn(outputs, fan_in) * (2 / fan_in) ** 0.5)
        self.log_std = nn.Parameter(torch.full((outputs, fan_in), -9.0))
        self.bias_mean = nn.Parameter(torch.zeros(outputs))
        self.bias_log_std = nn.Parameter(torch.full((outputs,), -4.5))
        self.z_mean = nn.Parameter(torch.ones(size))
        self.z_log_var = nn.Parameter(torch.full((size,), math.log(0.1)))
        self.flow_q = MaskedFlow(size, q_hidden, q_steps)
        self.flow_r = MaskedFlow(size, r_hidden, r_steps)
        # r's vectors: c reads W, b_1 and b_2 make mean and log precision of what it reads.
        self.r_reads, self.r_mean, self.r_log_precision = (
            nn.Parameter(torch.randn(size) * size**-0.5) for _ in range(3)
        )

    @property
    def noise_size(self) -> int:
        return self.size * (1 + self.q_steps) + self.shape[0] * (self.shape[1] + 1)

    def draw(self, noise: Tensor) -> Drawn:
        """noise [B,noise_size] -> z [B,size], the flow's log det [B], weight [B,outputs,fan-in], bias [B,outputs]."""
        outputs, fan_in = self.shape
        of_z, of_masks, of_weight, of_bias = noise.split(
            [self.size, self.q_steps * self.size, outputs * fan_in, outputs], 1
        )
        masks = (of_masks < 0).to(noise.dtype).unflatten(1, (self.q_steps, self.size)).transpose(0, 1)
        z, log_det = self.flow_q(self.z_mean + (0.5 * self.z_log_var).exp() * of_z, masks)
        mean, bias_mean = self._means(z)
        weight = torch.addcmul(mean, self.log_std.exp(), of_weight.unflatten(1, (outputs, fan_in)))
        return z, log_det, weight, bias_mean + self.bias_log_std.exp() * of_bias

    def _means(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Of q(W,b|z): [B,outputs,fan-in], [B,outputs]."""
        if self.is_convolution:
            return self.mean * z.unsqueeze(2), self.bias_mean * z
        return self.mean * z.unsqueeze(1), self.bias_mean.expand(len(z), -1)

    def divergence(
        self, z: Tensor, log_det: Tensor, weight: Tensor, bias: Tensor, masks: Tensor | None = None
    ) -> Tensor:
        """kl [B] of what draw() returned and r's masks, see MultiplicativeFlows.draw."""
        mean, bias_mean = self._means(z)
        of_weights = gaussian_divergence(mean, self.log_std).sum((1, 2)) + gaussian_divergence(
            bias_mean, self.bias_log_std
        ).sum(1)
        log_q = -0.5 * (math.log(2 * math.pi) + 1 + self.z_log_var).sum() - log_det
        return of_weights + log_q - self.log_r(z, weight, bias, masks)

    def masks(self, samples: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(self.r_steps, samples, self.size, generator=generator).round()

    def log_r(self, z: Tensor, weight: Tensor, bias: Tensor, masks: Tensor | None = None) -> Tensor:
        """log r(z|W) [B]: flow_r(z) is normal, of mean b_1 mean(a) and log precision b_2 mean(a), a = tanh(c W)."""
        if self.is_convolution:
            read = torch.einsum("boi,o->bi", weight, self.r_reads) + (bias * self.r_reads).sum(1, keepdim=True)
        else:
            read = torch.einsum("boi,i->bo", weight, self.r_reads)
        hidden = torch.tanh(read).mean(1, keepdim=True)
        mean, log_precision = hidden * self.r_mean, hidden * self.r_log_precision
        masks = self.masks(len(z)) if masks is None else masks
        seen, log_det = self.flow_r(z, masks.to(z))
        density = log_precision - log_precision.exp() * (seen - mean).square() - math.log(2 * math.pi)
        return 0.5 * density.sum(1) + log_det


def gaussian_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)), elementwise, nats: (std^2 + mean^2 - 1) / 2 - log std."""
    return 0.5 * ((2 * log_std).exp() + mean.square() - 1) - log_std
