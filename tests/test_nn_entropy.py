import math
import subprocess
import sys

import pytest
import torch
from accuracy import RMS_LIMIT, error
from contract import OpContract
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperfast as hf
from hyperfast import backends, native
from hyperfast.reference.nn_entropy import make_inputs

KERNEL = "triton" if backends.INTERPRETING else "cpp"
OPS = torch.ops.hyperfast
BOTH = pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.interpreter), "cpp"])
NORMS = pytest.mark.parametrize("p", [1, 2])


# ---- the contract -----------------------------------------------------------------------------------


class _Contract(OpContract):
    p = 2

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        return [make_inputs(*((5, 3) if size == "small" else (70, 333)), dtype=dtype, seed=seed)]

    def raw_op_calls_for(self, dtype):
        # The raw ops know float32 and float64; half types never reach them.
        theta = make_inputs(6, 5, dtype=torch.float32 if dtype == torch.float32 else torch.float64)
        for bounds in ((0, 6), (2, 5), (3, 3), (0, -1)):
            yield OPS.nearest_neighbor_cpp.default, (theta, *bounds, self.p)
        found = OPS.nearest_neighbor_cpp(theta, 0, 6, self.p)
        for bounds in ((0, 6), (2, 5), (0, -1)):
            yield OPS.nearest_neighbor_backward_cpp.default, (theta[:, 0].clone(), theta, *found, *bounds, self.p)

    def layouts(self, t):
        if t.dim() == 0:
            return {}
        if t.dim() == 1:
            return {
                "step-2 slice": torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0],
                "off by one element": torch.cat([t.new_zeros(1), t])[1:],
            }
        return super().layouts(t)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_17_autocast(self, dtype):
        """float32 under autocast, and for half types; gradients in theta's own type."""
        (theta,) = self.inputs("medium")
        expected = self.call(theta)
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(self.call(theta), expected)
            y = self.call(theta.to(dtype).requires_grad_())
        low = theta.to(dtype).requires_grad_()
        assert y.dtype == torch.float32
        assert torch.equal(y, self.call(low.float()))
        self.call(low).sum().backward()
        assert low.grad.dtype == dtype


class TestNearestNeighbor(_Contract):
    def call(self, theta):
        return hf.ops.nearest_neighbor(theta)[0]


class TestAbsoluteNeighbor(_Contract):
    p = 1

    def call(self, theta):
        return hf.ops.nearest_neighbor(theta, p=1)[0]


class TestEntropy(_Contract):
    def call(self, theta):
        return hf.ops.nn_entropy(theta, dim=4)


# ---- the right neighbours ---------------------------------------------------------------------------


def search(theta, p=2, backend=KERNEL):
    with hf.backend(backend):
        return hf.ops.nearest_neighbor(theta, p)


def assert_right(theta, p=2, backend=KERNEL):
    """The neighbours, and their distances, that float64 gives for these values."""
    distance, index = search(theta, p, backend)
    exact, right = search(theta.double(), p, "reference")
    assert torch.equal(index, right)
    # One rounding for float32; in float64 the reference's own sums.
    terms = 2 if theta.dtype == torch.float32 else 2 + theta.shape[1]
    rtol = terms * torch.finfo(theta.dtype).eps
    torch.testing.assert_close(distance.double(), exact, rtol=rtol, atol=0, equal_nan=True)


def spread(rows, features=300, scale=1.0, seed=0):
    return scale * make_inputs(rows, features, seed=seed)


# Beyond float32's range Triton takes pair after pair in float64, which the interpreter does in seconds each.
EXTREME_ROWS, TIED_ROWS = (12, 24) if backends.INTERPRETING else (150, 75)
CLUSTERS = {
    "one tight cluster": lambda: 100 + spread(200, scale=1e-3),
    "two tight clusters": lambda: torch.cat([spread(100, scale=1e-4), 30 + spread(90, scale=1e-4, seed=1)]),
    "a tight cluster and one row": lambda: torch.cat([spread(100, scale=1e-4), 1e3 + spread(1)]),
    "many clusters": lambda: (10 * spread(20, seed=2).repeat_interleave(12, 0)) + spread(240, scale=1e-5, seed=3),
    "near duplicates far away": lambda: 1e3 + spread(90).repeat(2, 1) + spread(180, scale=1e-3, seed=5),
    "a rank-one curve": lambda: torch.linspace(0, 1, 200).square()[:, None] * spread(1) + 50,
    "large values": lambda: spread(EXTREME_ROWS, scale=1e30),
    "small values": lambda: spread(EXTREME_ROWS, scale=1e-30),
}


