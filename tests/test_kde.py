"""The cross-entropy under a kernel density estimate: what every op survives, and what is its own."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from accuracy import assert_accurate
from contract import LOW, OpContract
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperfast as hf
from hyperfast import backends, native
from hyperfast.reference import kde as reference
from hyperfast.reference.kde import make_inputs

KERNEL = "triton" if backends.INTERPRETING else "cpp"
BOTH = pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.interpreter), "cpp"])
OPS = torch.ops.hyperfast
F64 = torch.float64


def kde(*inputs, backend=KERNEL):
    with hf.backend(backend):
        return hf.ops.kde_cross_entropy(*inputs)


def run(backend, inputs):
    """[ce, gradients of all inputs]: of 1 ce_0 + 2 ce_1 + ..."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    ce = kde(*inputs, backend=backend)
    return [ce.detach(), *torch.autograd.grad(ce, inputs, upstream(ce))]


def upstream(ce):
    return 1 + torch.arange(len(ce), dtype=ce.dtype)


# ---- the contract -----------------------------------------------------------------------------------


class TestKde(OpContract):
    def inputs(self, size="small", dtype=torch.float32, seed=0):
        small = size == "small"
        points, mu, weight, sigma = make_inputs(*((2, 3, 4) if small else (3, 37, 70)), dtype=dtype, seed=seed)
        weight[-1, 1] = 0
        return [points, mu, weight, 10 * sigma if small else sigma]

    def call(self, *inputs):
        return hf.ops.kde_cross_entropy(*inputs)

    def raw_op_calls_for(self, dtype):
        # The raw ops know float32 and float64; half types never reach them.
        inputs = self.inputs(dtype=torch.float32 if dtype == torch.float32 else F64)
        for shared in (inputs, [inputs[0][0].expand(2, 3, 2), *inputs[1:]]):
            yield OPS.kde_cpp.default, tuple(shared)
        ce, saved = OPS.kde_cpp(*inputs)
        for wants in ((True,) * 4, (False, True, False, False), (True, False, True, False), (False,) * 4):
            yield OPS.kde_backward_cpp.default, (torch.randn_like(ce), *inputs, saved, *wants)

    def layouts(self, t):
        if t.dim() == 1:
            return {
                "step-2 slice": torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0],
                "off by one element": torch.cat([t.new_zeros(1), t])[1:],
            }
        return super().layouts(t)

    @pytest.mark.parametrize("dtype", LOW)
    def test_17_autocast(self, dtype):
        """float32 under autocast, and for half types; gradients in each input's own type."""
        inputs = self.inputs("medium")
        expected = self.call(*inputs)
        low = [t.to(dtype).requires_grad_() for t in inputs]
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(self.call(*inputs), expected)
            y = self.call(*low)
        assert y.dtype == torch.float32
        assert torch.equal(y, self.call(*(t.float() for t in low)))
        y.sum().backward()
        assert all(t.grad.dtype == dtype for t in low)


class TestSharedPointsAndOneSigma(TestKde):
    """Points [L,2] for all samples, and a scalar sigma."""

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        points, mu, weight, sigma = super().inputs(size, dtype, seed)
        return [points[0].clone(), mu, weight, sigma[0].clone()]

    def raw_op_calls_for(self, dtype):
        return ()

    def layouts(self, t):
        return {} if t.dim() == 0 else super().layouts(t)

    def test_18_vmap(self):
        """The contract's maps the second dimension, which a scalar does not have; this maps the first of each."""
        inputs = self.inputs(dtype=F64)
        stacked = [torch.stack([t, 1.1 * t, t + 0.2]) for t in inputs]
        every = (0, 1, 2, 3)
        for mapped in (every, (0,), (3,), (1, 2)):
            dims = tuple(0 if i in mapped else None for i in every)
            arguments = [stacked[i] if i in mapped else inputs[i] for i in every]
            out = torch.vmap(self.call, in_dims=dims)(*arguments)
            loss = lambda *args: self.call(*args).sin().sum()
            grads = torch.vmap(torch.func.grad(loss, argnums=every), in_dims=dims)(*arguments)
            for s in range(3):
                one = [t[s] if i in mapped else t for i, t in enumerate(arguments)]
                torch.testing.assert_close(out[s], self.call(*one))
                for ours, expected in zip(grads, torch.func.grad(loss, argnums=every)(*one), strict=True):
                    torch.testing.assert_close(ours[s], expected)

    def test_09_expanded(self):
        """Of a tensor without a dimension for samples there is no first one."""
        points, mu, weight, sigma = self.inputs("medium")
        same = [t[:1].expand_as(t) for t in (mu, weight)]
        got, expected = (self.run("cpp", [points, *ts, sigma]) for ts in (same, [t.contiguous() for t in same]))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


