"""Registers, spills and shared memory of every Triton kernel, compiled ahead of time without a GPU.

A driver that launches nothing is put in Triton's place, so that the real launchers run on CPU tensors with the
real specialisation and compilation for a chosen architecture; what they compiled is read from the results.

    python -m hyperfast.benchmarks.resources [--short] [--target sm_90 ...] [--family gauge ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Families that compile what they share with others again, so that their rows are the same with and without these.
AFRESH = {"coord_grid"}
SHARED_MEMORY = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}


class _Launcher:
    def __init__(self, src: Any, metadata: Any) -> None:
        pass

    def __call__(self, *args: Any) -> None:
        pass


class DryDriver:
    """Compiles for `target` and launches nothing; keeps what was compiled."""

    launcher_cls = _Launcher

    def __init__(self, target: str) -> None:
        self.target = TARGETS[target]
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {
                "max_shared_mem": SHARED_MEMORY[target], "multiprocessor_count": 132, "warpSize": 32,
            },
            load_binary=lambda *args: (1, 1, 0, 0, 1024),
            unload_module=lambda *args: None,
        )  # fmt: skip

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty


def compile_cases(target: str, short: bool, families: list[str] | None = None) -> list[dict[str, Any]]:
    """Runs the families' launch cases (None: all) for one target and returns a row per compiled kernel."""
    from hyperfast.kernels import (
        coord_grid,
        ensemble,
        gauge,
        hyper_lstm,
        hyper_lstm_backward,
        kde,
        nn_entropy,
        nn_entropy_exact,
        nn_entropy_screen,
        product,
        target_net,
        target_net_cnn,
        target_net_cnn_backward,
        target_net_dropout,
        tiled_conv,
    )

    from .launches import FAMILIES

    triton.runtime.driver.set_active(DryDriver(target))
    modules = (
        coord_grid, ensemble, gauge, hyper_lstm, hyper_lstm_backward, kde, nn_entropy, nn_entropy_exact,
        nn_entropy_screen, product,
        target_net, target_net_cnn, target_net_cnn_backward, target_net_dropout, tiled_conv,
    )  # fmt: skip
    kernels = {n: k for m in modules for n, k in vars(m).items() if isinstance(k, triton.JITFunction)}
    for kernel in kernels.values():
        kernel.device_caches.clear()  # they hold what was compiled for another target
    rows: list[dict[str, Any]] = []
    for family, launches in FAMILIES.items():
        if families and family not in families:
            continue
        if family in AFRESH:
            for kernel in kernels.values():
                kernel.device_caches.clear()
        for case, launch in launches(short):
            before = {name: _compiled(kernel) for name, kernel in kernels.items()}
            launch()
            for name, kernel in kernels.items():
                fresh = [c for key, c in _compiled(kernel).items() if key not in before[name]]
                rows += [
                    {"family": family, "kernel": name, "case": case, "variant": i, "target": target,
                     **_resources(c, target)}
                    for i, c in enumerate(fresh)
                ]  # fmt: skip
    return rows


def _compiled(kernel: triton.JITFunction) -> dict[Any, Any]:
    return dict(kernel.device_caches[0][0])


def _resources(compiled: Any, target: str) -> dict[str, Any]:
    shared = compiled.metadata.shared
    if target.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        spills = _number(r"\.vgpr_spill_count:\s+(\d+)", text) + _number(r"\.sgpr_spill_count:\s+(\d+)", text)
        return {"registers": _number(r"\.vgpr_count:\s+(\d+)", text), "spill_bytes": 4 * spills, "shared": shared}
    log = _ptxas(compiled.asm["ptx"], target)
    spilled = _number(r"(\d+) bytes spill stores", log)
    return {"registers": _number(r"Used (\d+) registers", log), "spill_bytes": spilled, "shared": shared}


def _ptxas(ptx: str, target: str) -> str:
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    blackwell = folder / "ptxas-blackwell"
    program = blackwell if target == "sm_100" and blackwell.exists() else folder / "ptxas"
    arch = re.search(r"\.target (sm_\w+)", ptx)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "kernel.ptx"
        source.write_text(ptx)
        command = [str(program), "-v", f"--gpu-name={arch[1]}", str(source), "-o", str(Path(scratch) / "kernel.o")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ptxas refused the kernel: {done.stderr}")
    return done.stderr


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if not found:
        raise RuntimeError(f"no {pattern!r} in the compiler's output")
    return int(found[1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the main shapes only")
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--family", nargs="+", help="these families only")
    parser.add_argument("--json", type=Path, help="write the table here")
    options = parser.parse_args(arguments)
    rows = []
    for target in options.target:
        for row in compile_cases(target, options.short, options.family):
            rows.append(row)
            print("{target:7} {kernel:22} {case:40} {variant} regs {registers:4} spills {spill_bytes:5} shared {shared:7}"
                  .format(**row), flush=True)  # fmt: skip
    if options.json:
        lines = ",\n".join(json.dumps(row) for row in rows)
        options.json.write_text(f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n]}}\n')
    bad = [r for r in rows if r["spill_bytes"] or r["shared"] > SHARED_MEMORY[r["target"]]]
    for row in bad:
        print("over the limit:", row, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
