"""The forms that long sums take: many inputs in parts, few outputs over lanes, many pixels in parts."""

import pytest
import torch
from accuracy import error
from test_target_net import check, mlp_of
from test_target_net_cnn import KERNEL, Check

from hyperfast.ops.target_net import run_mlp
from hyperfast.plan import CNN, Activation, Conv
from hyperfast.reference.target_net import make_images, make_inputs


@pytest.mark.parametrize("out", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [32, 47, 65])
def test_narrow_outputs(width, out):
    """Sums over lanes, of which the last may be partly unused: cos and sigmoid do not keep zeros there."""
    for activation in ("cos", "sigmoid"):
        check(mlp_of((3, width, out), activation, "cos"), 3, 101)
    check(mlp_of((3, width, out, 5), "tanh"), 2, 7, dtype=torch.float64)


def test_13_infinity_stays_out_of_unused_lanes():
    mlp = mlp_of((1, 40, 2), "identity")
    x, theta = torch.full((1, 1, 1), torch.inf), torch.ones(1, mlp.num_weights)
    assert run_mlp(x, theta, mlp).tolist() == [[[torch.inf, torch.inf]]]


@pytest.mark.parametrize("shared", [False, True])
def test_04_long_sums_are_as_accurate_as_eager(shared):
    mlp = mlp_of((1024, 8), last="identity")
    x, theta = make_inputs(mlp, 8, 64, shared=shared, seed=1)
    x = x.abs()
    exact = run_mlp(x.double(), theta.double(), mlp)
    weight, bias = theta[:, : 8 * 1024].view(8, 8, 1024), theta[:, 8 * 1024 :]
    eager = torch.baddbmm(bias[:, None], x.expand(8, -1, -1), weight.mT)
    assert error(run_mlp(x, theta, mlp), exact) <= 1.5 * error(eager, exact)


@pytest.mark.parametrize("images", [3, 40])
def test_04_weight_gradients_of_many_pixels_are_as_accurate_as_eager(images):
    """A sum over every pixel of every image, for weights and biases."""
    cnn = CNN((Conv(3, 18, (3, 3), activation=Activation("tanh")),))
    inputs = list(make_images(cnn, 2, images, (24, 24)))
    run = Check(cnn).run
    exact = run("reference", [t.double() for t in inputs])
    for ours, eager, expected in zip(run(KERNEL, inputs), run("reference", inputs), exact, strict=True):
        assert error(ours, expected) <= 2 * error(eager, expected) + 2e-7
