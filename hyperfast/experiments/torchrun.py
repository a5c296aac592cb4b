"""The ranks that torchrun started, for the commands."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from . import ranks


def on_ranks(device: torch.device, work: Callable[[Any, torch.device], None]) -> None:
    """work(process group, this rank's device), its ranks sharing: one GPU a rank on CUDA; None without torchrun.

    Tensors on GPUs go by NCCL, those on CPUs by gloo.
    """
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
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        with ranks.sharing(dist.group.WORLD):
            work(dist.group.WORLD, device)
    except ConnectionError:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others; they shall say why first
        raise
    finally:
        gc.collect()  # what holds the group in a cycle, for the same reason
        dist.destroy_process_group()