# ---- the value --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_one_centre_is_a_gaussian(backend):
    points, mu = torch.tensor([[1.0, 2.0], [0.5, 0.0]]), torch.tensor([[[0.5, 1.0]]])
    weight, sigma = torch.tensor([[2.0, -0.5]]), 0.7
    normal = torch.distributions.MultivariateNormal(mu[0, 0].double(), F64_EYE * sigma**2)
    expected = -(weight[0] * normal.log_prob(points.double())).sum()
    torch.testing.assert_close(
        kde(points, mu, weight, sigma, backend=backend).double(), expected[None], rtol=2e-7, atol=0
    )


F64_EYE = torch.eye(2, dtype=F64)


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_sigma_is_a_number_or_a_tensor(backend):
    points, mu, weight, _ = make_inputs(3, 5, 4)
    by_number = kde(points, mu, weight, 0.25, backend=backend)
    for sigma in (torch.tensor(0.25), torch.full((3,), 0.25)):
        assert torch.equal(kde(points, mu, weight, sigma, backend=backend), by_number)
    assert not torch.equal(kde(points, mu, weight, 0.5, backend=backend), by_number)
    own = kde(points, mu, weight, torch.tensor([0.25, 0.5, 1.0]), backend=backend)
    assert torch.equal(own[:1], by_number[:1])
    assert torch.equal(own[2], kde(points, mu, weight, 1, backend=backend)[2])


def test_the_estimate_is_a_density():
    """Its exponential sums to 1 over a fine grid that holds every Gaussian."""
    axis = torch.linspace(-1, 2, 301, dtype=F64)
    grid = torch.cartesian_prod(axis, axis)
    mu, step = make_inputs(1, 1, 9, dtype=F64)[1], axis[1] - axis[0]
    weight = torch.ones(1, len(grid), dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(kde(grid, mu, weight, 0.06), weight)  # -log p, point by point
    torch.testing.assert_close((-gradient).exp().sum() * step**2, torch.tensor(1.0, dtype=F64), rtol=1e-6, atol=0)


@BOTH
def test_06_equal_distances_are_exact(backend):
    """Four centres around each point at one distance: each exponential is 1, and the gradients cancel to 0."""
    points = torch.tensor([[[0.0, 0.0], [8.0, 4.0]]])
    steps = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    weight, sigma = torch.tensor([[1.0, 2.0]]), torch.tensor([0.125])
    mu = (points[0, :, None] + steps).view(1, 8, 2)
    op = getattr(OPS, f"kde_{backend}")
    _, saved = op(points, mu, weight, sigma)
    assert torch.equal(saved[1], torch.full((1, 2), 4.0))
    back = getattr(OPS, f"kde_backward_{backend}")
    gx, gmu, _, _ = back(torch.ones(1), points, mu, weight, sigma, saved, True, True, False, False)
    assert torch.equal(gx, torch.zeros_like(gx))
    # -w r (x - mu) / sigma^2 with r = 1/4
    assert torch.equal(gmu, (weight[0, :, None, None] * 16 * steps).view(1, 8, 2))


@BOTH
@pytest.mark.parametrize("far", [30.0, 1e4, 1e8, 1e15])
def test_far_points_are_finite_and_exact(far, backend):
    """Where every exponential underflows the nearest centre decides. Which one that is, float32 may not tell."""
    points, mu, weight, sigma = make_inputs(2, 9, 11)
    inputs = [points + far * torch.tensor([1.0, 0.5]), mu, weight, sigma]
    ours, eager = run(backend, inputs), run("reference", inputs)
    exact = run("reference", [t.double() for t in inputs])
    assert all(o.isfinite().all() for o in ours)
    for i in (0, 1, 3, 4):
        assert_accurate(ours[i], eager[i], exact[i], str(i))
    # The centres' gradients sum to minus the points'.
    torch.testing.assert_close(ours[2].sum(1), -ours[1].sum(1), rtol=1e-4, atol=0)


@BOTH
def test_centres_far_away_do_not_matter(backend):
    """One cluster at the points, one a thousand sigma off: the far one has gradient exactly 0."""
    points, mu, weight, sigma = make_inputs(2, 9, 40)
    both = torch.cat([mu, mu + 50], 1)
    ours, alone = run(backend, (points, both, weight, sigma)), run(backend, (points, mu, weight, sigma))
    torch.testing.assert_close(ours[0], alone[0] + weight.sum(1) * math.log(2))
    assert torch.equal(ours[2][:, 40:], torch.zeros_like(mu))


@BOTH
@pytest.mark.parametrize("shape", [(1, 2100, 70), (2, 40, 4500)])
def test_07_past_every_block(shape, backend):
    """Chunks of points, sums that are split; zero weights here and there."""
    if backend == "triton":
        shape = (shape[0], shape[1] // 8, shape[2] // 8)
    inputs = list(make_inputs(*shape))
    inputs[2] = inputs[2] * (torch.arange(shape[1]) % 3 != 1)
    exact = run("reference", [t.double() for t in inputs])
    for i, (o, e, x) in enumerate(zip(run(backend, inputs), run("reference", inputs), exact, strict=True)):
        assert_accurate(o, e, x, str(i))
    if backend == "cpp":
        for o, x in zip(run("cpp", [t.double() for t in inputs]), exact, strict=True):
            torch.testing.assert_close(o, x, rtol=1e-10, atol=1e-12)


sizes = st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 40))
weights = st.sampled_from(["positive", "some zero", "all zero", "any sign"])


