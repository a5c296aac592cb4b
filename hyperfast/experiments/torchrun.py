"""The ranks that torchrun started, for the commands."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist


@contextlib.contextmanager
def ranks(device: torch.device) -> Iterator[tuple[Any, torch.device]]:
    """(process group, this rank's device): NCCL and one GPU a rank on CUDA, gloo elsewhere. (None, device) without torchrun."""
    if not dist.is_torchelastic_launched():
        yield None, device
        return
    cuda = device.type == "cuda"
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield dist.group.WORLD, device
    finally:
        dist.destroy_process_group()


def is_first(group: Any) -> bool:
    """Whether this rank writes and prints."""
    return group is None or dist.get_rank(group) == 0
