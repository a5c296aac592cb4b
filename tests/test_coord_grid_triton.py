"""Triton kernels of coordinate grids under the interpreter: every form of the kernels, and backward in chunks."""

import pytest
import torch
from accuracy import assert_accurate
from test_coord_grid import F64, PATCHES, TINY, WIDE, net_of, residual, run, steps_of, tensors
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


def check(call, inputs, low=None):
    """Twice the reference's error against float64."""
    ours, eager, exact = (
        run(name, call, [t.to(dtype) for t in inputs])
        for name, dtype in (("triton", torch.float32), ("reference", torch.float32), ("reference", F64))
    )
    for i, (o, e, x) in enumerate(zip(ours, eager, exact, strict=True)):
        assert_accurate(o, e, x, "output" if i == 0 else f"gradient {i - 1}")


@pytest.mark.parametrize("name", NETS)
def test_26_forms_of_the_kernels(name):
    from hyperfast.kernels.coord_grid import Program

    layers, on_chip = NETS[name]
    net = net_of(*layers)
    assert Program.of(steps_of(net)).fits(2) == on_chip
    inputs = tensors(net, 4, 1, fan_in=8)
    check(lambda t, e: hf.ops.eval_grid(t, net, (5, 7), e), inputs)
    check(lambda t, e: hf.ops.render_patches(t, net, extra=e, **PATCHES), inputs)


@pytest.mark.parametrize("sizes", [(41,), (1, 1), (3, 1, 11), (2, 3, 2, 3)])
def test_26_axes(sizes):
    net = net_of(nn.Linear(len(sizes), 7), Cos(), nn.Linear(7, 3))
    check(lambda t: hf.ops.eval_grid(t, net, sizes), tensors(net, 2, 0))


def test_07_many_patches_and_odd_places():
    """More patches than are looked at together; origins and scales of no grid; both windows."""
    net = net_of(nn.Linear(2, 4), Cos(), nn.Linear(4, 2))
    generator = torch.Generator().manual_seed(1)
    origins = torch.rand(140, 2, generator=generator) * 14 - 3
    for window in ("hann", "flat"):
        check(lambda t: hf.ops.render_patches(t, net, origins, 3.5, (13, 18), (1.1, 1.7), window=window, check=False), tensors(net, 140, 0))  # noqa: B023


def test_chunks_of_networks_and_points(monkeypatch):
    """Sums in several chunks equal those in one."""
    from hyperfast.kernels import coord_grid_chain

    theta, extra = tensors(WIDE, 3, 1)
    wide, _ = NETS["wide first"]
    other = net_of(*wide)
    calls = [
        (lambda t, e: hf.ops.eval_grid(t, WIDE, (5, 6), e), [theta, extra]),
        (lambda t, e: run_grid("moments", t, e, (5, 6), steps_of(TINY), "triton"), tensors(TINY, 3, 1)),
        (lambda t, e: hf.ops.eval_grid(t, other, (5, 6), e), tensors(other, 3, 1)),
        (lambda t, e: hf.ops.render_patches(t, other, extra=e, **PATCHES), tensors(other, 4, 1)),
    ]
    for call, inputs in calls:
        whole = run("triton", call, inputs)
        for points in (11, 70):
            monkeypatch.setattr(coord_grid_chain, "_points_at_once", lambda steps, n=points: n)
            for a, b in zip(run("triton", call, inputs), whole, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        monkeypatch.undo()


def test_03_schema_and_fakes():
    from hyperfast.reference.coord_grid import place_patches

    theta, extra = tensors(TINY, 2, 1)
    patches, geometry = place_patches(torch.tensor([[0, 0], [1, 1]]), 3, (4, 5), (1.5, 1.0))
    spec = steps_of(TINY).encode()
    calls = {"eval": ((None, None), (2, 3), ()), "moments": ((None, None), (2, 3), ()), "render": (patches, (4, 5), geometry)}
    for kind, (places, sizes, shared) in calls.items():
        arguments = (theta, extra, *places, sizes, shared, *spec)
        forward = getattr(torch.ops.hyperfast, f"coord_grid_{kind}_triton")
        backward = getattr(torch.ops.hyperfast, f"coord_grid_{kind}_backward_triton")
        y, kept = forward(*arguments)
        checks = "test_schema", "test_faketensor"
        torch.library.opcheck(forward, arguments, test_utils=checks)
        for wants in ((True, True), (False, True), (True, False)):
            call = torch.randn_like(y), y if kind == "moments" else kept, *arguments, *wants
            torch.library.opcheck(backward, call, test_utils=checks)
