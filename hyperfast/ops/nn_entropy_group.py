"""Nearest neighbours among the rows of all ranks of a process group, each rank working on its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends
from ..reference import nn_entropy as reference
from .process_group import process_group


def distances_in_group(theta: Tensor, p: int, group: Any) -> Tensor:
    """theta: this rank's rows [n_r,D] -> distance [N] of all ranks' rows, in the order of the ranks."""
    group = process_group(group)
    counts = _counts(theta, group)
    if sum(counts) < 2:
        raise ValueError(f"theta must have at least two rows among all ranks; got {counts}")
    chosen = backends.select("nearest_neighbor", theta.device.type, theta.dtype)
    return GroupDistances.apply(theta, p, group, counts, chosen)


_DTYPES = (torch.float32, torch.float64)


def _counts(theta: Tensor, group: Any) -> list[int]:
    """Rows of every rank. Every rank raises where features or dtypes differ."""
    mine = torch.tensor([*theta.shape, _DTYPES.index(theta.dtype)], device=theta.device)
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, mine, group=group)
    shapes = [(int(rows), int(features), _DTYPES[int(dtype)]) for rows, features, dtype in map(Tensor.tolist, every)]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(f"theta must have the same features and dtype on every rank; got {shapes}")
    return [shape[0] for shape in shapes]


def _gather(mine: Tensor, counts: list[int], group: Any) -> Tensor:
    """Rows of all ranks, one after the other; ranks with fewer rows send padding."""
    most = max(counts)
    if len(mine) < most:
        mine = torch.cat([mine, mine.new_zeros(most - len(mine), *mine.shape[1:])])
    every = mine.new_empty(len(counts) * most, *mine.shape[1:])
    dist.all_gather_into_tensor(every, mine.contiguous(), group=group)
    if min(counts) == most:
        return every
    return torch.cat([part[:count] for part, count in zip(every.split(most), counts, strict=True)])


class GroupDistances(torch.autograd.Function):
    """apply(own rows, p, group, counts, backend) -> distance [N]; backward needs no communication.

    Every rank must come to the same loss of the distances, and gets its gradient with respect to its own rows.
    """

    @staticmethod
    def forward(ctx: Any, theta, p, group, counts, chosen):
        rank = dist.get_rank(group)
        start = sum(counts[:rank])
        stop = start + counts[rank]
        every = _gather(theta, counts, group)
        if chosen == "reference":
            own = reference.nearest_neighbor(every, p, start, stop)
        else:
            own = getattr(torch.ops.hyperfast, f"nearest_neighbor_{chosen}")(every, start, stop, p)
        distance, index = (_gather(t, counts, group) for t in own)
        ctx.spec = start, stop, p, group, counts, chosen
        ctx.save_for_backward(theta, every, distance, index)
        return distance

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        return GroupDistancesBackward.apply(grad, *ctx.saved_tensors, *ctx.spec), *(None,) * 4


class GroupDistancesBackward(torch.autograd.Function):
    """apply(grad [N], own rows, all rows, distance, index, start, stop, ...) -> gradient of the own rows.

    Its own backward gathers what every rank asks of its rows' gradient: all ranks must take part in it.
    """

    @staticmethod
    def forward(ctx: Any, grad, theta, every, distance, index, start, stop, p, group, counts, chosen):
        ctx.spec = start, stop, p, group, counts
        ctx.save_for_backward(grad, every, distance, index)
        op: Any = reference.nearest_neighbor_backward
        if chosen != "reference":
            op = getattr(torch.ops.hyperfast, f"nearest_neighbor_backward_{chosen}")
        return op(grad, every, distance, index, start, stop, p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gg: Tensor):
        start, stop, p, group, counts = ctx.spec
        grad, every, distance, index = ctx.saved_tensors

        def gradient(grad: Tensor, every: Tensor) -> Tensor:
            return reference.nearest_neighbor_backward(grad, every, distance, index, 0, len(every), p)

        _, pullback = torch.func.vjp(gradient, grad, every)[:2]
        of_grad, of_rows = pullback(_gather(gg, counts, group))
        return of_grad, of_rows[start:stop], *(None,) * 9
