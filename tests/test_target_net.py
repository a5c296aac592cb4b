import pytest
import torch
from accuracy import RMS_LIMIT, error
from contract import OpContract
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperfast as hf
from hyperfast import backends
from hyperfast.ops.batched import encode
from hyperfast.ops.target_net import run_mlp
from hyperfast.plan import ACTIVATIONS, MLP, Activation
from hyperfast.reference.target_net import make_inputs

KERNEL = "triton" if backends.INTERPRETING else "cpp"


def mlp_of(widths, activation="tanh", last="identity", bias=True) -> MLP:
    depth = len(widths) - 1
    acts = (Activation.of(activation),) * (depth - 1) + (Activation.of(last),)
    return MLP(tuple(widths), acts, (bias,) * depth)


SIZES = {"small": (2, 3, (2, 3, 2)), "medium": (3, 101, (5, 33, 70, 7))}


class _MLPContract(OpContract):
    shared = False

    def mlp(self, size):
        return mlp_of(SIZES[size][2])

    def call(self, x, theta):
        size = "small" if theta.shape[-1] == self.mlp("small").num_weights else "medium"
        return run_mlp(x, theta, self.mlp(size))

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        networks, rows, _ = SIZES[size]
        return list(make_inputs(self.mlp(size), networks, rows, shared=self.shared, dtype=dtype, seed=seed))

    def raw_op_calls_for(self, dtype):
        x, theta = self.inputs("small", dtype)
        spec = [list(part) for part in encode(self.mlp("small"))]
        gy = torch.randn(2, 3, 2).to(dtype)
        ops = torch.ops.hyperfast
        yield ops.batched_mlp_cpp.default, (x, theta, None, *spec, True)
        saved = torch.ops.hyperfast.batched_mlp_cpp(x, theta, None, *spec, True)[1]
        for wants in ((True, True, False), (False, True, False), (True, False, False)):
            yield ops.batched_mlp_backward_cpp.default, (gy, x, theta, None, saved, *spec, *wants)


class TestBatchedMLP(_MLPContract):
    pass


class TestBatchedMLPShared(_MLPContract):
    shared = True

    def test_09_expanded(self):
        x, theta = self.inputs("medium")
        same = theta[:1].expand_as(theta)
        got, expected = self.run("cpp", [x, same]), self.run("cpp", [x, same.contiguous()])
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    def layouts(self, t):
        return {k: v for k, v in super().layouts(t).items() if k != "first dimensions transposed"}


class TestBatchedLinear(OpContract):
    def call(self, x, weight, bias):
        return hf.ops.batched_linear(x, weight, bias, "sigmoid")

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        b, n, i, o = (2, 3, 4, 2) if size == "small" else (3, 61, 35, 18)
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in ((b, n, i), (b, o, i), (b, o))
        ]

    def raw_op_calls_for(self, dtype):
        x, weight, bias = self.inputs("small", dtype)
        spec = [list(part) for part in encode(MLP((4, 2), (Activation("cos"),), (True,)))]
        yield torch.ops.hyperfast.batched_mlp_cpp.default, (x, weight.flatten(1), bias, *spec, False)
        backward = torch.ops.hyperfast.batched_mlp_backward_cpp.default
        yield (
            backward,
            (
                torch.randn(2, 3, 2).to(dtype),
                x,
                weight.flatten(1),
                bias,
                torch.empty(0, dtype=torch.uint8),
                *spec,
                True,
                True,
                True,
            ),
        )


class Check(_MLPContract):
    """Forward and backward of any MLP against the reference, outside the contract's sizes."""

    __test__ = False

    def __init__(self, mlp: MLP) -> None:
        self.one = mlp

    def call(self, x, theta):
        return run_mlp(x, theta, self.one)

    def mlp(self, size):
        return self.one


