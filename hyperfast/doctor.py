"""What is installed, which backend serves which op and why the others don't, and whether each op works."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import backends, native
from .plan import MLP, Activation


def doctor() -> dict[str, Any]:
    """A report on this installation, as plain data: versions, native, gpu, ops, problems (each with a hint)."""
    report: dict[str, Any] = {
        "versions": {name: _version(name) for name in ("hyperfast", "torch", "triton", "numpy")},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "native": _native(),
        "gpu": _gpus(),
        "ops": {op: _op(op) for op in backends.ops()},
    }
    report["problems"] = _problems(report)
    return report


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _native() -> dict[str, Any]:
    reason = native.WHY_NOT_LOADED
    return {
        "loaded": reason is None,
        "why_not": reason,
        "instruction_sets": native.isas(),
        "instruction_set": native.current_isa(),
    }


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "architecture": f"sm_{properties.major}{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "torch_architectures": torch.cuda.get_arch_list(),
            }
        )
    return gpus


def _devices() -> list[str]:
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    if torch.xpu.is_available():
        devices.append("xpu")
    return devices


def _op(op: str) -> dict[str, Any]:
    """Per device: the backend that serves float32, why the others don't, and a smoke test of the chosen one."""
    report = {}
    for device in _devices():
        reasons = {b: backends.why_not(b, op, device, torch.float32) for b in backends.BACKENDS}
        chosen = next((b for b in backends.preferred(device) if reasons[b] is None), "reference")
        report[device] = {
            "serves": chosen,
            "why_not": {b: reason for b, reason in reasons.items() if reason},
            "smoke_test": _smoke_test(op, device, chosen),
        }
    return report


def _smoke_test(op: str, device: str, backend: str) -> str:
    """ "ok", or what went wrong when `backend` ran a small case and was compared with the reference."""
    try:
        outputs = []
        for name in (backend, "reference"):
            with backends.backend(name):
                outputs.append(_SMOKE[op](device))
        error = (outputs[0] - outputs[1]).abs().max().item()
    except Exception as problem:  # a doctor reports whatever it meets
        return f"{type(problem).__name__}: {problem}"
    return "ok" if error < 1e-4 else f"differs from the reference by {error:.1e}"


def _smoke_mlp(device: str) -> torch.Tensor:
    from .ops.target_net import run_mlp
    from .reference.target_net import make_inputs

    mlp = MLP((3, 17, 2), (Activation("cos"), Activation("sigmoid")), (True, True))
    return run_mlp(*make_inputs(mlp, 2, 5, device=device), mlp)


def _smoke_linear(device: str) -> torch.Tensor:
    from .ops import batched_linear

    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.rand(shape, generator=generator).to(device) for shape in ((2, 5, 3), (2, 4, 3)))
    return batched_linear(x, weight, activation="tanh")


def _smoke_conv2d(device: str, dilation: int = 1) -> torch.Tensor:
    from .ops import batched_conv2d

    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.rand(shape, generator=generator).to(device) for shape in ((2, 3, 1, 6, 6), (2, 4, 1, 3, 3)))
    return batched_conv2d(x, weight, padding=1, pool=2, dilation=dilation)


def _smoke_cnn(device: str) -> torch.Tensor:
    from .ops.target_net import run_cnn
    from .plan import CNN, Conv
    from .reference.target_net import make_images

    cnn = CNN((Conv(1, 4, (3, 3), padding=(1, 1), pool=2), Conv(4, 3, (3, 3))))
    return run_cnn(*make_images(cnn, 2, 3, (8, 8), device=device), cnn)


def _smoke_ensemble(device: str) -> torch.Tensor:
    from .ops.ensemble import ensemble_sums
    from .reference.ensemble import make_inputs

    prob = ensemble_sums(make_inputs(3, 5, 4, device=device)).prob
    assert prob is not None  # it was asked for
    return prob


def _smoke_dropout(device: str) -> torch.Tensor:
    from .ops.target_net_dropout import dropout

    return dropout(torch.ones(2, 5, 7, device=device), 0.3, torch.tensor([11], device=device))


def _smoke_gauge(device: str) -> torch.Tensor:
    from .nn import TargetNet
    from .ops import fix_gauge
    from .reference.gauge import make_inputs

    template = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    net = TargetNet(template)
    return fix_gauge(make_inputs(net.num_weights, 3, device=device), net)


def _smoke_neighbors(device: str) -> torch.Tensor:
    from .ops import nearest_neighbor
    from .reference.nn_entropy import make_inputs

    return nearest_neighbor(make_inputs(9, 20, device=device))[0]


def _smoke_kde(device: str) -> torch.Tensor:
    from .ops import kde_cross_entropy
    from .reference.kde import make_inputs

    return kde_cross_entropy(*make_inputs(2, 9, 7, device=device))


def _smoke_hyper_lstm(device: str) -> torch.Tensor:
    from .ops.hyper_lstm import hyper_lstm
    from .reference.hyper_lstm import make_inputs

    return hyper_lstm(*make_inputs(3, 2, 4, 6, 5, 2, device=device)).h


