"""Standardised offsets of the pen, a recurrence, the parameters of a mixture density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from ..recurrence import recurrence
from .config import Config
from .density import draw, log_density


class HandwritingModel(nn.Module):
    """outputs, state = model(points [T,B,3] or packed, standardised): outputs [T,B,6M+1] or packed, see density.py.

    Lines are Handwriting's, [T,3] in the data's units. mean and std [2], of the training lines' offsets, are buffers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.recurrence = recurrence(config, 3)
        self.output = nn.Linear(config.units, 6 * config.mixtures + 1)
        nn.init.orthogonal_(self.output.weight)  # as all weights of appendix A.3.5
        nn.init.zeros_(self.output.bias)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("std", torch.ones(2))

    def measure(self, lines: Sequence[Tensor]) -> None:
        """Sets mean and std to those of the lines' offsets."""
        offsets = torch.cat([line[1:, :2] for line in lines]).double()
        self.mean.copy_(offsets.mean(0))
        self.std.copy_(offsets.std(0, correction=0))

    def standardised(self, points: Tensor) -> Tensor:
        """points [...,3] in the data's units -> offsets of mean 0 and deviation 1, pen_up as it is."""
        return torch.cat([(points[..., :2] - self.mean) / self.std, points[..., 2:]], -1)

    def forward(
        self, points: Tensor | PackedSequence, state: Sequence[Tensor] | None = None, return_scales: bool = False
    ) -> tuple[Any, ...]:
        """(outputs, state), and a HyperLSTM's scales where they are asked for."""
        extra = {"return_scales": True} if return_scales else {}
        out, *rest = self.recurrence(points, state, **extra)
        if isinstance(out, PackedSequence):
            return PackedSequence(self._outputs(out.data), *out[1:]), *rest
        return self._outputs(out), *rest

    def _outputs(self, rows: Tensor) -> Tensor:
        return self.output(F.dropout(rows, self.config.output_dropout, self.training))

    def log_loss(self, lines: Sequence[Tensor]) -> Tensor:
        """[N], nats: -log p of each line's points but the first, of standardised offsets, summed over the line.

        Lines are read side by side, packed: a point of one is a row, and nothing is padded but the sums at the end.
        """
        lines = [self.standardised(line) for line in lines]
        outputs, _ = self(pack_sequence([line[:-1] for line in lines], enforce_sorted=False))
        after = pack_sequence([line[1:] for line in lines], enforce_sorted=False)
        nats = -log_density(outputs.data, after.data)
        return pad_packed_sequence(PackedSequence(nats, *after[1:]))[0].sum(0)

    @torch.no_grad()
    def mean_log_loss(self, lines: Sequence[Tensor]) -> float:
        """The mean of log_loss over the lines, without dropout."""
        training, total = self.training, 0.0
        self.eval()
        by_length = sorted(lines, key=len)  # lines side by side then end at about the same step
        for begin in range(0, len(lines), self.config.batch):
            total += self.log_loss(by_length[begin : begin + self.config.batch]).sum().item()
        self.train(training)
        return total / len(lines)

    @torch.no_grad()
    def sample(self, lines: int, length: int, bias: float, generator: torch.Generator) -> Tensor:
        """[lines,length,3] on the CPU, in the data's units: from a first point on, each drawn given those before it."""
        self.eval()
        point, state = self.standardised(self.mean.new_zeros(lines, 3)), None
        points = [point]
        for _ in range(length - 1):
            outputs, state = self(point.unsqueeze(0), state)
            point = draw(outputs[0], bias, generator)
            points.append(point)
        drawn = torch.stack(points, 1)
        return torch.cat([drawn[..., :2] * self.std + self.mean, drawn[..., 2:]], -1).cpu()