def check(mlp, networks, rows, *, shared=False, backend=KERNEL, dtype=torch.float32, theta_dtype=None, device="cpu"):
    inputs = make_inputs(mlp, networks, rows, shared=shared, dtype=dtype, theta_dtype=theta_dtype, device=device)
    Check(mlp).assert_matches_reference(backend, list(inputs))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    check(mlp_of((3, 20, 5), activation, activation), 2, 30)


@pytest.mark.interpreter
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_26_activations_interpreted(activation):
    check(mlp_of((3, 20, 5), activation, activation), 2, 30)


# Narrow and wide widths in every order: each form of the on-chip kernel, and layers between two wide widths.
WIDTHS = [(2, 32, 64, 256, 64, 3), (100, 7), (100, 130, 5), (3, 100), (70, 65, 80), (5, 66, 4, 200), (1, 100, 1)]


@pytest.mark.interpreter
@pytest.mark.parametrize("widths", WIDTHS)
def test_26_widths_interpreted(widths):
    check(mlp_of(widths, "cos", "sigmoid"), 2, 19)
    check(mlp_of(widths, "leaky_relu", bias=False), 2, 3, shared=True)


@pytest.mark.interpreter
def test_26_backward_reduces_over_networks():
    check(mlp_of((3, 18, 2)), 5, 40, shared=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widths", WIDTHS)
def test_gpu(widths, dtype):
    check(mlp_of(widths, "cos", "sigmoid"), 5, 130, backend="triton", dtype=dtype, device="cuda")
    check(mlp_of(widths, "relu"), 5, 1, backend="triton", dtype=dtype, shared=True, device="cuda")


@pytest.mark.parametrize("widths", WIDTHS)
def test_widths(widths):
    check(mlp_of(widths, "cos", "sigmoid"), 2, 19)
    check(mlp_of(widths, "elu", bias=False), 3, 50, shared=True)


def test_theta_in_bfloat16_beside_float32_inputs():
    check(mlp_of((3, 40, 70, 2)), 3, 50, theta_dtype=torch.bfloat16)
    check(mlp_of((3, 40, 70, 2)), 3, 50, theta_dtype=torch.float16)


@pytest.mark.interpreter
def test_26_theta_in_float16_beside_float32_inputs():
    check(mlp_of((3, 40, 70, 2)), 2, 20, theta_dtype=torch.float16)


def test_05_precision_setting_reaches_the_kernels():
    from hyperfast.kernels.common import dot_precision

    before = torch.get_float32_matmul_precision()
    try:
        for setting, expected in (("highest", "ieee"), ("high", "tf32")):
            torch.set_float32_matmul_precision(setting)
            assert dot_precision(torch.float32) == expected
            check(mlp_of((64, 256, 64)), 2, 60)  # the C++ kernels keep float32 either way
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.interpreter), "cpp"])
def test_06_small_integers_are_exact(backend):
    mlp = mlp_of((4, 9, 70, 3), "relu")
    x = torch.randint(-3, 4, (2, 21, 4)).float()
    theta = torch.randint(-2, 3, (2, mlp.num_weights)).float()
    ours, exact = (Check(mlp).run(b, [x, theta], gy_seed=0) for b in (backend, "reference"))
    assert torch.equal(ours[0], exact[0])
    with hf.backend(backend):
        g = torch.func.grad(lambda t: run_mlp(x, t, mlp).sum())(theta)
    with hf.backend("reference"):
        assert torch.equal(g, torch.func.grad(lambda t: run_mlp(x, t, mlp).sum())(theta))


edge = st.sampled_from([1, 2, 3, 5, 15, 16, 17, 31, 33, 47, 48, 49, 65, 97])


@settings(max_examples=200, deadline=None)
@given(
    networks=st.sampled_from([0, 1, 2, 5]),
    rows=st.sampled_from([0, 1, 2, 5, 6, 7, 47, 48, 49, 97]),
    widths=st.lists(edge, min_size=2, max_size=4),
    activation=st.sampled_from(ACTIVATIONS),
    shared=st.booleans(),
    bias=st.booleans(),
)
def test_07_sizes(networks, rows, widths, activation, shared, bias):
    check_size(mlp_of(widths, activation, "identity", bias), networks, rows, shared)