@BOTH
@NORMS
@pytest.mark.parametrize("name", CLUSTERS)
def test_certified_neighbors(name, p, backend):
    assert_right(CLUSTERS[name]().float(), p, backend)


@NORMS
@pytest.mark.parametrize("isa", native.isas())
def test_24_certified_by_every_instruction_set(isa, p):
    native.force_isa(isa)
    try:
        for name in CLUSTERS:
            assert_right(CLUSTERS[name]().float(), p, "cpp")
        assert_right(CLUSTERS["two tight clusters"]().double(), p, "cpp")
    finally:
        native.force_isa("auto")


@pytest.mark.parametrize("name", ["one tight cluster", "two tight clusters", "many clusters"])
def test_cdist_finds_others(name):
    """What the certificate is for: torch.cdist's default loses these neighbours."""
    theta = CLUSTERS[name]().float()
    distances = torch.cdist(theta, theta)
    distances.fill_diagonal_(torch.inf)
    assert (distances.argmin(1) != search(theta)[1]).float().mean() > 0.2


@BOTH
@NORMS
def test_06_ties_go_to_the_lowest_index(p, backend):
    for theta in (
        torch.ones(40, 7),
        torch.eye(TIED_ROWS),
        torch.randint(-1, 2, (2 * TIED_ROWS, 5), generator=torch.Generator().manual_seed(0)).float(),
        torch.arange(9.0)[:, None],
        torch.zeros(3, 0),
    ):
        distance, index = search(theta, p, backend)
        exact, right = search(theta, p, "reference")
        assert torch.equal(index, right)
        assert torch.equal(distance, exact)


@NORMS
def test_several_blocks(p):
    """More rows than a block has: plain ones, and ties, which only the last screen decides."""
    assert_right(make_inputs(1100, 40), p)
    assert_right(torch.randint(-1, 2, (1100, 9)).float(), p)


edge = st.sampled_from([1, 2, 3, 5, 15, 16, 17, 31, 33, 127, 128, 129, 257, 300])


@settings(max_examples=200, deadline=None)
@given(
    rows=st.sampled_from([2, 3, 5, 6, 7, 15, 16, 17, 31, 32, 33, 47, 65, 97]),
    features=edge,
    p=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    offset=st.sampled_from([0.0, 10.0]),
)
def test_07_sizes(rows, features, p, dtype, offset):
    theta = make_inputs(rows, features, dtype=dtype, seed=rows * features) + offset
    assert_right(theta, p)
    grads = []
    for backend, t in ((KERNEL, theta), ("reference", theta.double())):
        with hf.backend(backend):
            grads.append(torch.func.grad(lambda t: hf.ops.nearest_neighbor(t, p)[0].square().sum())(t))
    assert error(*grads) <= RMS_LIMIT[dtype]


@NORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_alone_equal_rows_of_the_whole(p, dtype):
    """start..stop of the raw ops, as ranks use them: bitwise, also where rows are decided by differences."""
    for theta in (make_inputs(75, 140, dtype=dtype), CLUSTERS["two tight clusters"]()[60:140].to(dtype)):
        distance, index = OPS.nearest_neighbor_cpp(theta, 0, -1, p)  # -1: to the last
        grad = torch.randn(len(theta), dtype=dtype)
        gradient = OPS.nearest_neighbor_backward_cpp(grad, theta, distance, index, 0, -1, p)
        for start, stop in ((0, 1), (10, 43), (70, len(theta)), (8, 8)):
            part = OPS.nearest_neighbor_cpp(theta, start, stop, p)
            assert torch.equal(part[0], distance[start:stop])
            assert torch.equal(part[1], index[start:stop])
            got = OPS.nearest_neighbor_backward_cpp(grad, theta, distance, index, start, stop, p)
            assert torch.equal(got, gradient[start:stop])


