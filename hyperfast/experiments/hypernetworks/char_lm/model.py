"""One-hot symbols, a recurrence, a softmax; and the state that training carries from one stretch of text to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recurrence import recurrence
from .config import Config

# Characters of a stream that are evaluated at once.
_AT_ONCE = 1_000


def state_sizes(config: Config) -> list[int]:
    """Units of each part of the recurrence's state."""
    match config.cell:
        case "hyper_rnn":
            return [config.units, config.hyper_units]
        case "hyper_lstm":
            return [config.units] * 2 + [config.hyper_units] * 2
    return [config.units] * 2


class CharacterModel(nn.Module):
    """logits, state = model(symbols [T,B] uint8 or int64, state): logits [T,B,S] of the symbol after each."""

    def __init__(self, config: Config, symbols: int) -> None:
        super().__init__()
        self.symbols, self.config = symbols, config
        self.recurrence = recurrence(config, symbols)
        self.output = nn.Linear(config.units, symbols)
        # The state after the last step of training, a part of its checkpoint.
        sizes = state_sizes(config)
        self.carried = len(sizes)
        for i, size in enumerate(sizes):
            self.register_buffer(f"carry_{i}", torch.zeros(config.layers, config.batch, size))

    @property
    def carry(self) -> list[Tensor]:
        """The state after the last training step, batch [B]."""
        return [self.get_buffer(f"carry_{i}") for i in range(self.carried)]

    def keep(self, state: Sequence[Tensor]) -> None:
        """Makes `state` the carried one."""
        for own, part in zip(self.carry, state, strict=True):
            own.copy_(part.detach())

    def forward(
        self, symbols: Tensor, state: Sequence[Tensor] | None = None, return_scales: bool = False
    ) -> tuple[Any, ...]:
        """(logits, state), and a HyperLSTM's scales where they are asked for."""
        one_hot = F.one_hot(symbols.long(), self.symbols).to(self.output.weight.dtype)
        x = F.dropout(one_hot, self.config.input_dropout, self.training)
        extra = {"return_scales": True} if return_scales else {}
        out, *rest = self.recurrence(x, state, **extra)
        return self.output(F.dropout(out, self.config.output_dropout, self.training)), *rest

    @torch.no_grad()
    def bits_per_character(self, text: Tensor) -> float:
        """Of text [N] but its first character, as one stream from a zero state, without dropout."""
        training, state, total = self.training, None, 0.0
        self.eval()
        for begin in range(0, len(text) - 1, _AT_ONCE):
            part = text[begin : begin + _AT_ONCE + 1].unsqueeze(1)
            logits, state = self(part[:-1], state)
            total += F.cross_entropy(logits.flatten(0, 1), part[1:].flatten().long(), reduction="sum").item()
        self.train(training)
        return total / math.log(2) / (len(text) - 1)

    @torch.no_grad()
    def sample(
        self, length: int, temperature: float, generator: torch.Generator, first: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        """(symbols [length], states after each): the most recent symbol goes in, the next is drawn from the softmax."""
        self.eval()
        symbol, state = torch.tensor([[first]], device=self.output.weight.device), None
        drawn, states = [], []
        for _ in range(length):
            logits, state = self(symbol, state)
            p = torch.softmax(logits[0, 0].cpu().double() / temperature, 0)
            symbol = torch.multinomial(p, 1, generator=generator).to(symbol.device).view(1, 1)
            drawn.append(symbol.item())
            states.append(state)
        return torch.tensor(drawn), states
