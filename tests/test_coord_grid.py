"""Coordinate networks on grids and overlapping patches: kernels against the reference and against arithmetic by hand."""

import copy
import itertools
import math
from typing import ClassVar

import pytest
import torch
from accuracy import assert_accurate
from contract import LOW, OpContract
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hyperfast as hf
from hyperfast import backends, native, plan_steps
from hyperfast.reference import coord_grid as reference

F64 = torch.float64
KERNEL = "triton" if backends.INTERPRETING else "cpp"
NETWORKS = {"small": 2, "medium": 2 if backends.INTERPRETING else 5}


def net_of(*layers) -> hf.nn.TargetNet:
    return hf.nn.TargetNet(nn.Sequential(*layers))


def residual(*layers):
    return hf.nn.Residual(nn.Sequential(*layers))


def beside(theta, net):
    """net on theta's device."""
    return net if theta.device.type == "cpu" else copy.deepcopy(net).to(theta.device)


def steps_of(net):
    return plan_steps.steps_of(net.plan.stages)


TINY = net_of(nn.Linear(3, 3), hf.nn.Cos(), nn.Linear(3, 2), nn.Sigmoid())
# Past a panel and a block, a layer with few outputs, a residual around a wide layer with an activation behind it.
WIDE = net_of(
    nn.Linear(3, 33), hf.nn.Cos(), residual(nn.Linear(33, 70), hf.nn.Cos(), nn.Linear(70, 33, bias=False)), nn.Tanh(),
    nn.Linear(33, 3), nn.Sigmoid(),
)  # fmt: skip


def tensors(net, networks, extras, **options):
    theta, extra = reference.make_inputs(net.num_weights, networks, extras, **options)
    return [theta] if extra is None else [theta, extra]


# ---- the contract -----------------------------------------------------------------------------------


class TestEvalGrid(OpContract):
    nets: ClassVar = {"small": TINY, "medium": WIDE}
    sizes: ClassVar = {"small": (2, 3), "medium": (5, 7) if backends.INTERPRETING else (9, 13)}
    kind = "eval"

    def size_of(self, theta):
        return "small" if theta.shape[-1] == self.nets["small"].num_weights else "medium"

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        return tensors(self.nets[size], NETWORKS[size], 1, dtype=dtype, seed=seed)

    def call(self, theta, extra):
        size = self.size_of(theta)
        return hf.ops.eval_grid(theta, beside(theta, self.nets[size]), self.sizes[size], extra)

    def places(self):
        return (None, None), self.sizes["small"], ()

    def raw_op_calls_for(self, dtype):
        theta, extra = self.inputs(dtype=dtype)
        patches, sizes, geometry = self.places()
        arguments = (theta, extra.float(), *patches, sizes, geometry, *steps_of(TINY).encode())
        forward = getattr(torch.ops.hyperfast, f"coord_grid_{self.kind}_{self.kernel()}")
        backward = getattr(torch.ops.hyperfast, f"coord_grid_{self.kind}_backward_{self.kernel()}")
        y, kept = forward(*arguments)
        yield forward, arguments
        yield forward, (theta[:0], extra[:0].float(), *(p if p is None else p[:0] for p in patches), *arguments[4:])
        kept = y if self.kind == "moments" else kept
        for wants in ((True, True), (False, True), (True, False)):
            yield backward, (torch.randn_like(y), kept, *arguments, *wants)

    @pytest.mark.parametrize("dtype", LOW)
    def test_17_autocast(self, dtype):
        """float32 whatever autocast says."""
        inputs = [t.requires_grad_() for t in self.inputs("medium")]
        plain = self.call(*inputs)
        with torch.autocast("cpu", dtype=dtype):
            y, low = self.call(*inputs), self.call(*(t.to(dtype) for t in inputs))
        assert torch.equal(y, plain)
        assert torch.equal(low, self.call(*(t.to(dtype).float() for t in inputs)))
        low.sum().backward()
        assert all(t.grad.dtype == torch.float32 for t in inputs)


class TestRenderPatches(TestEvalGrid):
    """Patches of two sizes of rectangle, some over the border, one outside, one twice; two scales."""

    origins: ClassVar = {
        "small": torch.tensor([[-0.7, 0], [0.6, 0.2]]),
        "medium": torch.tensor([[0, 0], [0, 2.3], [2.2, -1], [2.2, 2.5], [9, 0.5]]),
    }
    spec: ClassVar = {"small": (3, (4, 5), (1.5, 2.0)), "medium": (4, (14, 15), (2.4, 2.5))}
    kind = "render"

    def call(self, theta, extra):
        size = self.size_of(theta)
        origins = self.origins[size][: theta.shape[0]].to(theta.device)
        return hf.ops.render_patches(theta, self.nets[size], origins, *self.spec[size], extra, check=False)

    def places(self):
        patch_size, out_size, scale = self.spec["small"]
        patches, geometry = reference.place_patches(self.origins["small"], patch_size, out_size, scale)
        return patches, out_size, geometry._replace(window=1)


