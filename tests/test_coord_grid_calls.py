"""What a call on coordinate grids costs and keeps, what it refuses, and how it says so."""

import pytest
import torch
from test_coord_grid import F64, PATCHES, TINY, WIDE, net_of, tensors
from torch import nn

import hyperfast as hf
from hyperfast import backends
from hyperfast.reference import coord_grid as reference


def test_no_image_of_a_patch_is_stored():
    """Kept for backward: the arguments, where the patches lie, and one number a pixel."""
    theta, extra = tensors(WIDE, 4, 1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        hf.ops.render_patches(theta.requires_grad_(), WIDE, extra=extra, **PATCHES)
    others = [t for t in kept if t.data_ptr() not in (theta.data_ptr(), extra.data_ptr())]
    assert sum(t.numel() for t in others) <= 16 * 16 + 4 * (4 + 2)


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    theta, extra = tensors(TINY, 4, 1)
    forward = 3 * 3 * 2 + 3 * 2 * 2
    with FlopCounterMode(display=False) as counter:
        hf.ops.eval_grid(theta, TINY, (5, 6), extra)
    assert counter.get_total_flops() == 4 * 30 * forward
    with FlopCounterMode(display=False) as counter:
        hf.ops.render_patches(theta.requires_grad_(), TINY, extra=extra, **PATCHES).sum().backward()
    assert counter.get_total_flops() == 4 * 64 * (3 * forward + forward - 18)


def test_32_the_fast_path_is_the_one_that_runs():
    theta, extra = tensors(TINY, 4, 1)
    with torch.profiler.profile() as profile:
        hf.ops.eval_grid(theta, TINY, (3, 4), extra)
        hf.ops.render_patches(theta, TINY, extra=extra, **PATCHES)
    seen = {event.key for event in profile.key_averages()}
    assert {"hyperfast::coord_grid_eval_cpp", "hyperfast::coord_grid_render_cpp"} <= seen


def test_dropout_in_training_has_no_kernel():
    net = net_of(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    theta, extra = tensors(net, 4, 1)
    backends._warned.clear()
    torch.manual_seed(1)
    with pytest.warns(hf.HyperfastFallbackWarning, match="coord_grid_dropout"):
        dropped = hf.ops.eval_grid(theta, net, (3, 4), extra)
    points = torch.cat(
        [reference.grid_points((3, 4), torch.float32, "cpu").expand(4, -1, -1), extra.unsqueeze(1).expand(4, 12, 1)], -1
    )
    torch.manual_seed(1)
    torch.testing.assert_close(dropped.flatten(1, 2), net(points, theta))
    with hf.backend("cpp"), pytest.raises(RuntimeError, match="can't serve coord_grid_dropout"):
        hf.ops.eval_grid(theta, net, (3, 4), extra)
    with pytest.raises(RuntimeError, match="render_patches can't drop out"):
        hf.ops.render_patches(theta, net, extra=extra, **PATCHES)
    kept = hf.ops.eval_grid(theta, net.eval(), (3, 4), extra)
    torch.testing.assert_close(kept.flatten(1, 2), net(points, theta))


GRID = {"theta": tensors(TINY, 4, 0)[0], "net": TINY, "sizes": (3, 4), "extra": torch.ones(1)}
BAD_GRIDS = [
    ({"theta": [1.0]}, TypeError, r"theta must be a tensor \[B,P\]; got list"),
    ({"theta": torch.zeros(4, 7)}, ValueError, r"theta must have size 20 in dimension 1"),
    ({"net": nn.Linear(2, 2)}, TypeError, "net must be an hf.nn.TargetNet; got Linear"),
    ({"net": net_of(nn.Conv2d(3, 3, 1))}, ValueError, "theta must have size 12"),
    ({"net": net_of(nn.Conv2d(3, 3, 1)), "theta": torch.zeros(4, 12)}, ValueError, "net must take rows of numbers"),
    ({"sizes": 3}, ValueError, "sizes must be one or more whole numbers of at least 0; got 3"),
    ({"sizes": (3, -1)}, ValueError, "sizes must be one or more"),
    ({"sizes": (3, 2.0)}, ValueError, "sizes must be one or more"),
    ({"sizes": (2**16, 2**16)}, ValueError, "less than 2\\^31 points"),
    ({"sizes": (3, 4, 5)}, ValueError, "net must take 4 inputs, a coordinate for each of 3 axes and extra's 1; it takes 3"),
    ({"extra": torch.ones(3, 1)}, ValueError, "extra must have size 4 in dimension 0"),
    ({"extra": torch.ones(1, dtype=F64)}, TypeError, "float64 does not mix"),
    ({"extra": None}, ValueError, "net must take 2 inputs"),
    ({"stats": {"0": ()}}, ValueError, r"stats must have the layers \[\]; got \['0'\]"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), BAD_GRIDS)
def test_errors_of_eval_grid(change, error, words):
    with pytest.raises(error, match=words):
        hf.ops.eval_grid(**(GRID | change))


IMAGE = {"theta": GRID["theta"], "net": TINY, "extra": torch.ones(1), **PATCHES}
BAD_IMAGES = [
    ({"origins": [[0, 0]]}, TypeError, r"origins must be a tensor \[n,2\]; got list"),
    ({"origins": torch.zeros(4)}, ValueError, r"origins must have shape \[n,2\]; got \(4,\)"),
    ({"origins": torch.zeros(3, 2)}, ValueError, "origins must have size 4 in dimension 0"),
    ({"origins": torch.zeros(4, 3)}, ValueError, "origins must have size 2 in dimension 1"),
    ({"origins": torch.zeros(4, 2, dtype=torch.bool)}, TypeError, "integer or floating dtype"),
    ({"patch_size": 0}, ValueError, "patch_size must be a positive number; got 0"),
    ({"out_size": (4,)}, ValueError, r"out_size must be 2 whole numbers of at least 0; got \(4,\)"),
    ({"scale": -1}, ValueError, r"scale must be a positive number, or two of them, \(sy, sx\); got -1"),
    ({"scale": (1, 2, 3)}, ValueError, "scale must be"),
    ({"window": "hamming"}, ValueError, "window must be one of flat, hann; got 'hamming'"),
    ({"origins": PATCHES["origins"] + 1}, ValueError, r"no patch covers 60 of \(16, 16\) pixels, the first of them \(0, 0\)"),
    ({"out_size": (16, 17)}, ValueError, r"no patch covers 16 of \(16, 17\) pixels, the first of them \(0, 16\)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), BAD_IMAGES)
def test_errors_of_render_patches(change, error, words):
    with pytest.raises(error, match=words):
        hf.ops.render_patches(**(IMAGE | change))
    if "no patch covers" in words:
        image = hf.ops.render_patches(**(IMAGE | change), check=False)
        assert (image == 0).all(0).any()
