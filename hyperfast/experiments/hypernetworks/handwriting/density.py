"""The density of the pen's next point: a mixture of bivariate Gaussians for its offset, a Bernoulli for pen_up.

    p(x, y, up) = sum_m pi_m N(x, y; mu_m, sigma_m, rho_m) * q^up (1 - q)^(1 - up)

Bishop (1994); Graves (2013), section 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Bounds of log sigma and of atanh rho. Between them every square stays finite in float32, forward and backward, where
# outputs are up to 1e4: (1e4 e^10 e^8)^2 < 1e30. sigma is then at least 5e-5 of the data's deviation, 1 - rho^2 4e-7.
LOG_SIGMA, ATANH_RHO = 10.0, 8.0


class Mixture(NamedTuple):
    """M Gaussians for each place of [...]; rho = tanh(atanh_rho)."""

    log_pi: Tensor
    """[...,M]"""
    mu: Tensor
    """[...,2,M]: x, y"""
    log_sigma: Tensor
    """[...,2,M]"""
    atanh_rho: Tensor
    """[...,M]"""
    up: Tensor
    """[...]: the logit of q"""


def mixture_of(outputs: Tensor) -> Mixture:
    """A network's outputs [...,6M+1], in float32 or float64: the logit of q, then M each of the logits of pi, mu_x, mu_y,
    log sigma_x, log sigma_y, atanh rho; the last three bounded."""
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    logits, mu_x, mu_y, s_x, s_y, r = outputs[..., 1:].unflatten(-1, (6, -1)).unbind(-2)
    log_sigma = torch.stack([s_x, s_y], -2).clamp(-LOG_SIGMA, LOG_SIGMA)
    return Mixture(
        F.log_softmax(logits, -1), torch.stack([mu_x, mu_y], -2), log_sigma, r.clamp(-ATANH_RHO, ATANH_RHO),
        outputs[..., 0],
    )  # fmt: skip


def log_density(outputs: Tensor, points: Tensor) -> Tensor:
    """[...] in nats: log p of points [...,3] (dx, dy, pen_up) under the mixture of outputs [...,6M+1].

    With rho = tanh r, the quadratic form (zx^2 - 2 rho zx zy + zy^2) / (1 - rho^2) is a sum of squares,
    (zx^2 + zy^2) / 2 + (e^-r (zx + zy) / 2)^2 + (e^r (zx - zy) / 2)^2, which loses nothing as |rho| nears 1.
    """
    m = mixture_of(outputs)
    points = points.to(m.mu.dtype)
    zx, zy = ((points[..., :2].unsqueeze(-1) - m.mu) * torch.exp(-m.log_sigma)).unbind(-2)
    r = m.atanh_rho
    form = (zx.square() + zy.square()) / 2
    form = form + (torch.exp(-r) * (zx + zy) / 2).square() + (torch.exp(r) * (zx - zy) / 2).square()
    log_cosh = torch.logaddexp(r, -r) - math.log(2)  # -log(1 - rho^2) / 2
    log_normal = log_cosh - math.log(2 * math.pi) - m.log_sigma.sum(-2) - form / 2
    up = F.binary_cross_entropy_with_logits(m.up, points[..., 2], reduction="none")
    return torch.logsumexp(m.log_pi + log_normal, -1) - up


def draw(outputs: Tensor, bias: float, generator: torch.Generator) -> Tensor:
    """[B,3]: one point (dx, dy, pen_up) for each of outputs [B,6M+1], by a CPU generator.

    bias >= 0 (Graves 2013, section 5.4): pi to the power of 1 + bias, sigma times e^-bias.
    """
    m = mixture_of(outputs.detach().cpu().double())
    which = torch.multinomial(torch.softmax(m.log_pi * (1 + bias), -1), 1, generator=generator)
    mu, log_sigma = (part.gather(-1, which.unsqueeze(1).expand(-1, 2, 1)).squeeze(-1) for part in (m.mu, m.log_sigma))
    rho = torch.tanh(m.atanh_rho.gather(-1, which))
    e = torch.randn(len(mu), 2, generator=generator, dtype=torch.float64)
    e_y = rho * e[:, :1] + (1 - rho.square()).sqrt() * e[:, 1:]
    offset = mu + torch.exp(log_sigma - bias) * torch.cat([e[:, :1], e_y], 1)
    up = torch.rand(len(mu), generator=generator, dtype=torch.float64) < torch.sigmoid(m.up)
    return torch.cat([offset, up.unsqueeze(1)], 1).to(outputs)
