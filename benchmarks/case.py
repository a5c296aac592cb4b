"""A benchmark as data: inputs, the implementations to compare, and the reference that gates them.

A family's cases(device), "cpu" or "cuda", are those of its module: larger ones on a GPU, and its own peers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Implementation = Callable[..., Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """One row of the results.

    inputs(device) gives the tensors that every implementation takes. gradient_of: which of them backward
    differentiates with respect to (empty: forward only). flops and bytes: of one forward call, counted by hand.
    """

    family: str
    name: str
    shape: dict[str, Any]
    inputs: Callable[[torch.device], tuple[Tensor, ...]]
    ours: Implementation
    reference: Implementation
    baselines: dict[str, Implementation]
    flops: int
    bytes: int
    gradient_of: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    compiled: tuple[str, ...] = field(default=("careful",))
    """Baselines that are also run under torch.compile."""
    yardsticks: tuple[str, ...] = ()
    """Baselines that compute another function: they are timed, but are never the best baseline."""
    flops_with_backward: int | None = None
    """Of forward and backward together; None: three times forward's, a product to inputs and one to weights."""
    long: bool = False
    """Left out of --quick."""

    @property
    def title(self) -> str:
        return f"{self.family}/{self.name}"
