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
    cuda = device.type == "cuda"
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        work(dist.group.WORLD, device)
    finally:
        # What still holds the group is gone first: as its last owner, an object that is collected later would join
        # gloo's threads at the wrong time, even when the interpreter ends.
        gc.collect()
        dist.destroy_process_group()


def is_first(group: Any) -> bool:
    """Whether this rank writes and prints."""
    return group is None or dist.get_rank(group) == 0
