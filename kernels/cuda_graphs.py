"""A host function's launches as one CUDA graph: a call of a kind that comes again is recorded, and replayed from then on.

A recurrence launches two kernels a step from Python, where a launch takes longer than the kernel does. A replay launches
all of them at once. It costs a copy of what goes in and of what comes out, 2 bytes of traffic for each byte, and memory
that stays: inputs and outputs of each recorded kind, and the scratch of the largest. Not measured on a GPU.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ENABLED = os.environ.get("HYPERFAST_CUDA_GRAPHS", "1").lower() not in ("0", "false", "off")
# A shorter loop gains less than the copies cost.
LEAST_STEPS = 4

Run = Callable[..., Sequence[Tensor]]
Record = Callable[[Callable[[], Sequence[Tensor]], Hashable], "tuple[Callable[[], object], Sequence[Tensor]]"]


class _Recording(NamedTuple):
    given: list[Tensor]
    replay: Callable[[], object]
    found: Sequence[Tensor]


class Replays:
    """replays(run, tensors, *constants) = run(tensors, *constants), by replaying what an earlier call recorded.

    run launches on the current stream, never waits for the device, and depends on nothing but shapes, types, constants
    (hashable) and the tensors' values. A kind's first call just runs: most kinds of packed input never come again.
    `record(call, where)` gives a function that runs `call` again, and where it writes; `most` recordings are kept.
    """

    def __init__(self, record: Record, most: int = 8) -> None:
        self._record, self._most = record, most
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._lock = threading.Lock()  # backward runs on a thread of its own

    def __call__(self, run: Run, tensors: Sequence[Tensor], *constants: Hashable) -> list[Tensor]:
        where = _where(tensors[0].device)
        precision = torch.get_float32_matmul_precision()
        kind = (run, constants, where, precision, *((t.shape, t.dtype) for t in tensors))
        with self._lock:
            if kind not in self._recordings:
                if kind not in self._seen:
                    self._seen[kind] = None
                    _trim(self._seen, 8 * self._most)
                    return list(run(tensors, *constants))
                own = [t.clone(memory_format=torch.contiguous_format) for t in tensors]
                self._recordings[kind] = _Recording(own, *self._record(lambda: run(own, *constants), where))
                _trim(self._recordings, self._most)
            self._recordings.move_to_end(kind)
            recording = self._recordings[kind]
            for mine, given in zip(recording.given, tensors, strict=True):
                mine.copy_(given)
            recording.replay()
            return [t.clone(memory_format=torch.contiguous_format) for t in recording.found]


def _trim(kept: OrderedDict, most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)


def _where(device: torch.device) -> Hashable:
    """The device and its current stream: recordings of two streams may run at once and must not share memory."""
    return device, torch.cuda.current_stream(device) if device.type == "cuda" else None


_pools: dict[Hashable, tuple[int, int]] = {}


def _record(call: Callable[[], Sequence[Tensor]], where: Hashable) -> tuple[Callable[[], object], Sequence[Tensor]]:
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        call()  # compiles and loads, which a capture must not
    current.wait_stream(side)
    # What a recording writes is copied before another may run, so that all of a stream can share their scratch.
    pool = _pools.setdefault(where, torch.cuda.graph_pool_handle())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
        found = call()
    return graph.replay, found


replays = Replays(_record)


def worthwhile(device: torch.device, steps: int) -> bool:
    """Whether a loop of so many steps is replayed: on CUDA, unless it is being captured already, or told not to be."""
    return ENABLED and steps >= LEAST_STEPS and device.type == "cuda" and not torch.cuda.is_current_stream_capturing()