def check_size(mlp, networks, rows, shared):
    """Right indices at any size. A single value near a zero has no error statistics: no 2x rule here."""
    dtypes = [torch.float32] if backends.INTERPRETING else [torch.float32, torch.float64]
    for dtype in dtypes:
        inputs = list(make_inputs(mlp, networks, rows, shared=shared, dtype=dtype))
        exact = Check(mlp).run("reference", [t.double() for t in inputs])
        for ours, expected in zip(Check(mlp).run(KERNEL, inputs), exact, strict=True):
            assert ours.shape == expected.shape
            assert error(ours, expected) <= RMS_LIMIT[dtype]


@pytest.mark.interpreter
@settings(max_examples=25, deadline=None)
@given(
    rows=st.sampled_from([1, 15, 33]),
    widths=st.lists(st.sampled_from([1, 3, 16, 17, 63, 64, 65]), min_size=2, max_size=4),
    shared=st.booleans(),
    bias=st.booleans(),
)
def test_07_sizes_interpreted(rows, widths, shared, bias):
    check_size(mlp_of(widths, "tanh", "identity", bias), 2, rows, shared)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.interpreter), "cpp"])
@pytest.mark.parametrize(("networks", "rows"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("shared", [False, True])
def test_08_empty(networks, rows, shared, backend):
    mlp = mlp_of((3, 5, 2))
    inputs = make_inputs(mlp, networks, rows, shared=shared)
    y, gx, gtheta = Check(mlp).run(backend, list(inputs))
    assert y.shape == (networks, rows, 2)
    assert gx.shape == inputs[0].shape
    assert gtheta.shape == inputs[1].shape
    assert not gx.any()
    assert not gtheta.any()


def test_many_rows_are_summed_in_parts():
    """More rows than one part of a gradient; the parts' sums do not depend on the batch."""
    mlp = mlp_of((2, 8, 1))
    check(mlp, 1, 5000)
    x, theta = make_inputs(mlp, 9, 4097)
    whole = Check(mlp).run("cpp", [x, theta])
    alone = Check(mlp).run("cpp", [x[4:5], theta[4:5]])
    assert torch.equal(whole[0][4:5], alone[0])
    many = torch.func.grad(lambda t: run_mlp(x, t, mlp).square().sum())(theta)
    one = torch.func.grad(lambda t: run_mlp(x[4:5], t, mlp).square().sum())(theta[4:5])
    assert torch.equal(many[4:5], one)


def huge(shape, strides, values):
    """A view whose last element lies beyond 2^31; only the touched pages exist."""
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1
    torch.use_deterministic_algorithms(False)  # would fill all of it
    view = torch.empty(span).as_strided(shape, strides)
    return view.copy_(values)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.interpreter), "cpp"])
def test_11_offsets_beyond_two_to_the_31(backend):
    mlp = mlp_of((3, 20, 2))
    x, theta = make_inputs(mlp, 2, 4)
    far_theta = huge(theta.shape, (2**31 + 5, 1), theta)
    far_x = huge(x.shape, (2**31 + 7, 3, 1), x)
    far_rows = huge(x.shape, (3, 2**30, 1), x)
    with hf.backend(backend):
        expected = run_mlp(x, theta, mlp)
        for xs, ts in ((x, far_theta), (far_x, theta), (far_rows, theta)):
            assert torch.equal(run_mlp(xs, ts, mlp), expected)
            for ours, plain in zip(Check(mlp).run(backend, [xs, ts]), Check(mlp).run(backend, [x, theta]), strict=True):
                assert torch.equal(ours, plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4, -1e4, 1e30])