# ---- what is computed -------------------------------------------------------------------------------


def run(backend, call, inputs, gy_seed=2):
    """[output, gradients]."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    with hf.backend(backend):
        y = call(*leaves)
    generator = torch.Generator().manual_seed(gy_seed)
    gy = torch.randn(y.shape, generator=generator, dtype=F64).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, gy)]


@pytest.mark.parametrize("sizes", [(7,), (4, 6), (2, 3, 4)])
@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_points_of_a_grid(sizes, backend):
    """Pixel centres in [-1, 1], the last axis fastest, then extra, as one would write them down."""
    dtype = torch.float32 if KERNEL == "triton" else F64
    net = net_of(nn.Linear(len(sizes) + 2, 5), nn.Tanh(), nn.Linear(5, 2))
    theta, extra = tensors(net, 3, 2, dtype=dtype)
    centres = [[(i + 0.5) / n * 2 - 1 for i in range(n)] for n in sizes]
    points = torch.tensor(list(itertools.product(*centres)), dtype=dtype)
    x = torch.cat([points.expand(3, -1, -1), extra.unsqueeze(1).expand(3, len(points), 2)], -1)
    with hf.backend("reference"):
        expected = net(x, theta).unflatten(1, sizes)
    with hf.backend(backend):
        torch.testing.assert_close(hf.ops.eval_grid(theta, net, sizes, extra), expected)
        shared = hf.ops.eval_grid(theta, net, sizes, extra[1])
    torch.testing.assert_close(shared[1], expected[1])


def by_hand(theta, net, origins, patch_size, out_size, scale, extra, hann):
    """The definition, pixel by pixel and patch by patch, in Python's floats."""
    sy, sx = scale
    image = torch.zeros(net.plan.stages[-1].mlp.widths[-1], *out_size, dtype=F64)
    for i, j in itertools.product(*map(range, out_size)):
        y, x = (i + 0.5) / sy, (j + 0.5) / sx
        total, mean = 0.0, 0
        for n, (oy, ox) in enumerate(origins.double().tolist()):
            if oy <= y < oy + patch_size and ox <= x < ox + patch_size:
                u, v = 2 * (y - oy) / patch_size - 1, 2 * (x - ox) / patch_size - 1
                w = math.prod(0.5 * (1 + math.cos(math.pi * c)) + 1e-3 for c in (u, v)) if hann else 1.0
                point = torch.tensor([[[u, v, *extra[n].tolist()]]], dtype=F64)
                total, mean = total + w, mean + w * net(point, theta[n : n + 1].double())[0, 0]
        if total:
            image[:, i, j] = mean / total
    return image


@pytest.mark.parametrize("window", ["hann", "flat"])
@pytest.mark.parametrize("backend", [KERNEL, "reference"])
@pytest.mark.parametrize(("scale", "dtype"), [((2.5, 3), torch.float32), ((1, 1), torch.int64), ((0.4, 0.7), F64)])
def test_an_image_by_hand(scale, dtype, window, backend):
    # Half-integer edges that meet pixel centres exactly, at scale 1.
    origins = torch.tensor([[0, 0], [-2, 2.5], [3.5, -1.5], [3, 3], [1, 1], [40, 0]]).to(dtype)
    net = net_of(nn.Linear(3, 5), hf.nn.Cos(), nn.Linear(5, 2))
    theta, extra = tensors(net, 6, 1, dtype=F64 if KERNEL == "cpp" else torch.float32)
    arguments = net, origins, 5, tuple(round(9 * s) for s in scale), scale, extra
    with hf.backend("reference"):
        expected = by_hand(theta, *arguments, window == "hann")
    with hf.backend(backend):
        got = hf.ops.render_patches(theta, *arguments, window, check=False)
    tolerance = 1e-12 if theta.dtype == F64 else 1e-5
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_edges_of_patches_are_those_of_the_comparison():
    """Origins a rounding error from a pixel's centre, at scales that no float holds."""
    for scale in (3.0, 0.3, 1.7, 7 / 3):
        centres = (torch.arange(40, dtype=F64) + 0.5) / scale
        origins = torch.cat([torch.nextafter(centres, centres + s) for s in (-1, 0, 1)])
        pairs = torch.stack([origins, origins.flip(0)], 1)
        patches, _ = reference.place_patches(pairs, 5, (40, 40), (scale, scale))
        for axis in (0, 1):
            edge = pairs[:, axis, None]
            inside = (edge <= centres) & (centres < edge + 5)
            first, last = patches.rects[:, 2 * axis, None], patches.rects[:, 2 * axis + 1, None]
            pixels = torch.arange(40)
            assert torch.equal((first <= pixels) & (pixels < last), inside)


