"""Rows 12 and 25: the op tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer.

Around every tensor lie the sanitizer's guard zones; a kernel that reads or writes past one ends the process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The process's own tests: an editable install would be found before the sanitized library.
RUN = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "Redirecting" not in type(finder).__name__]
sys.path.insert(0, sys.argv[1])
import hyperfast, pytest
assert hyperfast.__file__.startswith(sys.argv[1]), hyperfast.__file__
raise SystemExit(pytest.main(sys.argv[2:]))
"""
TESTS = "accuracy or layouts or sizes or widths or kernels_and_windows or papers or empty or every_instruction or float64 or broken or any_size or lengths or low_precision or any_patches"


def runtime(name: str) -> str:
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.long
def test_25_sanitizers(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet"]
    build = ["-C", f"build-dir={tmp_path}/build", "-C", "cmake.define.HYPERFAST_SANITIZE=ON"]
    wheel = [*pip, "wheel", str(ROOT), "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), *build]
    subprocess.run(wheel, check=True, capture_output=True)
    site = tmp_path / "site"
    (built,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(built)], check=True, capture_output=True)
    assert b"__asan_report" in (site / "hyperfast" / "_native.so").read_bytes()
    environment = os.environ | {
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0",  # torch's and Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    stems = (
        "target_net", "target_net_cnn", "ensemble", "nn_entropy", "gauge", "hyper_lstm", "hyper_lstm_rnn", "tiled_conv",
        "kde", "coord_grid", "coord_grid_norms",
    )  # fmt: skip
    files = [f"tests/test_{stem}.py" for stem in stems]
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(site), "-q", "-x", "--capture=sys", "-p", "no:xdist", "-k", TESTS, *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
