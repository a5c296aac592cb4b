"""A normalizing flow of masked RealNVP steps with gates (Louizos & Welling 2017, section 2.2.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedFlow(nn.Module):
    """z [B,D], masks [steps,B,D] of zeros and ones -> (z' [B,D], log |det dz'/dz| [B]). In each step, of mask m:

        h = tanh(W (m z) + b)    mu = V h + c    g = sigmoid(U h + d)
        z' = m z + (1 - m) (g z + (1 - g) mu)    log det = sum_i (1 - m_i) log g_i

    A mask is drawn anew for each z, so that every component is changed by some step.
    """

    def __init__(self, size: int, hidden: int, steps: int) -> None:
        super().__init__()
        self.steps = nn.ModuleList(_Step(size, hidden) for _ in range(steps))

    def forward(self, z: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        log_det = z.new_zeros(z.shape[0])
        for step, mask in zip(self.steps, masks, strict=True):
            z, change = step(z, mask)
            log_det = log_det + change
        return z, log_det


class _Step(nn.Module):
    """One step and its three linear maps. The gate starts at sigmoid(2), near the identity."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(size, hidden)
        self.mean = nn.Linear(hidden, size)
        self.gate = nn.Linear(hidden, size)
        for linear in (self.inner, self.mean, self.gate):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        nn.init.constant_(self.gate.bias, 2.0)

    def forward(self, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.inner(mask * z))
        gate = self.gate(h)
        log_det = ((1 - mask) * F.logsigmoid(gate)).sum(1)
        return mask * z + (1 - mask) * torch.lerp(self.mean(h), z, torch.sigmoid(gate)), log_det