@pytest.mark.parametrize("isa", native.isas())
def test_06_small_integers_are_exact(isa):
    check_integers("cpp", isa)


@pytest.mark.interpreter
def test_06_small_integers_are_exact_interpreted():
    check_integers("triton", "auto")


def check_integers(backend, isa):
    """Coordinates are quarters, weights whole, windows flat: no sum rounds; means are of 1, 2 and 4 patches."""
    net = net_of(
        nn.Linear(3, 20), nn.ReLU(), residual(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 20)), nn.Linear(20, 3)
    )
    generator = torch.Generator().manual_seed(3)
    theta = torch.randint(-2, 3, (4, net.num_weights), generator=generator).float()
    extra = torch.randint(1, 4, (4, 1), generator=generator).float()
    origins = torch.tensor([[0, 0], [0, 2], [2, 0], [2, 2]])
    calls = [
        lambda t, e: hf.ops.eval_grid(t, net, (4, 8), e),
        lambda t, e: hf.ops.render_patches(t, net, origins, 4, (12, 12), 2, e, "flat"),
    ]
    gys = [torch.randint(-2, 3, shape, generator=generator).float() for shape in ((4, 4, 8, 3), (3, 12, 12))]
    for call, gy in zip(calls, gys, strict=True):
        found = []
        for name, dtype in ((backend, torch.float32), ("reference", F64)):
            leaves = [t.to(dtype).requires_grad_() for t in (theta, extra)]
            native.force_isa(isa)
            try:
                with hf.backend(name):
                    y = call(*leaves)
                found.append([y, *torch.autograd.grad(y, leaves, gy.to(dtype))])
            finally:
                native.force_isa("auto")
        for a, b in zip(*found, strict=True):
            assert torch.equal(a.double(), b)


ACTIVATIONS = [nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, hf.nn.Cos, hf.nn.Sin]


@settings(max_examples=60, deadline=None)
@given(
    networks=st.integers(0, 3), sizes=st.lists(st.integers(0, 21), min_size=1, max_size=3), extras=st.integers(0, 3),
    widths=st.lists(st.sampled_from([1, 2, 5, 15, 16, 17, 33, 65]), min_size=2, max_size=4),
    activation=st.sampled_from(ACTIVATIONS), nesting=st.integers(0, 2), bias=st.booleans(),
)  # fmt: skip
def test_07_08_any_size(networks, sizes, extras, widths, activation, nesting, bias):
    layers = [nn.Linear(len(sizes) + extras, widths[0], bias=bias), activation()]
    for inputs, outputs in itertools.pairwise(widths):
        inner = [nn.Linear(inputs, outputs, bias=bias), activation(), nn.Linear(outputs, inputs)]
        for _ in range(nesting):
            inner = [residual(*inner), activation()]
        layers += [*inner, nn.Linear(inputs, outputs, bias=bias), activation()]
    net = net_of(*layers)
    inputs = tensors(net, networks, extras, dtype=F64)
    for call in (
        lambda *t: hf.ops.eval_grid(t[0], net, tuple(sizes), *t[1:]),
        lambda *t: Moments.of(net, tuple(max(n, 1) for n in sizes), *t),
    ):
        for a, b in zip(run("cpp", call, inputs), run("reference", call, inputs), strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1 + b.abs().amax() if b.numel() else 1))


