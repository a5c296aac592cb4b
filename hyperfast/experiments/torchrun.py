"""The ranks that torchrun started, for the commands."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


def on_ranks(device: torch.device, work: Callable[[Any, torch.device], None]) -> None:
    """work(process group, this rank's device): NCCL and one GPU a rank on CUDA, gloo elsewhere; None without torchrun."""
    if not dist.is_torchelastic_launched():
        work(None, device)
        return
    # Before there is a group: imported later, as torch.optim does, the defaults of its functions would be this group
    # and keep it to the interpreter's end, where destroying a process group aborts.
    import torch.distributed.nn.functional

    cuda = device.type == "cuda"
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        work(dist.group.WORLD, device)
    finally:
        gc.collect()  # what holds the group in a cycle, for the same reason
        dist.destroy_process_group()


def is_first(group: Any) -> bool:
    """Whether this rank writes and prints."""
    return group is None or dist.get_rank(group) == 0
