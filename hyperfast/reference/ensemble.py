"""Sums over the members of an ensemble, in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sums(NamedTuple):
    """prob [N,C] and entropy [N] in float64, votes [N,C] and choice [M,N] in int64; None where not wanted."""

    prob: Tensor | None
    entropy: Tensor | None
    votes: Tensor | None
    choice: Tensor | None


def ensemble_sums(logits: Tensor, prob: bool, entropy: bool, votes: bool, choice: bool) -> Sums:
    """What M members say of N inputs, logits [M,N,C]: sums over m of the softmax and of its entropy (nats), the number
    of members whose largest logit is each class (ties: the smallest), and that class for every member.
    """
    p = torch.softmax(logits.double(), -1)
    largest = logits.argmax(-1)
    counts = torch.zeros(logits.shape[1:], dtype=torch.int64, device=logits.device)
    counts.scatter_add_(1, largest.T, torch.ones_like(largest.T))
    return Sums(
        p.sum(0) if prob else None,
        torch.special.entr(p).sum(-1).sum(0) if entropy else None,
        counts if votes else None,
        largest if choice else None,
    )


def make_inputs(members: int, rows: int, classes: int, *, device: str | torch.device = "cpu", seed: int = 0) -> Tensor:
    """logits [M,N,C] float32, some of them far apart, some equal."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(members, rows, classes, generator=generator)
    return torch.where(torch.rand(logits.shape, generator=generator) < 0.1, 0.0, logits).to(device)