def weigh(weight, kind):
    place = torch.arange(weight.numel()).view_as(weight)
    factor = {"positive": 1, "some zero": place % 3 == 0, "all zero": 0, "any sign": 1 - 2 * (place % 2)}[kind]
    return weight * factor


@settings(max_examples=200, deadline=None)
@given(sizes, weights, st.integers(0, 99), st.floats(0.01, 3))
def test_07_08_any_size(shape, kind, seed, sigma):
    points, mu, weight, _ = make_inputs(*shape, dtype=F64, seed=seed)
    inputs = points, mu, weigh(weight, kind), torch.full(shape[:1], sigma, dtype=F64)
    for o, x in zip(run("cpp", inputs), run("reference", inputs), strict=True):
        torch.testing.assert_close(o, x, rtol=1e-10, atol=1e-11 * (1 + float(x.abs().sum())))


@pytest.mark.interpreter
@settings(max_examples=15, deadline=None)
@given(sizes, weights, st.integers(0, 99), st.floats(0.05, 3))
def test_07_08_any_size_interpreted(shape, kind, seed, sigma):
    points, mu, weight, _ = make_inputs(*shape, seed=seed)
    inputs = points, mu, weigh(weight, kind), torch.full(shape[:1], sigma)
    for o, x in zip(run("triton", inputs), run("reference", [t.double() for t in inputs]), strict=True):
        torch.testing.assert_close(o.double(), x, rtol=1e-4, atol=1e-5 * (1 + float(x.abs().sum())))


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_08_empty(backend):
    for shape in ((0, 5, 3), (2, 0, 3), (0, 0, 1)):
        ce, *gradients = run(backend, make_inputs(*shape))
        assert torch.equal(ce, torch.zeros(shape[0]))
        assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


# ---- points of weight zero --------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_points_of_weight_zero_are_not_there(backend):
    points, mu, weight, sigma = make_inputs(2, 12, 9)
    kept = [0, 3, 4, 11]
    weight[:, [l for l in range(12) if l not in kept]] = 0
    points[0, 1], points[1, 2, 0] = torch.nan, torch.inf
    whole = run(backend, (points, mu, weight, sigma))
    fewer = run(backend, (points[:, kept], mu, weight[:, kept], sigma))
    for of_all, of_few in ((whole[0], fewer[0]), (whole[2], fewer[2]), (whole[4], fewer[4])):
        torch.testing.assert_close(of_all, of_few)
    torch.testing.assert_close(whole[1][:, kept], fewer[1])
    assert whole[1].count_nonzero() == fewer[1].count_nonzero()
    # Their weights' gradient is -log p, but where there is no density.
    log_p = reference.log_density(points, mu, sigma)
    expected = (-log_p * upstream(whole[0])[:, None]).masked_fill(log_p.isnan() | log_p.isinf(), 0)
    torch.testing.assert_close(whole[3], expected)


@BOTH
def test_13_15_a_sample_does_not_see_its_neighbours(backend):
    inputs = make_inputs(4, 37, 33)
    spoiled = [t.clone() for t in inputs]
    spoiled[0][0, 3, 1], spoiled[1][1, 5, 0], spoiled[2][2, 7] = torch.nan, torch.inf, torch.nan
    whole, broken = run(backend, inputs), run(backend, spoiled)
    eager = run("reference", spoiled)
    for a, b, e in zip(whole, broken, eager, strict=True):
        assert torch.equal(a[3], b[3])
        assert torch.equal(b.isfinite().flatten(1).all(1) if b.dim() > 1 else b.isfinite(),
                           e.isfinite().flatten(1).all(1) if e.dim() > 1 else e.isfinite())  # fmt: skip
    alone = run(backend, [t[:1] for t in inputs])
    assert all(torch.equal(a[:1], b) for a, b in zip(whole, alone, strict=True))


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_a_point_at_infinity_has_no_density(backend):
    points, mu, weight, sigma = make_inputs(2, 5, 4)
    points[0, 1, 0] = torch.inf
    ce = kde(points, mu, weight, sigma, backend=backend)
    assert ce[0] == torch.inf
    assert ce[1].isfinite()


