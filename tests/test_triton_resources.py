"""Row 27: every Triton kernel compiles for four architectures, without spills, within the chip's shared memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STORED = {
    p.stem.removeprefix("triton-"): json.loads(p.read_text())
    for p in (ROOT / "benchmarks/results").glob("triton-*.json")
}
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
OLDEST = "3.6.0"


def compiled(target: str, path: Path, *options: str, **environment: str) -> dict:
    """The table of one target; the command fails on a spill or on too much shared memory."""
    command = [
        sys.executable,
        "-m",
        "hyperfast.benchmarks.resources",
        "--target",
        target,
        "--json",
        str(path),
        *options,
    ]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(path.read_text())


def assert_no_rise(table: dict) -> None:
    key = lambda row: (row["family"], row["kernel"], row["case"], row["variant"], row["target"])
    before = {key(row): row for row in STORED[table["triton"]]["rows"]}
    for row in table["rows"]:
        assert key(row) in before, f"not in the stored table, regenerate it: {row}"
        for what in ("registers", "shared"):
            assert row[what] <= before[key(row)][what], f"{what} rose from {before[key(row)]} to {row}"


@pytest.mark.parametrize("target", TARGETS)
def test_27_main_shapes(target, tmp_path):
    table = compiled(target, tmp_path / "table.json", "--short")
    assert len(table["rows"]) > 10
    assert_no_rise(table)


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_27_every_shape(target, tmp_path):
    assert_no_rise(compiled(target, tmp_path / "table.json"))


@pytest.mark.long
@pytest.mark.parametrize("target", TARGETS)
def test_27_oldest_triton(target, tmp_path):
    packages = tmp_path / "packages"
    install = ["pip", "install", "--quiet", "--no-deps", "--target", str(packages), f"triton=={OLDEST}"]
    subprocess.run([sys.executable, "-m", *install], check=True)
    table = compiled(target, tmp_path / "table.json", PYTHONPATH=str(packages))
    assert table["triton"] == OLDEST
    assert_no_rise(table)
