"""Every .cu compiles for the NVIDIA chips that are supported, without warnings and without spills."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for part in ("csrc", "benchmarks") for path in (ROOT / part).rglob("*.cu"))  # fmt: skip
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
@pytest.mark.parametrize("target", ["sm_80", "sm_90a", "sm_100"])
@pytest.mark.parametrize("source", SOURCES)
def test_it_compiles(source, target, tmp_path):
    command = [NVCC, "-std=c++17", "-O3", f"-arch={target}", "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v"]
    done = subprocess.run(
        [*command, "-o", tmp_path / "out", ROOT / source], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) == done.stderr.count("Compiling entry function") > 0
    assert set(spills) == {("0", "0")}, done.stderr
