"""vmap of hyper_lstm's ops: sequences of all samples in one call where they share their weights, else a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Places of the arguments of HyperLSTM and HyperLSTMBackward.
_WEIGHTS, _SEED = slice(5, 23), 24
_BACKWARD_WEIGHTS, _BACKWARD_SIZES, _BACKWARD_SEED, _OUTPUTS = slice(9, 27), 27, 28, slice(29, 34)


def forward(apply: Callable, samples: int, in_dims: tuple, args: tuple) -> tuple[tuple, tuple]:
    """HyperLSTM's outputs and the dimension of the samples in each."""
    if not _shared(in_dims[_WEIGHTS], args[_SEED]):
        return _loop(apply, samples, in_dims, args)
    rows = [_as_rows(t, dim, samples) for t, dim in zip(args[:5], in_dims[:5], strict=True)]
    *out, saved = apply(*rows, *args[_WEIGHTS], args[23] * samples, *args[_SEED:])
    saves = args[-1]
    return (*(_of_samples(y, samples) for y in out), _of_samples(saved, samples) if saves else saved), (
        *(1,) * 4, 1 if saves else None,
    )  # fmt: skip


def backward(apply: Callable, samples: int, in_dims: tuple, args: tuple) -> tuple[tuple, tuple]:
    """HyperLSTMBackward's gradients and the dimension of the samples in each.

    Gradients of weights are sums over the rows of one sample, so they need the loop. Where only the gradients of the
    outputs are batched it stays too: a row for each would copy all that was saved.
    """
    want_x, want_weights = args[-2:]
    batched = in_dims[_OUTPUTS][-1] is not None
    if want_weights or not batched or not _shared(in_dims[_BACKWARD_WEIGHTS], args[_BACKWARD_SEED]):
        return _loop(apply, samples, in_dims, args)
    rows = [
        None if t is None else _as_rows(t, dim, samples)
        for part in (slice(9), _OUTPUTS)
        for t, dim in zip(args[part], in_dims[part], strict=True)
    ]
    sizes, seed = args[_BACKWARD_SIZES] * samples, args[_BACKWARD_SEED]
    found = apply(*rows[:9], *args[_BACKWARD_WEIGHTS], sizes, seed, *rows[9:], *args[34:])
    of_rows = [want_x, *[True] * 4, *[False] * 18]
    return (
        tuple(_of_samples(g, samples) if many else g for g, many in zip(found, of_rows, strict=True)),
        tuple(1 if many else None for many in of_rows),
    )


def _shared(weight_dims: Sequence[int | None], seed: Tensor) -> bool:
    """Whether one call serves all samples. Dropout's masks are of a row's place in its own batch."""
    return all(dim is None for dim in weight_dims) and seed.numel() == 0


def _as_rows(t: Tensor, dim: int | None, samples: int) -> Tensor:
    """[R,n] of each sample -> [R*samples,n]: rows of a step stay together, and rows that end early last."""
    every = t.unsqueeze(1).expand(-1, samples, -1) if dim is None else t.movedim(dim, 1)
    return every.flatten(0, 1)


def _of_samples(rows: Tensor, samples: int) -> Tensor:
    """[R*samples,n] -> [R,samples,n]."""
    return rows.view(rows.shape[0] // samples, samples, rows.shape[1])


def _loop(apply: Callable, samples: int, in_dims: tuple, args: tuple) -> tuple[tuple, tuple]:
    """Each sample a recurrence of its own."""

    def one(i: int) -> list[Any]:
        return [a.select(dim, i) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)]

    results = [apply(*one(i)) for i in range(samples)]
    outputs = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return outputs, (0,) * len(outputs)