@pytest.mark.parametrize("activation", ["cos", "sigmoid", "tanh", "relu", "gelu", "elu", "silu"])
def test_13_extremes_stay_in_their_sample(activation, value):
    mlp = mlp_of((3, 20, 5), activation)
    x, theta = make_inputs(mlp, 3, 50)
    expected = run_mlp(x, theta, mlp)
    bad = x.clone()
    bad[1, 7, 0] = value
    y = run_mlp(bad, theta, mlp)
    others = torch.ones(3, 50, dtype=torch.bool)
    others[1, 7] = False
    assert torch.equal(y[others], expected[others])
    with hf.backend("reference"):
        exact = run_mlp(bad.double(), theta.double(), mlp)[1, 7]
    # cos of an argument of 1e30 is decided by its rounding; only its finiteness is comparable.
    if activation == "cos" and value == 1e30:
        assert y[1, 7].isfinite().all()
    else:
        torch.testing.assert_close(y[1, 7].double(), exact, rtol=2e-3, atol=2e-3, equal_nan=True)


def test_large_arguments_of_cosine():
    """An argument may be off by an ulp (it is taken in half-turns), and so its cosine by as much."""
    x = torch.tensor([0.0, 0.5, 1e3, 9.9e4, 1.1e5, 3e6, 6e6, 7e6]).view(1, 8, 1)
    for name, function in (("cos", torch.cos), ("sin", torch.sin)):
        y = hf.ops.batched_linear(x, torch.ones(1, 1, 1), activation=name)
        assert ((y - function(x.double())).abs() <= 2.0**-23 * x.abs() + 3e-7).all()
    far = hf.ops.batched_linear(torch.full((1, 1, 1), 1e30), torch.ones(1, 1, 1), activation="cos")
    assert far.abs() <= 1


def test_15_alone_and_in_a_batch():
    mlp = mlp_of((3, 40, 70, 5), "cos")
    x, theta = make_inputs(mlp, 7, 100)
    y = run_mlp(x, theta, mlp)
    assert torch.equal(run_mlp(x[3:4], theta[3:4], mlp), y[3:4])
    assert torch.equal(run_mlp(x[:, 60:61], theta, mlp), y[:, 60:61])


def test_19_data_loaders():
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(Outputs(), batch_size=None, num_workers=2, multiprocessing_context=context)
        for i, y in enumerate(loader):
            assert torch.equal(y, Outputs()[i]), context


class Outputs(torch.utils.data.Dataset):
    """A data set that runs the op in the worker."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        mlp = mlp_of((3, 20, 2))
        return run_mlp(*make_inputs(mlp, 2, 30, seed=index), mlp)


def test_flop_counter():
    mlp = mlp_of((3, 20, 2))
    x, theta = make_inputs(mlp, 4, 10)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        run_mlp(x, theta.requires_grad_(), mlp).sum().backward()
    forward = 4 * 10 * mlp.flops_per_row
    first = 4 * 10 * 2 * 3 * 20
    assert counter.get_total_flops() == forward + (forward + forward - first + forward)


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(2, 5, 4)}, ValueError, "x must have size 3"),
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape \[B,N,I\] or \[N,I\]; got \(3,\)"),
        ({"x": torch.zeros(4, 5, 3)}, ValueError, "x must have size 2 in dimension 0"),
        ({"x": torch.zeros(2, 5, 3, dtype=torch.int64)}, TypeError, "x must be float32"),
        ({"x": torch.zeros(2, 5, 3, dtype=torch.float64)}, TypeError, "float64 does not mix"),
        ({"x": [1.0]}, TypeError, "x must be a tensor"),
        ({"theta": torch.zeros(2, 10)}, ValueError, "theta must have size 26"),
        ({"theta": torch.zeros(2, 26, device="meta")}, ValueError, "one device"),
        ({"widths": (3,)}, ValueError, "widths must be at least two"),
        ({"widths": (3, 0, 2)}, ValueError, "widths must be at least two positive"),
        ({"activation": "swoosh"}, ValueError, "activation must be one of identity, relu"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    arguments = {"x": torch.zeros(2, 5, 3), "theta": torch.zeros(2, 26), "widths": (3, 4, 2), "activation": "relu"}
    with pytest.raises(error, match=words):
        hf.ops.batched_mlp(**(arguments | change))
