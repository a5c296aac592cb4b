"""What every recurrent layer does around its recurrence: the forms of input and state that nn.LSTM takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Sequences:
    """Input as rows [R,I] of all steps, one step after the other, and the way back to the form in which it came."""

    rows: Tensor
    steps: int
    batch: int
    packed: PackedSequence | None
    unbatched: bool
    batch_first: bool

    @classmethod
    def of(cls, x: Tensor | PackedSequence, input_size: int, batch_first: bool) -> Sequences:
        """x: [T,B,I], [B,T,I] with batch_first, [T,I], or packed. Raises TypeError or ValueError for anything else."""
        if isinstance(x, PackedSequence):
            cls._check(x.data, input_size, "the packed x")
            return cls(x.data, len(x.batch_sizes), int(x.batch_sizes[0]), x, False, False)
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor or a PackedSequence; got {type(x).__name__}")
        if x.dim() not in (2, 3):
            raise ValueError(f"x must be [T,B,I] (with batch_first [B,T,I]) or [T,I]; got {tuple(x.shape)}")
        cls._check(x, input_size, "x")
        if x.dim() == 2:
            return cls(x, x.shape[0], 1, None, True, False)
        x = x.transpose(0, 1) if batch_first else x
        return cls(x.reshape(-1, input_size), x.shape[0], x.shape[1], None, False, batch_first)

    @staticmethod
    def _check(x: Tensor, input_size: int, name: str) -> None:
        if x.shape[-1] != input_size:
            raise ValueError(f"{name} must have input_size = {input_size} features; got {tuple(x.shape)}")

    @property
    def batch_sizes(self) -> Tensor | None:
        """[T] int64, rows of each step; None where all have B."""
        return None if self.packed is None else self.packed.batch_sizes

    def state(self, given: Sequence[Tensor] | None, names: Sequence[str], layers: int, sizes: Sequence[int]) -> tuple:
        """The parts of a state, each [layers,B,size], in the order of the rows; zeros where none was given."""
        if given is None:
            return tuple(self.rows.new_zeros(layers, self.batch, size) for size in sizes)
        if isinstance(given, Tensor) or len(given) != len(names):
            what = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else f"{len(given)} parts"
            raise ValueError(f"state must have the parts {', '.join(names)}; got {what}")
        parts = []
        for name, part, size in zip(names, given, sizes, strict=True):
            expected = (layers, size) if self.unbatched else (layers, self.batch, size)
            if tuple(part.shape) != expected:
                raise ValueError(f"state's {name} must be {list(expected)}; got {tuple(part.shape)}")
            part = part.unsqueeze(1) if self.unbatched else part
            if self.packed is not None and self.packed.sorted_indices is not None:
                part = part.index_select(1, self.packed.sorted_indices)
            parts.append(part)
        return tuple(parts)

    def output(self, rows: Tensor) -> Tensor | PackedSequence:
        """Rows [R,H] in the form of the input."""
        if self.packed is not None:
            return PackedSequence(rows, *self.packed[1:])
        if self.unbatched:
            return rows
        out = rows.unflatten(0, (self.steps, self.batch))
        return out.transpose(0, 1) if self.batch_first else out

    def final(self, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Parts [layers,B,size] of the last state in the caller's order; without B for unbatched input."""
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return tuple(part.index_select(1, self.packed.unsorted_indices) for part in parts)
        return tuple(part.squeeze(1) if self.unbatched else part for part in parts)

    def last(self, rows: Tensor, before: Tensor) -> Tensor:
        """What rows [R,size] hold at each sequence's last step: [B,size]; `before` where there is no step."""
        if self.steps == 0 or self.batch == 0:
            return before
        if self.packed is None:
            return rows[-self.batch :]
        lengths = (self.packed.batch_sizes.unsqueeze(1) > torch.arange(self.batch)).sum(0)
        return rows.index_select(0, (self._begins()[lengths - 1] + torch.arange(self.batch)).to(rows.device))

    def previous(self, rows: Tensor, before: Tensor) -> Tensor:
        """Each row's value one step earlier: rows [R,size], `before` [B,size] at the first step."""
        if self.packed is None:
            return torch.cat([before, rows])[: rows.shape[0]]
        begins, sizes = self._begins().tolist(), self.packed.batch_sizes.tolist()
        earlier = [before, *(rows[begins[t] : begins[t] + sizes[t + 1]] for t in range(self.steps - 1))]
        return torch.cat(earlier)

    def padded(self, rows: Tensor) -> Tensor:
        """Rows [R,*] as [T,B,*], zero past a sequence's end; [T,*] for unbatched input."""
        if self.packed is None:
            return rows if self.unbatched else rows.unflatten(0, (self.steps, self.batch))
        t = torch.repeat_interleave(torch.arange(self.steps), self.packed.batch_sizes)
        b = torch.arange(len(t)) - self._begins()[t]
        out = rows.new_zeros(self.steps * self.batch, *rows.shape[1:])
        out = out.index_copy(0, (t * self.batch + b).to(rows.device), rows).unflatten(0, (self.steps, self.batch))
        order = self.packed.unsorted_indices
        return out if order is None else out.index_select(1, order)

    def _begins(self) -> Tensor:
        """[T]: each step's first row."""
        assert self.packed is not None
        return self.packed.batch_sizes.cumsum(0) - self.packed.batch_sizes
