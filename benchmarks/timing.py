"""One call of a case's implementation, its time and memory, and the ceilings of the machine."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .case import Case, Implementation


def call_of(case: Case, implementation: Implementation, device: torch.device, backward: bool) -> Callable[[], Any]:
    inputs = case.inputs(device)
    if not backward:

        def forward() -> Any:
            with torch.no_grad():
                return implementation(*inputs)

        return forward
    inputs = tuple(t.requires_grad_(i in case.gradient_of) for i, t in enumerate(inputs))
    wanted = [inputs[i] for i in case.gradient_of]
    gys = [torch.randn_like(y) for y in as_list(implementation(*inputs))]
    # A yardstick need not use all inputs; the gate has seen that ours does.
    return lambda: torch.autograd.grad(as_list(implementation(*inputs)), wanted, gys, allow_unused=True)


def as_list(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def ceilings_of(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Callable[[], Any], float]]:
    """{name: (call, work in GFLOP or GB)}."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn((1 << 29 if device.type == "cuda" else 1 << 25), device=device)
    target = torch.empty_like(source)
    return {
        "product": (lambda: a @ b, 2 * size**3 / 1e9),
        "copy": (lambda: target.copy_(source), 2 * source.numel() * 4 / 1e9),
    }


# More than a GPU's L2.
_FLUSHED_BYTES = 1 << 28


@cache
def _flushed(device: torch.device) -> Tensor:
    return torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of one call; on a GPU with inputs that are not in its L2."""
    if device.type == "cuda":
        _flushed(device).zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def peak_memory(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes allocated at the peak of one call beyond those before it; on a CPU, growth of the resident set."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that the allocator keeps would hide what the call takes
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(field)
