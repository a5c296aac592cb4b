"""Times the cases: ceilings and every implementation in turn, behind a gate of correctness.

    hyperfast bench [FAMILY ...] [--device cpu|cuda] [--baseline eager,compile,...] [--quick] [--json FILE]

Method: all implementations are called in turn, A B C A B C ..., and a ratio is the median of the ratios of
neighbours, so that it holds when the machine's speed drifts. A case whose outputs or gradients are wrong is
FAIL, not a time. The ceilings (a large matrix product and a copy) are measured in the same turns.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import statistics
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hyperfast as hf

from .case import Case, Implementation
from .timing import as_list, call_of, ceilings_of, peak_memory, seconds

FAMILIES = ("target_net", "ensemble", "nn_entropy", "gauge", "kde", "hyper_lstm", "tiled_conv", "coord_grid")
RESULTS = Path(__file__).parent / "results"
# Below this, another process disturbs a machine whose product reaches 115 to 190 GFLOP/s: not to be quoted.
QUIET_GFLOPS = 100
# A case with slow baselines ends after this, and at least five turns.
ENOUGH_SECONDS = 40
# Relative error that no network may exceed.
WORST = {torch.float32: 0.005, torch.bfloat16: 0.01, torch.float16: 0.01}


# ---- the gate ---------------------------------------------------------------------------------------


def _values(case: Case, implementation: Implementation, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs and gradients, in float64."""
    inputs = tuple(t.detach().clone().requires_grad_(i in case.gradient_of) for i, t in enumerate(inputs))
    outputs = as_list(implementation(*inputs))
    values = list(outputs)
    if case.gradient_of:
        generator = torch.Generator().manual_seed(1)
        gys = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y) for y in outputs]
        values += torch.autograd.grad(outputs, [inputs[i] for i in case.gradient_of], gys)
    return [v.detach().double() for v in values]


def _errors(
    case: Case, implementation: Implementation, inputs: tuple[Tensor, ...], exact: list[Tensor]
) -> tuple[float, float]:
    """(typical, worst) error of outputs and gradients: median and maximum over the first dimension (networks).

    Relative to the exact slice's norm, or to the mean slice's where that is larger.
    """
    typical, worst = 0.0, 0.0
    for value, right in zip(_values(case, implementation, inputs), exact, strict=True):
        slices = (1, -1) if right.dim() < 2 else (right.shape[0], -1)
        difference, norm = (value - right).reshape(slices).norm(dim=1), right.reshape(slices).norm(dim=1)
        errors = difference / norm.clamp_min(norm.square().mean().sqrt()).clamp_min(1e-30)
        typical, worst = max(typical, errors.median().item()), max(worst, errors.max().item())
        if errors.isnan().any():
            return float("nan"), float("nan")
    return typical, worst


def gate(case: Case, device: torch.device) -> tuple[float, float]:
    """(our typical error, eager's). Raises ValueError where ours is more than 1.5 times eager's plus rounding.

    A max-pool whose two largest values differ by less than their rounding sends its gradient elsewhere: no
    network may be far off, but a single one may be further off than eager's.
    """
    inputs = case.inputs(device)
    exact = _values(case, case.reference, tuple(t.double() for t in inputs))
    ours, worst = _errors(case, case.ours, inputs, exact)
    eager, _ = _errors(case, case.baselines["eager"], inputs, exact)
    limit = 1.5 * eager + torch.finfo(case.dtype).eps
    if not ours <= limit:
        raise ValueError(f"error {ours:.1e} against float64 exceeds {limit:.1e} (eager's is {eager:.1e})")
    if not worst <= WORST[case.dtype]:
        raise ValueError(f"error {worst:.1e} of one network against float64 exceeds {WORST[case.dtype]:.1e}")
    return ours, eager


# ---- timing -----------------------------------------------------------------------------------------