class Moments:
    """The private pass of a norm."""

    @staticmethod
    def of(net, sizes, theta, extra=None):
        from hyperfast.ops.coord_grid_autograd import run_grid

        return run_grid("moments", theta, extra, sizes, steps_of(net), backends.select("eval_grid", "cpu", theta.dtype))


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), max_size=5), out_size=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    patch_size=st.floats(0.1, 9), scale=st.tuples(st.floats(0.2, 9), st.floats(0.2, 9)),
    window=st.sampled_from(["hann", "flat"]),
)  # fmt: skip
def test_07_08_any_patches(places, out_size, patch_size, scale, window):
    inputs = tensors(TINY, len(places), 1, dtype=F64)
    origins = torch.tensor(places).view(-1, 2)
    call = lambda t, e: hf.ops.render_patches(t, TINY, origins, patch_size, out_size, scale, e, window, check=False)
    for a, b in zip(run("cpp", call, inputs), run("reference", call, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_many_points_are_summed_in_parts():
    """More points than one part of a gradient; the parts' sums do not depend on the batch."""
    net = net_of(nn.Linear(2, 8), hf.nn.Cos(), nn.Linear(8, 1))
    (theta,) = tensors(net, 9, 0)
    calls = [lambda t: hf.ops.eval_grid(t, net, (65, 70)), lambda t: Moments.of(net, (65, 70), t)]
    for call in calls:
        ours, eager, exact = (
            run("cpp", call, [theta]),
            run("reference", call, [theta]),
            run("reference", call, [theta.double()]),
        )
        for o, e, x in zip(ours, eager, exact, strict=True):
            assert_accurate(o, e, x, "values")
        whole = torch.func.grad(lambda t: call(t).square().sum())(theta)  # noqa: B023
        alone = torch.func.grad(lambda t: call(t).square().sum())(theta[4:5])  # noqa: B023
        assert torch.equal(whole[4:5], alone)
        assert torch.equal(call(theta)[4:5], call(theta[4:5]))


# ---- neighbours, threads, memory --------------------------------------------------------------------


PATCHES = {"origins": torch.tensor([[0, 0], [0, 4], [4, 0], [4, 4]]), "patch_size": 4, "out_size": (16, 16), "scale": 2}


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_13_a_patch_does_not_see_its_neighbours(backend):
    theta, extra = tensors(WIDE, 4, 1)
    spoiled = theta.clone()
    spoiled[1, 40] = torch.nan
    render = lambda t: hf.ops.render_patches(t, WIDE, extra=extra, **PATCHES)
    with hf.backend(backend):
        whole, broken = render(theta), render(spoiled)
        grids = [hf.ops.eval_grid(t, WIDE, (3, 4), extra) for t in (theta, spoiled)]
    bad = torch.zeros(16, 16, dtype=torch.bool)
    bad[:8, 8:] = True
    assert torch.equal(broken[:, ~bad], whole[:, ~bad])
    assert broken[:, bad].isnan().all()
    assert torch.equal(grids[0][[0, 2, 3]], grids[1][[0, 2, 3]])
    assert grids[1][1].isnan().all()


def test_13_a_broken_gradient_stays_with_its_patch():
    theta, extra = tensors(WIDE, 4, 1)
    theta.requires_grad_()
    with hf.backend(KERNEL):
        image = hf.ops.render_patches(theta, WIDE, extra=extra, **PATCHES)
    gy = torch.randn_like(image)
    (clean,) = torch.autograd.grad(image, theta, gy, retain_graph=True)
    gy[:, 3, 9] = torch.nan
    (broken,) = torch.autograd.grad(image, theta, gy)
    assert torch.equal(broken[[0, 2, 3]], clean[[0, 2, 3]])
    assert broken[1].isnan().any()


def test_14_15_pixels_do_not_depend_on_rows_or_threads():
    """Tasks own rows of the image; a patch alone is the same as among others."""
    theta, extra = tensors(WIDE, 9, 1)
    origins = reference.patch_grid((16, 16), 8, 4)
    render = lambda: hf.ops.render_patches(theta, WIDE, origins, 8, (37, 35), 2.3, extra, check=False)
    threads = torch.get_num_threads()
    images = []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            images.append(render())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(image, images[0]) for image in images)
    alone = hf.ops.render_patches(theta[:1], WIDE, origins[:1], 8, (37, 35), 2.3, extra[:1], check=False)
    assert torch.equal(alone[:, :9, :9], images[0][:, :9, :9])  # of the first patch alone


def test_11_places_beyond_two_to_the_31():
    """Rows of theta 2^31 elements apart; only the pages that are touched exist."""
    net = net_of(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))
    theta = tensors(net, 2, 0)[0].half()
    torch.use_deterministic_algorithms(False)  # would fill all of it
    far = torch.empty_strided((2, net.num_weights), (2**31 + 7, 1), dtype=torch.float16).copy_(theta)
    with hf.backend(KERNEL):
        assert torch.equal(hf.ops.eval_grid(far, net, (3, 4)), hf.ops.eval_grid(theta, net, (3, 4)))


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_08_empty(backend):
    theta, extra = (t.requires_grad_() for t in tensors(WIDE, 2, 1))
    none = torch.zeros(0, 2)
    with hf.backend(backend):
        nothing = hf.ops.render_patches(theta[:0], WIDE, none, 4, (3, 5), 2, extra[:0], check=False)
        outputs = [
            hf.ops.eval_grid(theta, WIDE, (0, 4), extra),
            hf.ops.eval_grid(theta[:0], WIDE, (3, 4), extra[:0]),
            hf.ops.render_patches(theta, WIDE, none.new_full((2, 2), 99), 4, (3, 5), 2, extra, check=False),
            hf.ops.render_patches(theta, WIDE, none.new_zeros(2, 2), 4, (0, 5), 2, extra),
            nothing,
        ]
        grads = torch.autograd.grad([y.sum() for y in outputs], [theta, extra])
    assert [tuple(y.shape) for y in outputs] == [(2, 0, 4, 3), (0, 3, 4, 3), (3, 3, 5), (3, 0, 5), (3, 3, 5)]
    assert not outputs[2].any()
    assert not nothing.any()
    assert not any(g.any() for g in grads)
