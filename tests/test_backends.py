"""Which implementation serves a call; doctor; and an installation whose native library is missing."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import hyperfast as hf
from hyperfast import backends, cli, native

LINEAR = torch.ones(1, 1, 2), torch.ones(1, 3, 2)


def profiled(backend):
    with hf.backend(backend), torch.profiler.profile() as profile:
        hf.ops.batched_linear(*LINEAR)
    return {event.key for event in profile.key_averages()}


def test_32_the_fast_path_is_the_one_that_runs():
    for name in ("auto", "cpp"):
        assert "hyperfast::batched_mlp_cpp" in profiled(name)
    assert not any("hyperfast" in key for key in profiled("reference"))


def test_context_manager_and_decorator():
    @hf.backend("reference")
    def inside():
        return backends.current()

    assert inside() == "reference"
    with hf.backend("cpp"):
        with hf.backend("auto"):
            assert backends.current() == "auto"
        assert backends.current() == "cpp"
        seen = []
        thread = threading.Thread(target=lambda: seen.append(backends.current()))
        thread.start()
        thread.join()
        assert seen == ["auto"]  # each thread has its own
    with pytest.raises(RuntimeError), hf.backend("cpp"):
        raise RuntimeError
    assert backends.current() == "auto"


def test_backward_uses_forward_s_backend():
    x = torch.ones(1, 1, 2, requires_grad=True)
    with hf.backend("cpp"):
        y = hf.ops.batched_linear(x, LINEAR[1])
    with hf.backend("reference"), torch.profiler.profile() as profile:
        y.sum().backward()
    assert "hyperfast::batched_mlp_backward_cpp" in {event.key for event in profile.key_averages()}


def test_a_backend_that_can_t_serve_says_what_can():
    with pytest.raises(ValueError, match="backend must be one of auto, cpp, triton"), hf.backend("fortran"):
        pass
    with (
        hf.backend("triton"),
        pytest.raises(RuntimeError, match=r"TRITON_INTERPRET=1.*Available for this call: cpp, reference"),
    ):
        hf.ops.batched_linear(*LINEAR)
    with hf.backend("cuda"), pytest.raises(RuntimeError, match="batched_linear has no cuda kernel"):
        hf.ops.batched_linear(*LINEAR)
    with hf.backend("triton"), pytest.raises(RuntimeError, match="float64 runs on the backends cpp and reference"):
        hf.ops.batched_linear(*(t.double() for t in LINEAR))


def test_force_isa_names_the_choice():
    with pytest.raises(ValueError, match=r"one of: auto generic.*got sse9"):
        native.force_isa("sse9")


def test_doctor(capsys):
    report = hf.doctor()
    assert report["problems"] == []
    assert report["native"]["loaded"]
    for op in backends.ops():
        assert report["ops"][op]["cpu"]["smoke_test"] == "ok"
    assert report["ops"]["batched_mlp"]["cpu"]["serves"] == "cpp"
    assert "TRITON_INTERPRET" in report["ops"]["batched_mlp"]["cpu"]["why_not"]["triton"]
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["torch"] == torch.__version__
    assert cli.main(["doctor"]) == 0
    assert "batched_mlp" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"hyperfast {hf.__version__}\n"


def test_a_reader_that_leaves_is_no_traceback():
    command = [sys.executable, "-m", "hyperfast.cli", "doctor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as doctor:
        doctor.stdout.close()
        told = doctor.stderr.read()
    assert doctor.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in told
    assert "BrokenPipe" not in told


def test_doctor_reports_a_wrong_kernel(monkeypatch):
    doctor = sys.modules["hyperfast.doctor"]  # hf.doctor is the function
    calls = iter(range(10**6))
    monkeypatch.setitem(doctor._SMOKE, "batched_mlp", lambda device: torch.tensor(float(next(calls))))
    (problem,) = hf.doctor()["problems"]
    assert "batched_mlp on cpu (cpp): differs from the reference" in problem["problem"]


def test_31_without_triton():
    """A CPU-only installation needs no Triton, and doctor has nothing against it."""
    code = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'triton':\n"
        "            raise ModuleNotFoundError(name)\n"
        "import importlib.util as util\n"
        "real = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name == 'triton' else real(name, *a)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import torch, hyperfast as hf\n"
        "assert 'triton' not in sys.modules\n"
        "net = hf.nn.TargetNet(torch.nn.Sequential(torch.nn.Linear(2, 3)))\n"
        "print(net(torch.ones(1, 2), net.init(4)).shape)\n"
        "from hyperfast import cli; raise SystemExit(cli.main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "triton is not installed" in done.stdout


def test_32_without_the_native_library(tmp_path):
    """Import works, the reference serves with a warning, and doctor and exit status say so."""
    root = Path(__file__).resolve().parent.parent
    shutil.copytree(root / "hyperfast", tmp_path / "hyperfast", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(root / "kernels", tmp_path / "hyperfast" / "kernels")
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__];"
        f"sys.path.insert(0, {str(tmp_path)!r});"
        "import warnings, torch, hyperfast as hf\n"
        "assert hf.__path__[0].startswith(sys.path[0])\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    y = hf.ops.batched_linear(torch.ones(1, 1, 2), torch.ones(1, 3, 2))\n"
        "assert y.tolist() == [[[2.0, 2.0, 2.0]]]\n"
        "print(caught[0].message)\n"
        "try:\n"
        "    hf.backend('cpp')(hf.ops.batched_linear)(torch.ones(1, 1, 2), torch.ones(1, 3, 2))\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
        "from hyperfast import cli; raise SystemExit(cli.main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "no kernel serves batched_linear on cpu" in done.stdout
    assert "backend 'cpp' can't serve batched_linear" in done.stdout
    assert "no native library was found" in done.stdout
    assert "hint: build it" in done.stdout
