"""PerTargetNorm on grids: folded into the layers, with statistics that are given or taken by a pass over the grid."""

from typing import ClassVar

import pytest
import test_coord_grid
import torch
from test_coord_grid import F64, KERNEL, Moments, net_of, residual, tensors
from torch import nn

import hyperfast as hf
from hyperfast import backends
from hyperfast.reference import coord_grid as reference


class TestNormed(test_coord_grid.TestEvalGrid):
    """Statistics over each network's points, inside a residual, too."""

    nets: ClassVar = {
        "small": net_of(nn.Linear(3, 3), hf.nn.Cos(), hf.nn.PerTargetNorm(3), nn.Linear(3, 2)),
        "medium": net_of(
            nn.Linear(3, 33), hf.nn.Cos(), nn.Linear(33, 20), hf.nn.PerTargetNorm(20), hf.nn.Cos(),
            residual(nn.Linear(20, 50), hf.nn.PerTargetNorm(50), nn.Tanh(), nn.Linear(50, 20, bias=False)),
            nn.Linear(20, 3),
        ),
    }  # fmt: skip
    sizes: ClassVar = {"small": (2, 3), "medium": (5, 6) if backends.INTERPRETING else (17, 6)}
    kind = "moments"

    def test_float64(self):
        """Relative to the largest: a bias before a norm has the gradient zero, out of sums that cancel."""
        inputs = self.inputs("medium", F64)
        for ours, exact in zip(self.run("cpp", inputs), self.run("reference", inputs), strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12 * exact.abs().amax().item())

    test_23_memory_does_not_grow = None
    test_16_compile_inductor = None
    test_16_export = None


def test_norms_as_target_net_has_them():
    """Every place of a norm, statistics taken, given and running; the gradients to gamma and beta, too."""
    norm = hf.nn.PerTargetNorm
    layers = [
        [nn.Linear(3, 8), norm(8), hf.nn.Cos(), nn.Linear(8, 2)],
        [nn.Linear(3, 8, bias=False), norm(8), nn.Linear(8, 2, bias=False), nn.Sigmoid()],
        [nn.Linear(3, 8), hf.nn.Cos(), norm(8), nn.Linear(8, 2)],
        [norm(3, mode="shared"), nn.Linear(3, 8), residual(nn.Tanh(), norm(8), norm(8)), norm(8), hf.nn.Cos(), nn.Linear(8, 2)],
        [nn.Linear(3, 8), residual(nn.Linear(8, 8), norm(8, mode="shared"), hf.nn.Cos()), norm(8), nn.ReLU(), norm(8)],
    ]  # fmt: skip
    for template in layers:
        torch.manual_seed(1)
        ours, theirs = net_of(*template).double(), net_of(*template).double()
        for parameter, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            nn.init.normal_(parameter, 1, 0.3)
            other.data.copy_(parameter.data)
        theta, extra = tensors(ours, 3, 1, dtype=F64)
        theta.requires_grad_()
        points = reference.grid_points((4, 7), F64, "cpu")
        x = torch.cat([points.expand(3, -1, -1), extra.unsqueeze(1).expand(3, 28, 1)], -1)
        for mode in ("train", "eval", "given"):
            ours.train(mode == "train")
            theirs.train(mode == "train")
            stats = theirs.statistics(theta.detach(), x[:, :9] ** 2) if mode == "given" else None
            stats = stats and {name: (mean.detach(), var.detach()) for name, (mean, var) in stats.items()}
            y = hf.ops.eval_grid(theta, ours, (4, 7), extra, stats=stats).flatten(1, 2)
            expected = theirs(x, theta, stats=stats)
            torch.testing.assert_close(y, expected)
            for a, b in zip(
                torch.autograd.grad(y.sin().sum(), [theta, *ours.parameters()], retain_graph=True),
                torch.autograd.grad(expected.sin().sum(), [theta, *theirs.parameters()]),
                strict=True,
            ):
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_a_patch_is_normed_over_its_own_grid(backend):
    """Whole patches side by side are eval_grid's; cut ones are the same values, cut."""
    net = net_of(nn.Linear(2, 5), hf.nn.PerTargetNorm(5), hf.nn.Cos(), nn.Linear(5, 1))
    (theta,) = tensors(net, 2, 0)
    with hf.backend(backend):
        grid = hf.ops.eval_grid(theta, net, (10, 10))[..., 0]
        image = hf.ops.render_patches(theta, net, torch.tensor([[0, 0], [0, 4]]), 4, (10, 20), 2.5, window="flat")
        cut = hf.ops.render_patches(theta[:1], net, torch.tensor([[-2, 0]]), 4, (5, 10), 2.5)
    torch.testing.assert_close(image[0], torch.cat([grid[0], grid[1]], 1))
    torch.testing.assert_close(cut[0], grid[0, 5:])


def test_moments_far_from_zero():
    """Values of 1000 with a spread of 1 keep the variance's digits."""
    net = net_of(nn.Linear(2, 1))
    theta = torch.tensor([[1.0, 0.5, 1000.0]])
    (mean, var), exact = Moments.of(net, (60, 50), theta)[0], Moments.of(net, (60, 50), theta.double())[0]
    torch.testing.assert_close(mean.double(), exact[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), exact[1], rtol=1e-4, atol=0)
