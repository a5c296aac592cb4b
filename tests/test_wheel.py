"""A wheel, built from this tree, installed elsewhere and tried outside the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_wheel(tmp_path):
    pip = [sys.executable, "-m", "pip"]
    # In the build folder of `make setup`, where only what has changed since is compiled.
    build = [*pip, "wheel", str(ROOT), "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {"hyperfast/_native.so", "hyperfast/kernels/target_net.py", "hyperfast/benchmarks/run.py"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "kernels/", "csrc/")) or "results" in n]
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__];"
        f"sys.path.insert(0, {str(site)!r}); import hyperfast as hf, torch;"
        f"assert hf.__file__.startswith({str(site)!r}), hf.__file__;"
        "net = hf.nn.TargetNet(torch.nn.Sequential(torch.nn.Linear(2, 3)));"
        "print(hf.backend('cpp')(net)(torch.ones(4, 2), net.init(5)).shape, hf.doctor()['problems'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.strip() == "torch.Size([5, 4, 3]) []", done.stderr