def measure(case: Case, device: torch.device, names: list[str], quick: bool, backward: bool) -> dict[str, Any]:
    """One row: ours, every baseline of `names` and the ceilings, in turn."""
    implementations: dict[str, Implementation] = {"ours": case.ours, **case.baselines}
    mode = {"mode": "max-autotune"} if device.type == "cuda" else {}
    for name in case.compiled:
        implementations["compile" if name == "careful" else f"compile {name}"] = torch.compile(
            case.baselines[name], **mode
        )
    implementations = {n: f for n, f in implementations.items() if n == "ours" or not names or n.split()[0] in names}
    calls = {name: call_of(case, f, device, backward) for name, f in implementations.items()}
    ceilings = ceilings_of(device, case.dtype)
    memory = {}
    for name, call in calls.items():
        call()
        memory[name] = peak_memory(call, device)
    times: dict[str, list[float]] = {name: [] for name in (*calls, *ceilings)}
    everything = {**calls, **{name: call for name, (call, _) in ceilings.items()}}
    started = time.perf_counter()
    for turn in range(3 if quick else 11):
        if turn >= 5 and time.perf_counter() - started > ENOUGH_SECONDS:
            break
        for name, call in everything.items():
            times[name].append(seconds(call, device))
    rates = {name: work / min(times[name]) for name, (_, work) in ceilings.items()}
    flops = case.flops
    if backward:
        flops = case.flops_with_backward or 3 * case.flops
    ratios = {
        name: statistics.median(b / o for b, o in zip(times[name], times["ours"], strict=True))
        for name in calls
        if name != "ours"
    }
    gflops = flops / min(times["ours"]) / 1e9
    return {
        "mode": "forward+backward" if backward else "forward",
        "times": {name: _percentiles(times[name]) for name in everything},
        "peak_memory": memory,
        "ratios": ratios,
        "best_baseline": min(ratios.keys() - set(case.yardsticks), key=ratios.__getitem__, default=None),
        "gflops": gflops,
        "gbytes": case.bytes / min(times["ours"]) / 1e9,
        "ceilings": rates,
        "share_of_product": gflops / rates["product"],
        "share_of_copy": case.bytes / min(times["ours"]) / 1e9 / rates["copy"],
        "quotable": device.type == "cuda" or rates["product"] >= QUIET_GFLOPS,
    }


def _percentiles(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {f"p{p}": ordered[round(p / 100 * (len(ordered) - 1))] for p in (20, 50, 80)} | {"min": ordered[0]}


# ---- the run ----------------------------------------------------------------------------------------


def environment(device: torch.device) -> dict[str, Any]:
    return {
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "instruction_set": hf.native.current_isa(),
        "torch": torch.__version__,
        "triton": hf.doctor()["versions"]["triton"],
        "hyperfast": hf.__version__,
    }


def _commit() -> str:
    folder = Path(__file__).resolve().parent
    git = lambda *args: subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=False).stdout
    dirty = [line for line in git("status", "--porcelain").splitlines() if "benchmarks/results" not in line]
    return (git("rev-parse", "--short=10", "HEAD").strip() or "unknown") + ("+changes" if dirty else "")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def known_families(parser: argparse.ArgumentParser, names: list[str]) -> list[str]:
    """`names`, or all families where there are none; an unknown one ends the program with a usage message."""
    unknown = set(names) - set(FAMILIES)
    if unknown:
        parser.error(f"unknown family {', '.join(sorted(unknown))}; choose from {', '.join(FAMILIES)}")
    return names or list(FAMILIES)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hyperfast bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(FAMILIES)}; default all")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--baseline", default="", help="comma-separated baselines; default all")
    parser.add_argument("--case", default="", metavar="WORDS", help="only cases whose name has these words")
    parser.add_argument(
        "--quick", action="store_true", help="three turns instead of five to eleven, without the longest cases"
    )
    parser.add_argument(
        "--json", type=Path, help=f"where rows go; default {RESULTS.name}/<device>.json, none with --quick"
    )
    parser.add_argument("--report", type=Path, help="write the table of these rows here")
    options = parser.parse_args(arguments)
    families = known_families(parser, options.families)

    from . import report

    device = torch.device(options.device)
    where, rows, failed = environment(device), [], False
    target = options.json or (None if options.quick else RESULTS / f"{_slug(where['device'])}.json")
    names = [n for n in options.baseline.split(",") if n]
    for family in families:
        every = importlib.import_module(f"{__package__}.{family}").cases(device.type)
        for case in (case for case in every if options.case in case.name and not (options.quick and case.long)):
            try:
                error, eager_error = gate(case, device)
            except ValueError as wrong:
                print(f"FAIL  {case.title}: {wrong}", flush=True)
                failed = True
                continue
            for backward in (False, True) if case.gradient_of else (False,):
                row = {"family": case.family, "case": case.name, "shape": case.shape,
                       "dtype": str(case.dtype).removeprefix("torch."), "max_error": error, "eager_error": eager_error,
                       **where, **measure(case, device, names, options.quick, backward)}  # fmt: skip
                rows.append(row)
                print(_line(row), flush=True)
                if target:
                    report.store(target, [row])  # at once: a later case may fail
    if options.report:
        options.report.write_text(report.table(rows))
    return 1 if failed else 0


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _line(row: dict[str, Any]) -> str:
    ratios = "  ".join(f"{name} {ratio:.2f}x" for name, ratio in sorted(row["ratios"].items(), key=lambda r: r[1]))
    warning = "" if row["quotable"] else "  (machine too busy to quote)"
    return (
        f"{row['family']}/{row['case']:14} {row['mode']:16} {row['times']['ours']['p50'] * 1e3:9.3f} ms  "
        f"{row['gflops']:6.1f} GFLOP/s ({row['share_of_product']:.0%} of {row['ceilings']['product']:.0f})  "
        f"{row['gbytes']:5.2f} GB/s ({row['share_of_copy']:.0%})  against {ratios}{warning}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
