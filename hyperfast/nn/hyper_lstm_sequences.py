"""What every recurrent layer does around its recurrence: the forms of input and state that nn.LSTM takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


@dataclass(frozen=True)
class Sequences:
    """Input as [T,B,I], and the way back to the form in which it came."""

    x: Tensor
    lengths: Tensor | None
    """[B] int64 on the CPU, of packed input."""
    packed: PackedSequence | None
    unbatched: bool
    batch_first: bool

    @classmethod
    def of(cls, x: Tensor | PackedSequence, input_size: int, batch_first: bool) -> Sequences:
        """x: [T,B,I], [B,T,I] with batch_first, [T,I], or packed. Raises TypeError or ValueError for anything else."""
        if isinstance(x, PackedSequence):
            padded, lengths = pad_packed_sequence(x)
            cls._check(padded, input_size, "the packed x")
            return cls(padded, lengths, x, False, False)
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor or a PackedSequence; got {type(x).__name__}")
        if x.dim() not in (2, 3):
            raise ValueError(f"x must be [T,B,I] (with batch_first [B,T,I]) or [T,I]; got {tuple(x.shape)}")
        cls._check(x, input_size, "x")
        if x.dim() == 2:
            return cls(x.unsqueeze(1), None, None, True, False)
        return cls(x.transpose(0, 1) if batch_first else x, None, None, False, batch_first)

    @staticmethod
    def _check(x: Tensor, input_size: int, name: str) -> None:
        if x.shape[-1] != input_size:
            raise ValueError(f"{name} must have input_size = {input_size} features; got {tuple(x.shape)}")

    def state(self, given: Sequence[Tensor] | None, names: Sequence[str], layers: int, sizes: Sequence[int]) -> tuple:
        """The parts of a state, each [layers,B,size]; zeros where none was given."""
        batch = self.x.shape[1]
        if given is None:
            return tuple(self.x.new_zeros(layers, batch, size) for size in sizes)
        if isinstance(given, Tensor) or len(given) != len(names):
            raise ValueError(f"state must have the parts {', '.join(names)}; got {_described(given)}")
        parts = []
        for name, part, size in zip(names, given, sizes, strict=True):
            expected = (layers, size) if self.unbatched else (layers, batch, size)
            if tuple(part.shape) != expected:
                raise ValueError(f"{name} must be {list(expected)}; got {tuple(part.shape)}")
            parts.append(part.unsqueeze(1) if self.unbatched else part)
        return tuple(parts)

    def alive(self) -> Tensor | None:
        """[T,B,1], False past a sequence's end; None where all are of length T."""
        if self.lengths is None:
            return None
        steps = torch.arange(self.x.shape[0])[:, None]
        return (steps < self.lengths).unsqueeze(2).to(self.x.device)

    def output(self, out: Tensor) -> Tensor | PackedSequence:
        """out [T,B,H] in the form of the input."""
        if self.packed is not None:
            order, lengths = self.packed.sorted_indices, self.lengths
            if order is not None and lengths is not None:
                out, lengths = out.index_select(1, order), lengths[order.cpu()]
            data = pack_padded_sequence(out, lengths).data  # type: ignore[arg-type]
            return PackedSequence(data, *self.packed[1:])
        if self.unbatched:
            return out.squeeze(1)
        return out.transpose(0, 1) if self.batch_first else out

    def final(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Parts [layers,B,size] of the last state; without B for unbatched input."""
        return tuple(part.squeeze(1) if self.unbatched else part for part in parts)


def _described(given: Sequence[Tensor] | Tensor) -> str:
    return f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"{len(given)} parts"