@NORMS
def test_15_a_distance_does_not_depend_on_other_rows(p):
    theta = make_inputs(80, 500)
    distance, index = search(theta, p)
    for i in (0, 17, 79):
        alone = search(theta[[i, int(index[i])]], p)[0]
        assert torch.equal(alone[0], distance[i])


def test_04_distances_are_as_accurate_as_differences():
    theta = 5 + make_inputs(100, 20_018)
    exact, index = search(theta.double(), 2, "reference")
    distance, found = search(theta)
    assert torch.equal(found, index)
    assert error(distance, exact) <= error((theta - theta[index]).norm(dim=1), exact)


# ---- broken rows, gradients at zero -----------------------------------------------------------------


@BOTH
@NORMS
@pytest.mark.parametrize("rows", [40, 90])
def test_13_broken_rows_stay_alone(rows, p, backend):
    theta = make_inputs(rows, 50)
    broken = [0, 7, 8, 33]
    whole = torch.tensor([i for i in range(rows) if i not in broken])
    bad = theta.clone()
    bad[0, 3], bad[7], bad[8, 49], bad[33, 0] = torch.nan, torch.nan, torch.inf, -torch.inf

    def run(t, backend=backend):
        t = t.clone().requires_grad_()
        distance, index = search(t, p, backend)
        return distance.detach(), index, torch.autograd.grad(distance, t, torch.arange(1.0, 1 + len(t)))[0]

    distance, index, gradient = run(bad)
    alone, index_alone = search(theta[whole], p, backend)
    assert torch.equal(distance[whole], alone)
    assert torch.equal(index[whole], whole[index_alone])
    assert gradient[whole].isfinite().all()
    assert index[broken].tolist() == [1, 0, 0, 0]  # the lowest other row
    assert not distance[broken].isfinite().any()
    if p == 2:  # |x|' is 0 at NaN, as torch.sgn is
        assert not gradient[broken].isfinite().all(1).any()
    exact = run(bad, "reference")
    torch.testing.assert_close(gradient, exact[2], equal_nan=True)
    torch.testing.assert_close(distance, exact[0], equal_nan=True)
    assert torch.equal(search(torch.full((3, 2), torch.nan), p, backend)[1], torch.tensor([1, 0, 0]))


@BOTH
@NORMS
def test_equal_rows_have_a_finite_entropy_and_no_gradient(p, backend):
    theta = make_inputs(6, 20)
    theta[4] = theta[1]
    with hf.backend(backend):
        value = hf.ops.nn_entropy(theta, p=p)
        gradient = torch.func.grad(lambda t: hf.ops.nearest_neighbor(t, p)[0][[1, 4]].sum())(theta)
        hessian = torch.func.jacrev(torch.func.grad(lambda t: hf.ops.nn_entropy(t, p=p)))(theta)
    assert value.isfinite()
    assert not gradient.any()
    assert hessian.isfinite().all()


def test_gradient_of_a_row_that_is_everyone_s_neighbor():
    theta = torch.cat([torch.zeros(1, 9000), torch.eye(50, 9000) + 1e-3 * make_inputs(50, 9000)])
    grads = []
    for backend, t in (("cpp", theta), ("reference", theta), ("reference", theta.double())):
        with hf.backend(backend):
            grads.append(torch.func.grad(lambda t: hf.ops.nearest_neighbor(t)[0].square().sum())(t))
    assert (search(theta)[1] == 0).sum() >= 40
    assert error(grads[0], grads[2]) <= 2 * error(grads[1], grads[2]) + 3 * torch.finfo(torch.float32).eps


@BOTH
def test_entropy_of_a_uniform_line(backend):
    """N points d apart: psi(N) + D log d, exactly."""
    theta = (0.25 * torch.arange(6.0)).unsqueeze(1)
    psi = torch.digamma(torch.tensor(6.0)).item()
    with hf.backend(backend):
        for p in (1, 2):
            assert math.isclose(hf.ops.nn_entropy(theta, p=p, eps=0).item(), psi + math.log(0.25), rel_tol=1e-6)
        assert math.isclose(hf.ops.nn_entropy(theta, 3, eps=0).item(), psi + 3 * math.log(0.25), rel_tol=1e-6)


