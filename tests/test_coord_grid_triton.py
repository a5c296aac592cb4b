"""Triton kernels of coordinate grids under the interpreter: every form of the kernels, and backward in chunks."""

from functools import partial

import pytest
import torch
from accuracy import assert_accurate, error
from test_coord_grid import F64, TINY, net_of, residual, run, steps_of, tensors
from torch import nn

import hyperfast as hf
from hyperfast.ops.coord_grid_autograd import run_grid

pytestmark = pytest.mark.interpreter
Cos = hf.nn.Cos

# On chip: a wide width between narrow ones, residuals in residuals, activations by themselves. Not: wide at either end,
# wide neighbours, a wide residual, three residuals deep.
NETS = {
    "paper": ([nn.Linear(3, 32), Cos(), nn.Linear(32, 64), Cos(), residual(nn.Linear(64, 100), Cos(), nn.Linear(100, 64), Cos()), nn.Linear(64, 3), nn.Sigmoid()], True),
    "nested": ([nn.Linear(3, 5), residual(nn.Tanh(), residual(nn.Linear(5, 7), nn.Sigmoid(), nn.Linear(7, 5)), nn.SiLU()), nn.GELU(), residual()], True),
    "one layer": ([nn.Linear(3, 2), Cos()], True),
    "wide first": ([nn.Linear(3, 70), nn.ReLU(), nn.Linear(70, 2)], False),
    "wide last": ([nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 70)], False),
    "wide neighbours": ([nn.Linear(3, 5), Cos(), nn.Linear(5, 66), Cos(), nn.Linear(66, 67), Cos(), nn.Linear(67, 2)], False),
    "deep": ([residual(nn.Linear(3, 3, bias=False), residual(residual(Cos(), nn.Linear(3, 3)), nn.Tanh()), nn.Sigmoid()), nn.Linear(3, 2)], False),
}  # fmt: skip


# Two tiles, pixels of one patch, of both and of none.
PAIR = {"origins": torch.tensor([[0, 0], [0.4, 1.2]]), "patch_size": 3, "out_size": (6, 7), "scale": (2, 1.5), "check": False}  # fmt: skip


def check(call, inputs):
    """Twice the reference's error against float64; of a gradient with a few values, which may be exact by luck, twice
    the error of its worst gradient."""
    ours, eager, exact = (
        run(name, call, [t.to(dtype) for t in inputs])
        for name, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", F64))
    )
    worst = max(error(e, x) for e, x in zip(eager[1:], exact[1:], strict=True))
    for i, (o, e, x) in enumerate(zip(ours, eager, exact, strict=True)):
        if x.numel() < 16:
            assert error(o, x) <= 2 * worst + 3 * torch.finfo(torch.float32).eps
        else:
            assert_accurate(o, e, x, "output" if i == 0 else f"gradient {i - 1}")


@pytest.mark.parametrize("name", NETS)
def test_26_forms_of_the_kernels(name):
    from hyperfast.kernels.coord_grid import Program

    layers, on_chip = NETS[name]
    net = net_of(*layers)
    assert Program.of(steps_of(net)).fits(2) == on_chip
    inputs = tensors(net, 2, 1, fan_in=8)
    check(lambda t, e: hf.ops.eval_grid(t, net, (3, 4), e), inputs)
    check(lambda t, e: hf.ops.render_patches(t, net, extra=e, **PAIR), inputs)


@pytest.mark.parametrize("sizes", [(41,), (1, 1), (3, 1, 5), (2, 1, 2, 3)])
def test_26_axes(sizes):
    net = net_of(nn.Linear(len(sizes), 7), Cos(), nn.Linear(7, 3))
    check(lambda t: hf.ops.eval_grid(t, net, sizes), tensors(net, 2, 0))


def test_07_many_patches_and_odd_places():
    """More patches than are looked at together; origins and scales of no grid; both windows."""
    net = net_of(nn.Linear(2, 4), Cos(), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(1)
    origins = torch.rand(134, 2, generator=generator) * 11 - 1
    origins[5:125] += 50
    for window, count in (("hann", 134), ("flat", 9)):
        options = {"patch_size": 1.6, "out_size": (9, 8), "scale": (1.1, 0.8), "window": window, "check": False}
        check(partial(rendered, net, origins, options), tensors(net, count, 0))


def rendered(net, origins, options, theta):
    return hf.ops.render_patches(theta, net, origins[: len(theta)], **options)


def test_chunks_of_networks_and_points(monkeypatch):
    """Sums in several chunks equal those in one."""
    from hyperfast.kernels import coord_grid_chain

    wide = net_of(*NETS["wide first"][0])
    calls = [
        (lambda t, e: run_grid("moments", t, e, (2, 3), steps_of(TINY), "triton"), tensors(TINY, 3, 1)),
        (lambda t, e: hf.ops.eval_grid(t, wide, (2, 3), e), tensors(wide, 3, 1)),
        (lambda t, e: hf.ops.render_patches(t, wide, extra=e, **PAIR), tensors(wide, 2, 1)),
    ]
    for call, inputs in calls:
        whole = run("triton", call, inputs)
        for points in (4, 21):
            monkeypatch.setattr(coord_grid_chain, "_points_at_once", lambda steps, n=points: n)
            for a, b in zip(run("triton", call, inputs), whole, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        monkeypatch.undo()


def test_03_schema_and_fakes():
    from hyperfast.reference.coord_grid import place_patches

    theta, extra = tensors(TINY, 2, 1)
    patches, geometry = place_patches(torch.tensor([[0, 0], [1, 1]]), 3, (4, 5), (1.5, 1.0))
    spec = steps_of(TINY).encode()
    calls = {
        "eval": ((None, None), (2, 3), ()),
        "moments": ((None, None), (2, 3), ()),
        "render": (patches, (4, 5), geometry),
    }
    for kind, (places, sizes, shared) in calls.items():
        arguments = (theta, extra, *places, sizes, shared, *spec)
        forward = getattr(torch.ops.hyperfast, f"coord_grid_{kind}_triton")
        backward = getattr(torch.ops.hyperfast, f"coord_grid_{kind}_backward_triton")
        y, kept = forward(*arguments)
        checks = "test_schema", "test_faketensor"
        torch.library.opcheck(forward, arguments, test_utils=checks)
        for wants in ((True, True), (False, True)):
            call = torch.randn_like(y), y if kind == "moments" else kept, *arguments, *wants
            torch.library.opcheck(backward, call, test_utils=checks)
