"""Training on several ranks as on one: each takes its share of what all have drawn, and their gradients are averaged.

Every rank makes the same draws, of all networks or images of a step, and own() takes its share. The mean of the ranks'
losses is then the loss of one process, and so is the mean of their gradients, which average_gradients() makes. What is
no mean over networks or images has a function of its own here: an entropy, the statistics of a batch norm.

Which ranks work together is a state of the process, as torch.distributed's default group is; `sharing` sets it, and
outside of it every function here is that of one rank alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import ops

T = TypeVar("T", Tensor, list)
_group: Any = None


@contextlib.contextmanager
def sharing(group: Any) -> Iterator[None]:
    """Inside, the ranks of this process group work together; None: this process works alone."""
    global _group
    before, _group = _group, group
    try:
        yield
    finally:
        _group = before


def group() -> Any:
    """The process group of those that work together; None: this process works alone."""
    return _group


def count() -> int:
    """How many ranks there are."""
    return 1 if _group is None else dist.get_world_size(_group)


def number() -> int:
    """Which of them this is, from 0."""
    return 0 if _group is None else dist.get_rank(_group)


def is_first() -> bool:
    """Whether this rank writes and prints."""
    return number() == 0


def own(everything: T, dim: int = 0) -> T:
    """This rank's share, the same size on every rank: a slice along `dim` of a tensor, or of a list.

    Raises ValueError where it cannot be shared out evenly: a mean of means would not be the mean.
    """
    if count() == 1:
        return everything
    size = everything.shape[dim] if isinstance(everything, Tensor) else len(everything)
    each, left = divmod(size, count())
    if left:
        raise ValueError(f"{size} cannot be shared out evenly among {count()} ranks")
    if isinstance(everything, Tensor):
        return everything.narrow(dim, number() * each, each)
    return everything[number() * each : (number() + 1) * each]


@contextlib.contextmanager
def lost_ranks() -> Iterator[None]:
    """Inside, an error of the communication is a ConnectionError that says what it means."""
    try:
        yield
    except RuntimeError as lost:
        if count() == 1:
            raise
        words = str(lost).splitlines()[0]
        raise ConnectionError(
            f"another rank was lost or does not answer; --resume goes on from the last checkpoint ({words})"
        ) from lost


# ---- what all ranks know ------------------------------------------------------------------------------


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Each parameter's gradient becomes its mean over the ranks; those without one are the same on every rank."""
    if count() == 1:
        return
    moved = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in moved if p.grad is not None])
    with lost_ranks():
        dist.all_reduce(flat, group=_group)
    for parameter, part in zip(moved, (flat / count()).split([p.numel() for p in moved]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


@torch.no_grad()
def average(values: Tensor) -> Tensor:
    """The mean over the ranks, without gradient."""
    if count() == 1:
        return values
    total = values.clone()
    with lost_ranks():
        dist.all_reduce(total, group=_group)
    return total / count()


def averages(values: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The mean over the ranks of each value."""
    numbers = [float(value) for value in values.values()]
    return dict(zip(values, average(torch.tensor(numbers, dtype=torch.float64)).tolist(), strict=True))


def any_of(flag: bool) -> bool:
    """Whether it is true on some rank. On the CPU, so that no rank waits for its device."""
    return flag if count() == 1 else average(torch.tensor(float(flag))).item() > 0


def meet() -> None:
    """Returns once every rank has come here."""
    any_of(False)


def from_first(names: Sequence[str], measure: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """The values of these names that measure() gives on the first rank, which works alone while the others wait."""
    if count() == 1:
        return dict(measure())
    values = torch.zeros(len(names), dtype=torch.float64)
    if is_first():
        with sharing(None):
            found = measure()
        values = torch.tensor([found[name] for name in names], dtype=torch.float64)
    with lost_ranks():
        dist.broadcast(values, group=_group, group_src=0)
    return dict(zip(names, values.tolist(), strict=True))


@torch.no_grad()
def same(model: nn.Module) -> None:
    """Every rank's model becomes the first's: two machines may round the same initialisation differently."""
    if count() > 1:
        for value in model.state_dict().values():
            with lost_ranks():
                dist.broadcast(value, group=_group, group_src=0)


def check_shares(name: str, field: str, value: int, step: int) -> None:
    """Raises ValueError, on all ranks, where `value`, the config's field of that name, has no equal shares, where the
    field is "", and where the ranks don't go on from the same step.
    """
    if count() == 1:
        return
    if not field:
        raise ValueError(f"{name} is trained by one process with these settings; start it without torchrun")
    if value % count():
        raise ValueError(f"config.{field} must be a multiple of the {count()} ranks; got {value}")
    steps = gathered(torch.tensor([step])).tolist()
    if len(set(steps)) > 1:
        raise ValueError(f"the ranks' checkpoints must be the same; they are of the steps {steps}")


# ---- what is not a mean over networks or images -------------------------------------------------------


def gathered(mine: Tensor, dim: int = 0) -> Tensor:
    """The ranks' tensors, of equal shapes, one after the other along `dim`; differentiable.

    A gradient of all of them is that of the sum of the ranks' losses: every rank must take part in backward.
    """
    if count() == 1:
        return mine
    return _Gathered.apply(mine.movedim(dim, 0)).movedim(0, dim)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        every = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(count())]
        with lost_ranks():
            dist.all_gather(every, mine.contiguous(), group=_group)
        return torch.cat(every)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        with lost_ranks():
            dist.all_reduce(total, group=_group)
        return total.chunk(count())[number()]


def nn_entropy(theta: Tensor, dim: float | None = None, p: int = 2, eps: float = 1e-8) -> Tensor:
    """ops.nn_entropy of all ranks' rows, of which theta are this rank's, for a loss that average_gradients follows.

    Its gradient is a sum over the ranks, not a mean, and is therefore taken as many times as there are ranks.
    """
    if count() == 1:
        return ops.nn_entropy(theta, dim, p, eps)
    with lost_ranks():
        h = ops.nn_entropy(theta, dim, p, eps, group=_group)
    return h + (count() - 1) * (h - h.detach())
