"""Work on several processes that talk over gloo, for the tests of what runs in parallel."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # while there is no group that its functions' defaults would keep
import torch.multiprocessing as mp


def on_ranks(measure: Callable[..., Any], world: int, folder: Path, *args: Any) -> list[Any]:
    """measure(rank, world, *args) of each rank, in order; measure is a function of a module and returns tensors."""
    mp.spawn(_one_rank, (measure, world, folder, args), world)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


def _one_rank(rank: int, measure: Callable[..., Any], world: int, folder: Path, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        # What measure() made is gone before the group is: a DistributedDataParallel that is the group's last owner
        # joins gloo's thread with the interpreter's lock held, which that thread may wait for, and hangs.
        torch.save(measure(rank, world, *args), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def errors_after_a_loss(call: Callable[[int, int], None], world: int, folder: Path) -> list[str]:
    """call(rank, world) on every rank, in which the last one ends by os._exit(1): the others' RuntimeErrors.

    Fails where a rank waits for more than two minutes; call is a function of a module.
    """
    context = mp.get_context("spawn")
    ranks = [context.Process(target=_one_survivor, args=(rank, call, world, folder)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0] * (world - 1) + [1]
    return [(folder / f"{rank}.txt").read_text() for rank in range(world - 1)]


def _one_survivor(rank: int, call: Callable[[int, int], None], world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=30)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world, timeout=limit)
    try:
        call(rank, world)
    except RuntimeError as lost:
        (folder / f"{rank}.txt").write_text(str(lost))
    os._exit(0)  # without taking leave of a rank that is gone
