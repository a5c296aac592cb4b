"""A measurement on several processes that talk over gloo, for the tests of training in parallel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
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