# ---- memory -----------------------------------------------------------------------------------------


@BOTH
def test_11_places_beyond_two_to_the_31(backend):
    """Strides between samples of more than 2^31 values; only the pages that are touched exist."""
    inputs = make_inputs(2, 5, 7)
    expected = run(backend, inputs)
    for i in range(3):
        t = inputs[i]
        memory = torch.from_numpy(np.empty(2**31 + 64, dtype=np.float32))
        far = memory.as_strided(t.shape, (2**31 + 7, *t.stride()[1:]))
        assert far.untyped_storage().nbytes() < 2**31 * 5
        far.copy_(t)
        leaves = [s.detach() for s in inputs]
        leaves[i] = far
        ce, saved = getattr(OPS, f"kde_{backend}")(*leaves)
        assert torch.equal(ce, expected[0])
        back = getattr(OPS, f"kde_backward_{backend}")
        gradients = back(upstream(ce), *leaves, saved, True, True, True, True)
        assert all(torch.equal(a, b) for a, b in zip(gradients, expected[1:], strict=True))


def test_memory_is_that_of_the_points():
    """No L x n: 8,000 points and as many centres, whose pairs would take 256 MB, in a process of its own."""
    code = (
        "import resource, torch, hyperfast as hf\n"
        "from hyperfast.reference.kde import make_inputs\n"
        "inputs = [t.requires_grad_() for t in make_inputs(1, 8_000, 8_000)]\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "hf.ops.kde_cross_entropy(*(t[:, :8] if t.dim() > 1 else t for t in inputs)).backward()\n"
        "before = peak()\n"
        "hf.ops.kde_cross_entropy(*inputs).backward()\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000  # KB; 8 chunks have a gradient of the centres each, 0.5 MB


# ---- around it --------------------------------------------------------------------------------------


def test_flops():
    inputs = [t.requires_grad_(i == 1) for i, t in enumerate(make_inputs(2, 5, 7))]
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        hf.ops.kde_cross_entropy(*inputs).sum().backward()
    assert counter.get_total_flops() == 2 * 5 * 7 * (14 + 13)


@pytest.mark.parametrize("isa", native.isas())
def test_24_instruction_sets_agree_on_awkward_sizes(isa):
    native.force_isa(isa)
    try:
        for shape in ((1, 1, 1), (2, 5, 17), (1, 600, 9)):
            inputs = make_inputs(*shape)
            for t in (inputs, [t.double() for t in inputs]):
                for o, x in zip(run("cpp", t), run("reference", [t.double() for t in inputs]), strict=True):
                    torch.testing.assert_close(o.double(), x, rtol=1e-4, atol=1e-4)
    finally:
        native.force_isa("auto")


ONES = make_inputs(2, 5, 4)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({0: torch.zeros(5)}, ValueError, r"points must have shape \[L,2\] or \[B,L,2\]; got \(5,\)"),
        ({0: torch.zeros(5, 3)}, ValueError, "points must have size 2 in dimension 1"),
        ({0: torch.zeros(3, 5, 2)}, ValueError, "points must have size 2 in dimension 0"),
        ({0: [1.0]}, TypeError, "points must be a tensor"),
        ({1: torch.zeros(2, 4, 3)}, ValueError, "mu must have size 2 in dimension 2"),
        ({1: torch.zeros(2, 0, 2)}, ValueError, "mu must have at least one centre"),
        ({1: torch.zeros(2, 4, 2, dtype=torch.int32)}, TypeError, "mu must be float32"),
        ({1: torch.zeros(2, 4, 2, dtype=F64)}, TypeError, "float64 does not mix"),
        ({2: torch.zeros(2, 6)}, ValueError, r"weight must have size 5 in dimension 1 \(the number of points\)"),
        ({2: torch.zeros(5)}, ValueError, r"weight must have shape \[B,L\]"),
        ({3: 0.0}, ValueError, "sigma must be a positive number or a tensor; got 0.0"),
        ({3: math.nan}, ValueError, "sigma must be a positive number"),
        ({3: "wide"}, ValueError, "sigma must be a positive number"),
        ({3: torch.ones(3)}, ValueError, "sigma must have size 2 in dimension 0"),
        ({3: torch.ones(2, dtype=F64)}, TypeError, "float64 does not mix"),
        ({0: torch.zeros(2, 5, 2, device="meta")}, ValueError, "tensors must be on one device"),
    ],
)
def test_user_errors(change, error, words):
    with pytest.raises(error, match=words):
        hf.ops.kde_cross_entropy(*(change.get(i, t) for i, t in enumerate(ONES)))