# ---- memory and offsets -----------------------------------------------------------------------------

PEAK = """
import sys, torch, hyperfast as hf
rows, features, backward = map(int, sys.argv[1:])
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
hf.ops.nn_entropy(torch.randn(40, 50).requires_grad_()).backward()
theta = torch.randn(rows, features).requires_grad_(bool(backward))
before = peak()
value = hf.ops.nn_entropy(theta)
if backward:
    value.backward()
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("rows", "features", "backward", "most"),
    [
        (600, 20_018, True, 1.5 * 4 * 600 * 20_018),  # beside theta, its gradient and little else
        (8000, 16, False, 4 * 8000 * 8000 / 4),  # never N x N
    ],
)
def test_23_peak_memory(rows, features, backward, most):
    command = [sys.executable, "-c", PEAK, str(rows), str(features), str(int(backward))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < most


@BOTH
def test_11_offsets_beyond_two_to_the_31(backend):
    theta = make_inputs(3, 20)
    torch.use_deterministic_algorithms(False)  # would fill all of it
    far = torch.empty(2 * (2**31 + 5) + 20).as_strided((3, 20), (2**31 + 5, 1)).copy_(theta)
    for p in (1, 2):
        got, expected = search(far, p, backend), search(theta, p, backend)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        grads = []
        for t in (far, theta):
            with hf.backend(backend):
                grads.append(torch.func.grad(lambda t, p=p: hf.ops.nearest_neighbor(t, p)[0].sum())(t))
        assert torch.equal(*grads)


def test_19_data_loaders():
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(
            Entropies(), batch_size=None, num_workers=1, multiprocessing_context=context
        )
        for i, value in enumerate(loader):
            assert torch.equal(value, Entropies()[i]), context


class Entropies(torch.utils.data.Dataset):
    """A data set that runs the op in the worker."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return hf.ops.nn_entropy(make_inputs(20, 30, seed=index))


# ---- the rest ---------------------------------------------------------------------------------------


def test_32_the_kernels_are_what_runs():
    theta = make_inputs(9, 20).requires_grad_()
    with torch.profiler.profile() as profile:
        hf.ops.nn_entropy(theta).backward()
    ran = {event.key for event in profile.key_averages()}
    assert {"hyperfast::nearest_neighbor_cpp", "hyperfast::nearest_neighbor_backward_cpp"} <= ran


def test_flop_counter():
    theta = make_inputs(7, 20).requires_grad_()
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        hf.ops.nn_entropy(theta).backward()
    assert counter.get_total_flops() == 2 * 20 * 21 + 4 * 20 * 7


def test_index_has_no_gradient():
    distance, index = hf.ops.nearest_neighbor(make_inputs(5, 3).requires_grad_())
    assert distance.requires_grad
    assert not index.requires_grad
    assert index.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"theta": torch.zeros(0, 3)}, ValueError, r"theta must have at least two rows; got \(0, 3\)"),
        ({"theta": torch.zeros(1, 3)}, ValueError, r"theta must have at least two rows; got \(1, 3\)"),
        ({"theta": torch.zeros(3)}, ValueError, r"theta must have shape \[N,D\]; got \(3,\)"),
        ({"theta": torch.zeros(2, 5, 3)}, ValueError, r"theta must have shape \[N,D\]"),
        ({"theta": torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "theta must be float32"),
        ({"theta": [[1.0]]}, TypeError, "theta must be a tensor"),
        ({"p": 3}, ValueError, "p must be 1 or 2; got 3"),
        ({"dim": 0}, ValueError, "dim must be None or a positive number; got 0"),
        ({"dim": "all"}, ValueError, "dim must be None or a positive"),
        ({"eps": -1.0}, ValueError, "eps must be a number of at least 0; got -1.0"),
        ({"eps": math.nan}, ValueError, "eps must be a number of at least 0"),
        ({"group": "world"}, TypeError, "group must be a process group or a DeviceMesh"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        hf.ops.nn_entropy(**({"theta": torch.zeros(4, 3)} | change))