def _smoke_hyper_rnn(device: str, scaling: str = "rows") -> torch.Tensor:
    from .nn import HyperRNN

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        m = HyperRNN(3, 5, scaling=scaling).to(device)
    return m(torch.ones(4, 2, 3, device=device))[0].detach()


def _smoke_tiled_conv(device: str) -> torch.Tensor:
    from .ops import assemble_kernels
    from .reference.tiled_conv import make_inputs

    zs, generator = make_inputs([(2, 1), (1, 3)], 5, 4, (4, 2), device=device)
    return torch.cat([kernel.flatten() for kernel in assemble_kernels(zs, *generator)])


def _coordinate_net(*more: torch.nn.Module) -> Any:
    from .nn import Cos, TargetNet

    return TargetNet(torch.nn.Sequential(torch.nn.Linear(3, 17), *more, Cos(), torch.nn.Linear(17, 2)))


def _smoke_eval_grid(device: str) -> torch.Tensor:
    from .nn import PerTargetNorm
    from .ops import eval_grid
    from .reference.coord_grid import make_inputs

    net = _coordinate_net(PerTargetNorm(17)).to(device)
    theta, extra = make_inputs(net.num_weights, 3, 1, device=device)
    return eval_grid(theta, net, (4, 5), extra).detach()


def _smoke_render_patches(device: str) -> torch.Tensor:
    from .ops import render_patches
    from .reference.coord_grid import make_inputs, patch_grid

    net = _coordinate_net()
    theta, extra = make_inputs(net.num_weights, 4, 1, device=device)
    return render_patches(theta, net, patch_grid((6, 6), 4, 2).to(device), 4, (15, 15), 2.5, extra)


def _smoke_grid_dropout(device: str) -> torch.Tensor:
    from .ops import eval_grid
    from .reference.coord_grid import make_inputs

    net = _coordinate_net(torch.nn.Dropout(0.5))
    theta, extra = make_inputs(net.num_weights, 3, 1, device=device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return eval_grid(theta, net, (4, 5), extra)


_SMOKE: dict[str, Callable[[str], torch.Tensor]] = {
    "assemble_kernels": _smoke_tiled_conv,
    "batched_mlp": _smoke_mlp,
    "batched_linear": _smoke_linear,
    "batched_cnn": _smoke_cnn,
    "batched_conv2d": _smoke_conv2d,
    "batched_cnn_dilated_or_grouped": partial(_smoke_conv2d, dilation=2),
    "coord_grid_dropout": _smoke_grid_dropout,
    "dropout": _smoke_dropout,
    "ensemble_sums": _smoke_ensemble,
    "eval_grid": _smoke_eval_grid,
    "fix_gauge": _smoke_gauge,
    "hyper_lstm": _smoke_hyper_lstm,
    "hyper_rnn": _smoke_hyper_rnn,
    "hyper_rnn_matrix": partial(_smoke_hyper_rnn, scaling="matrix"),
    "kde_cross_entropy": _smoke_kde,
    "nearest_neighbor": _smoke_neighbors,
    "render_patches": _smoke_render_patches,
}


def _problems(report: dict[str, Any]) -> list[dict[str, str]]:
    problems = []

    def add(what: str, hint: str) -> None:
        problems.append({"problem": what, "hint": hint})

    if not report["native"]["loaded"]:
        add(report["native"]["why_not"], "build it: install torch, then `pip install --no-build-isolation .`")
    if backends.TRITON_MISSING and report["gpu"]:
        add(backends.TRITON_MISSING, "the GPU kernels are written in Triton: pip install triton")
    for op, devices in report["ops"].items():
        for device, state in devices.items():
            if state["smoke_test"] != "ok":
                add(
                    f"{op} on {device} ({state['serves']}): {state['smoke_test']}",
                    "run the tests (`make test`) and report the first that fails",
                )
            kernels = backends._kernels[op]
            if state["serves"] == "reference" and kernels:
                add(
                    f"{op} on {device} runs on the slow reference: {state['why_not']}",
                    "mend the reason given; hf.backend('reference') silences the warning",
                )
    return problems


def describe(report: dict[str, Any]) -> str:
    """The report as a text for people."""
    versions = ", ".join(f"{name} {v or 'missing'}" for name, v in report["versions"].items())
    native_state = report["native"]
    lines = [
        f"{versions}; Python {report['python']}, {report['platform']}, {report['threads']} threads",
        "native kernels: "
        + (
            f"{native_state['instruction_set']} (available: {', '.join(native_state['instruction_sets'])})"
            if native_state["loaded"]
            else f"not loaded: {native_state['why_not']}"
        ),
        "GPU: " + (", ".join(f"{g['name']} ({g['architecture']})" for g in report["gpu"]) or "none"),
        "",
    ]
    wide = max(map(len, report["ops"]))
    for op, devices in report["ops"].items():
        for device, state in devices.items():
            lines.append(f"{op:{wide}} {device:5} -> {state['serves']:10} smoke test: {state['smoke_test']}")
            lines += [f"{'':{wide + 10}}not {name}: {reason}" for name, reason in state["why_not"].items()]
    lines.append("")
    if not report["problems"]:
        lines.append("no problems found")
    for problem in report["problems"]:
        lines += [f"problem: {problem['problem']}", f"   hint: {problem['hint']}"]
    return "\n".join(lines)
