"""Where the time of a family's cases goes: op by op, beside the measured ceilings.

    hyperfast profile [FAMILY ...] [--case WORDS] [--device cpu|cuda] [--calls N] [--trace FILE]

FLOPs of an op are those of its registered formula; bytes those of its arguments and results, each tensor once, so what
a call must move at least. On a GPU an op's time is that of the kernels it launches, which are listed below the ops.
"""

from __future__ import annotations

import argparse
import importlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .run import FAMILIES, known_families
from .timing import call_of, ceilings_of, seconds

_DTYPE = torch.float32


class Counted(TorchDispatchMode):
    """Calls, FLOPs and bytes of every op that runs inside, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = defaultdict(int)
        self.flops: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        self.calls[name] += 1
        if func._overloadpacket in flop_registry:
            self.flops[name] += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        if any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns):
            return out  # a view moves nothing
        tensors = {id(t): t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)}
        self.bytes[name] += sum(t.numel() * t.element_size() for t in tensors.values())
        return out


def profile(
    call: Callable[[], Any], device: torch.device, calls: int, trace: Path | None
) -> tuple[float, list[dict[str, Any]]]:
    """(seconds of a call, a row for each op of it, the longest first, then one for each GPU kernel).

    The profiler's own work, a few microseconds an op, is in the seconds.
    """
    call()
    with Counted() as counted:
        call()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        whole = seconds(lambda: [call() for _ in range(calls)], device) / calls
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    ops, kernels = [], []
    for event in profiler.key_averages():
        on_device = event.device_type != torch.autograd.DeviceType.CPU
        micros = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        row = {"name": event.key, "calls": event.count / calls, "seconds": micros / calls / 1e6}
        if on_device:
            kernels.append(row)
        elif event.key in counted.calls:
            ops.append(row | {"flops": counted.flops[event.key], "bytes": counted.bytes[event.key]})
    by_time = lambda row: -row["seconds"]
    return whole, sorted(ops, key=by_time) + sorted(kernels, key=by_time)


def table(rows: list[dict[str, Any]], whole: float, rates: dict[str, float]) -> str:
    """Lines of text; whole: seconds of one call; rates: the ceilings in GFLOP/s and GB/s."""
    lines = [
        f"{'op':44} {'calls':>6} {'ms':>9} {'share':>6} {'GFLOP/s':>8} {'of product':>10} {'GB/s':>7} {'of copy':>8}"
    ]
    for row in rows:
        if row["seconds"] < 0.005 * whole:
            continue
        line = f"{row['name'][:44]:44} {row['calls']:6.0f} {row['seconds'] * 1e3:9.3f} {row['seconds'] / whole:6.0%}"
        if row.get("flops"):
            rate = row["flops"] / row["seconds"] / 1e9
            line += f" {rate:8.1f} {rate / rates['product']:10.0%}"
        else:
            line += f" {'-':>8} {'-':>10}"
        if row.get("bytes"):
            rate = row["bytes"] / row["seconds"] / 1e9
            line += f" {rate:7.1f} {rate / rates['copy']:8.0%}"
        lines.append(line)
    outside = whole - sum(row["seconds"] for row in rows if "flops" in row)
    lines.append(f"{'between ops: Python, autograd':44} {'':6} {outside * 1e3:9.3f} {outside / whole:6.0%}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hyperfast profile", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; default all")
    parser.add_argument("--case", default="", metavar="WORDS", help="only cases whose name has these words")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--calls", type=int, default=10, help="calls that are profiled")
    parser.add_argument("--trace", type=Path, help="write a Chrome trace of the last case's calls here")
    options = parser.parse_args(arguments)
    if options.calls < 1:
        parser.error(f"--calls must be at least 1; got {options.calls}")
    families = known_families(parser, options.families)
    device = torch.device(options.device)
    rates = {
        name: work / min(seconds(call, device) for _ in range(5))
        for name, (call, work) in ceilings_of(device, _DTYPE).items()
    }
    print(f"ceilings: product {rates['product']:.0f} GFLOP/s, copy {rates['copy']:.1f} GB/s")
    cases = [
        case for family in families for case in importlib.import_module(f"{__package__}.{family}").cases(device.type)
        if options.case in case.name and not case.long
    ]  # fmt: skip
    if not cases:
        parser.error(f"no case of {', '.join(families)} has {options.case!r} in its name")
    for case in cases:
        backward = bool(case.gradient_of)
        call = call_of(case, case.ours, device, backward)
        whole, rows = profile(call, device, options.calls, options.trace)
        print(f"\n{case.title}, {'forward+backward' if backward else 'forward'}: {whole * 1e3:.3f} ms a call")
        print(table(rows, whole, rates))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
