"""Batched convolutions, alone and in runs: the contract of every op, and what only images can get wrong."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import RMS_LIMIT, error
from contract import OpContract
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperfast as hf
from hyperfast import backends
from hyperfast.ops.batched import encode
from hyperfast.ops.target_net import run_cnn
from hyperfast.plan import ACTIVATIONS, CNN, Activation, Conv
from hyperfast.reference.target_net import make_images

KERNEL = "triton" if backends.INTERPRETING else "cpp"
TANH, RELU = Activation("tanh"), Activation("relu")

# networks, images, their size, layers: channels that fill lanes and that don't, strides, windows that drop pixels.
SIZES = {
    "small": (2, 2, (6, 5), CNN((Conv(2, 3, (3, 2), padding=(1, 0), activation=TANH, pool=2), Conv(3, 2, (2, 2))))),
    "medium": (
        3,
        9,
        (15, 17),
        CNN((Conv(3, 20, (3, 5), (1, 2), (1, 2), activation=TANH, pool=2), Conv(20, 33, (3, 3)))),
    ),
}


class _CNNContract(OpContract):
    shared = False

    def call(self, x, theta):
        size = "small" if theta.shape[-1] == SIZES["small"][3].num_weights else "medium"
        return run_cnn(x, theta, SIZES[size][3])

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        networks, rows, image, cnn = SIZES[size]
        return list(make_images(cnn, networks, rows, image, shared=self.shared, dtype=dtype, seed=seed))

    def raw_op_calls_for(self, dtype):
        x, theta = self.inputs("small", dtype)
        spec = [list(part) for part in encode(SIZES["small"][3])]
        gy = torch.randn(2, 2, 2, 2, 1).to(dtype)
        yield torch.ops.hyperfast.batched_cnn_cpp.default, (x, theta, None, *spec, True)
        saved = torch.ops.hyperfast.batched_cnn_cpp(x, theta, None, *spec, True)[1]
        for wants in ((True, True, False), (False, True, False), (True, False, False)):
            yield torch.ops.hyperfast.batched_cnn_backward_cpp.default, (gy, x, theta, None, saved, *spec, *wants)


class TestBatchedCNN(_CNNContract):
    pass


class TestBatchedCNNShared(_CNNContract):
    shared = True

    def test_09_expanded(self):
        x, theta = self.inputs("medium")
        same = theta[:1].expand_as(theta)
        got, expected = self.run("cpp", [x, same]), self.run("cpp", [x, same.contiguous()])
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


class TestBatchedConv2d(OpContract):
    def call(self, x, weight, bias):
        return hf.ops.batched_conv2d(x, weight, bias, stride=(2, 1), padding=1, activation="sigmoid", pool=2)

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        b, n, c, o, h, w = (2, 2, 1, 3, 6, 4) if size == "small" else (3, 5, 4, 19, 13, 21)
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for shape in ((b, n, c, h, w), (b, o, c, 3, 3), (b, o))
        ]

    def raw_op_calls_for(self, dtype):
        x, weight, bias = self.inputs("small", dtype)
        spec = [list(part) for part in encode(CNN((Conv(1, 3, (3, 3), padding=(1, 1), pool=2),)))]
        yield torch.ops.hyperfast.batched_cnn_cpp.default, (x, weight.flatten(1), bias, *spec, False)
        backward = torch.ops.hyperfast.batched_cnn_backward_cpp.default
        yield (
            backward,
            (
                torch.randn(2, 2, 3, 3, 2).to(dtype),
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


class Check(_CNNContract):
    """Forward and backward of any CNN against the reference, outside the contract's sizes."""

    __test__ = False

    def __init__(self, cnn: CNN) -> None:
        self.cnn = cnn

    def call(self, x, theta):
        return run_cnn(x, theta, self.cnn)


def check(cnn, networks, rows, image, *, shared=False, backend=KERNEL, dtype=torch.float32, device="cpu"):
    inputs = make_images(cnn, networks, rows, image, shared=shared, dtype=dtype, device=device)
    Check(cnn).assert_matches_reference(backend, list(inputs))


DEUTSCH = CNN(
    (
        Conv(1, 32, (5, 5), padding=(2, 2), activation=RELU, pool=2),
        Conv(32, 16, (5, 5), padding=(2, 2), activation=RELU, pool=2),
    )
)
CIFAR = CNN(tuple(Conv(i, o, (3, 3), bias=False, activation=RELU, pool=2) for i, o in ((3, 16), (16, 32), (32, 64))))


def test_the_papers_targets():
    check(DEUTSCH, 2, 4, (28, 28))
    check(CIFAR, 2, 4, (32, 32), shared=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu(dtype):
    check(DEUTSCH, 3, 33, (28, 28), backend="triton", dtype=dtype, device="cuda")
    check(CIFAR, 3, 17, (32, 32), shared=True, backend="triton", dtype=dtype, device="cuda")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    check(CNN((Conv(2, 5, (3, 3), activation=Activation.of(activation), pool=2),)), 2, 3, (9, 8))


@pytest.mark.interpreter
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_26_activations_interpreted(activation):
    check(CNN((Conv(2, 5, (3, 3), activation=Activation.of(activation), pool=2),)), 2, 3, (9, 8))


@pytest.mark.parametrize("kernel", [1, 2, 4, 7])
@pytest.mark.parametrize("pool", [1, 3, 9])
def test_kernels_and_windows(kernel, pool):
    conv = Conv(3, 18, (kernel, kernel), padding=(kernel // 2, 0), activation=TANH, pool=pool)
    check(CNN((conv,)), 2, 3, (21, 23))


@pytest.mark.parametrize("kernel", [(5, 5), (3, 3), (2, 5), (4, 3)])
@pytest.mark.parametrize(("channels", "out", "stride", "pool"), [(8, 3, 1, 2), (12, 16, 2, 4), (33, 40, 3, 2)])
def test_winograd(kernel, channels, out, stride, pool):
    """Filtering along rows: whole and partial vectors and panels of channels, rows that are skipped and dropped."""
    conv = Conv(channels, out, kernel, (stride, 1), (1, 2), activation=TANH, pool=pool)
    check(CNN((conv, Conv(out, 5, (1, 1)))), 2, 3, (21, 15))


@pytest.mark.parametrize("kernel", [3, 5])
def test_winograd_is_as_accurate_as_eager(kernel):
    conv = Conv(32, 16, (kernel, kernel), activation=Activation("identity"), pool=2)
    x, theta = make_images(CNN((conv,)), 8, 16, (14, 14), seed=3)
    weight = theta[:, : 16 * 32 * kernel**2].view(8, 16, 32, kernel, kernel)
    y, exact = (hf.ops.batched_conv2d(t.relu(), w, pool=2) for t, w in ((x, weight), (x.double(), weight.double())))
    eager = torch.stack([F.max_pool2d(F.conv2d(t.relu(), w), 2) for t, w in zip(x, weight, strict=True)])
    assert error(y, exact) <= 1.5 * error(eager, exact)


@pytest.mark.interpreter
@pytest.mark.parametrize("pool", [4, 5, 6, 8, 9])
def test_26_windows_interpreted(pool):
    """Windows taken whole, in groups and pixel by pixel, with pixels past the last one; own bias and strides."""
    size = (2 * pool + 1, 2 * (pool + 2) - 1)
    check(CNN((Conv(2, 3, (3, 2), (1, 2), (1, pool), activation=TANH, pool=pool),)), 2, 2, size)


@pytest.mark.interpreter
def test_26_sums_in_parts_interpreted(monkeypatch):
    """Gradients to weights and to a bias of its own, cut in parts, with networks in turns."""
    from hyperfast.kernels import target_net_cnn_backward as kernels

    monkeypatch.setattr(kernels, "PART_PIXELS", 100)
    monkeypatch.setattr(kernels, "MOST_PART_VALUES", 1500)
    x, weight, bias = torch.randn(3, 11, 2, 7, 7), torch.randn(3, 5, 2, 3, 3), torch.randn(3, 5)
    results = []
    for name in ("triton", "reference"):
        with hf.backend(name):
            loss = lambda x, w, c: hf.ops.batched_conv2d(x, w, c, padding=1, activation="tanh").square().sum()
            results.append(torch.func.grad(loss, (0, 1, 2))(x, weight, bias))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.interpreter), "cpp"])
def test_winners_of_windows(backend):
    """The first of equals, -0 and 0 among them, takes the gradient; a NaN wins, the last of them."""
    nan = float("nan")
    for window, winner in (([1, 2, 2, 0], 1), ([-0.0, 0, 0, -1], 0), ([-3, -2, -4, -2], 1), ([nan, 5, nan, 7], 2)):
        x = torch.tensor(window).float().view(1, 1, 1, 2, 2).requires_grad_()
        with hf.backend(backend):
            y = hf.ops.batched_conv2d(x, torch.ones(1, 1, 1, 1, 1), pool=2)
        (gx,) = torch.autograd.grad(y.sum(), x)
        assert gx.flatten().tolist() == [float(i == winner) for i in range(4)]
        expected = F.max_pool2d(x.detach()[0], 2)
        assert torch.equal(y[0].isnan(), expected.isnan())
        assert torch.equal(y[0].nan_to_num(), expected.nan_to_num())


def test_windows_too_large_for_the_epilogue():
    x, weight = torch.randn(2, 3, 1, 24, 24), torch.randn(2, 4, 1, 3, 3)
    y = hf.ops.batched_conv2d(x, weight, padding=1, activation="relu", pool=11)
    one = F.max_pool2d(F.relu(F.conv2d(x[1], weight[1], padding=1)), 11)
    torch.testing.assert_close(y[1], one)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.interpreter), "cpp"])
@pytest.mark.parametrize("kernel", [3, 5])
def test_06_small_integers_are_exact(backend, kernel):
    layers = [Conv(i, 9, (kernel, kernel), padding=(kernel // 2,) * 2, activation=RELU, pool=2) for i in (2, 9)]
    cnn = CNN((*layers, Conv(9, 4, (2, 2))))
    x = torch.randint(-3, 4, (2, 5, 2, 8, 8)).float()
    theta = torch.randint(-2, 3, (2, cnn.num_weights)).float()
    results = []
    for name in (backend, "reference"):
        with hf.backend(name):
            y = run_cnn(x, theta, cnn)
            results.append((y, *torch.func.grad(lambda x, t: run_cnn(x, t, cnn).sum(), (0, 1))(x, theta)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@st.composite
def convolutions(draw, channels):
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return Conv(
        channels,
        draw(st.sampled_from([1, 2, 3, 15, 16, 17, 31, 33])),
        kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        draw(st.tuples(st.integers(0, 3), st.integers(0, 3))),
        draw(st.booleans()),
        Activation.of(draw(st.sampled_from(ACTIVATIONS))),
        draw(st.integers(1, 3)),
    )


@st.composite
def problems(draw):
    """A run of one to three convolutions, and an image that is large enough for them."""
    image = draw(st.tuples(st.integers(4, 19), st.integers(4, 19)))
    layers, size = [], image
    channels = draw(st.sampled_from([1, 2, 3, 8, 16, 17]))
    for _ in range(draw(st.integers(1, 3))):
        conv = draw(convolutions(channels))
        if min(conv.conv_size(*size)) < 1 or min(conv.out_size(*size)) < 1:
            break
        layers.append(conv)
        size, channels = conv.out_size(*size), conv.out_channels
    return CNN(tuple(layers) or (Conv(channels, 3, (1, 1)),)), image


def check_size(cnn, networks, rows, image, shared):
    """Right indices at any size. A few values, or none but zeros, have no error statistics: no 2x rule here."""
    for dtype in [torch.float32] if backends.INTERPRETING else [torch.float32, torch.float64]:
        inputs = list(make_images(cnn, networks, rows, image, shared=shared, dtype=dtype))
        exact = Check(cnn).run("reference", [t.double() for t in inputs])
        for ours, expected in zip(Check(cnn).run(KERNEL, inputs), exact, strict=True):
            assert ours.shape == expected.shape
            assert (ours - expected).norm() <= RMS_LIMIT[dtype] * (1 + expected.norm())


@settings(max_examples=200, deadline=None)
@given(problem=problems(), networks=st.sampled_from([1, 2, 5]), rows=st.sampled_from([1, 2, 7]), shared=st.booleans())
def test_07_sizes(problem, networks, rows, shared):
    check_size(problem[0], networks, rows, problem[1], shared)


@pytest.mark.interpreter
@settings(max_examples=25, deadline=None)
@given(problem=problems(), rows=st.sampled_from([1, 3]), shared=st.booleans())
def test_07_sizes_interpreted(problem, rows, shared):
    check_size(problem[0], 2, rows, problem[1], shared)


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.interpreter), "cpp", "reference"])
@pytest.mark.parametrize(("networks", "rows"), [(0, 3), (3, 0), (0, 0)])
@pytest.mark.parametrize("shared", [False, True])
def test_08_empty(networks, rows, shared, backend):
    cnn = SIZES["small"][3]
    inputs = make_images(cnn, networks, rows, (6, 5), shared=shared)
    y, gx, gtheta = Check(cnn).run(backend, list(inputs))
    assert y.shape == (networks, rows, 2, 2, 1)
    assert gx.shape == inputs[0].shape
    assert gtheta.shape == inputs[1].shape
    assert not gx.any()
    assert not gtheta.any()


def test_09_channels_last():
    x, theta = make_images(CIFAR, 2, 3, (32, 32), shared=True)
    assert torch.equal(run_cnn(x.contiguous(memory_format=torch.channels_last), theta, CIFAR), run_cnn(x, theta, CIFAR))


def test_many_images_are_summed_in_parts():
    """More images than one part of a gradient; the parts' sums do not depend on the batch or the threads."""
    cnn = CNN((Conv(1, 3, (3, 3), activation=RELU, pool=2),))
    check(cnn, 1, 600, (8, 8))
    x, theta = make_images(cnn, 9, 300, (8, 8))
    gradient = lambda x, t: torch.func.grad(lambda t: run_cnn(x, t, cnn).square().sum())(t)
    assert torch.equal(gradient(x, theta)[4:5], gradient(x[4:5], theta[4:5]))


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=pytest.mark.interpreter), "cpp"])
def test_11_offsets_beyond_two_to_the_31(backend):
    cnn = CNN((Conv(1, 2, (3, 3), pool=2),))
    x, theta = make_images(cnn, 2, 2, (6, 6))
    torch.use_deterministic_algorithms(False)  # would fill the memory between the touched pages
    far_x = torch.empty(2**31 + 200).as_strided(x.shape, (2**31 + 7, 36, 36, 6, 1)).copy_(x)
    far_theta = torch.empty(2**31 + 200).as_strided(theta.shape, (2**31 + 5, 1)).copy_(theta)
    expected = Check(cnn).run(backend, [x, theta])
    for inputs in ([far_x, theta], [x, far_theta]):
        assert all(torch.equal(a, b) for a, b in zip(Check(cnn).run(backend, inputs), expected, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_13_extremes_stay_in_their_image(value):
    x, theta = make_images(DEUTSCH, 2, 5, (28, 28))
    bad = x.clone()
    bad[1, 3, 0, 14, 14] = value
    plain, broken = (Check(DEUTSCH).run("cpp", [t, theta]) for t in (x, bad))
    exact = Check(DEUTSCH).run("reference", [bad.double(), theta.double()])
    others = torch.ones(2, 5, dtype=torch.bool)
    others[1, 3] = False
    for i in (0, 1):  # the output and the gradient to x
        assert torch.equal(broken[i][others], plain[i][others])
    assert torch.equal(broken[2][0], plain[2][0])
    torch.testing.assert_close(broken[0][1, 3].double(), exact[0][1, 3], rtol=1e-4, atol=1e-4, equal_nan=True)


def test_15_alone_and_in_a_batch():
    x, theta = make_images(DEUTSCH, 3, 9, (28, 28))
    y = run_cnn(x, theta, DEUTSCH)
    assert torch.equal(run_cnn(x[1:2, 4:5], theta[1:2], DEUTSCH), y[1:2, 4:5])
    assert torch.equal(run_cnn(x[2:3], theta[2:3], DEUTSCH), y[2:3])


def test_backward_with_and_without_what_forward_saved():
    for dtype in (torch.float32, torch.float64):
        x, theta = make_images(DEUTSCH, 2, 3, (28, 28), dtype=dtype)
        spec = [list(part) for part in encode(DEUTSCH)]
        y, saved = torch.ops.hyperfast.batched_cnn_cpp(x, theta, None, *spec, True)
        plain, nothing = torch.ops.hyperfast.batched_cnn_cpp(x, theta, None, *spec, False)
        assert torch.equal(y, plain)
        assert saved.numel() > nothing.numel() == 0
        backward = torch.ops.hyperfast.batched_cnn_backward_cpp
        wants = (True, True, False)
        with_saved = backward(torch.cos(y), x, theta, None, saved, *spec, *wants)
        recomputed = backward(torch.cos(y), x, theta, None, nothing, *spec, *wants)
        assert all(torch.equal(a, b) for a, b in zip(with_saved, recomputed, strict=True))


def test_flop_counter():
    x, theta = make_images(CIFAR, 2, 3, (32, 32))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        run_cnn(x, theta.requires_grad_(), CIFAR).sum().backward()
    forward = 2 * 3 * CIFAR.flops_per_row(32, 32)
    first = 2 * 3 * CNN(CIFAR.layers[:1]).flops_per_row(32, 32)
    assert counter.get_total_flops() == forward + (forward + forward - first + forward)


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error_type", "words"),
    [
        ({"x": torch.zeros(2, 5, 4, 9, 9)}, ValueError, "x must have size 3 in dimension -3"),
        ({"x": torch.zeros(5, 3, 9)}, ValueError, r"x must have shape \[B,N,C,H,W\] or \[N,C,H,W\]; got"),
        ({"x": torch.zeros(4, 5, 3, 9, 9)}, ValueError, "x must have size 2 in dimension 0"),
        ({"x": torch.zeros(2, 5, 3, 2, 9)}, ValueError, r"x is too small for the convolution 3->4 3x3 \(identity\)"),
        ({"padding": 1 << 15}, ValueError, r"x must have less than 2\^31 values in a padded image"),
        ({"pool": 8}, ValueError, "x is too small"),
        ({"pool": 0}, ValueError, "pool must be at least 1; got 0"),
        ({"stride": 0}, ValueError, "stride must be one or two numbers of at least 1; got 0"),
        ({"padding": (1, -1)}, ValueError, r"padding must be one or two numbers of at least 0; got \(1, -1\)"),
        ({"bias": torch.zeros(2, 5)}, ValueError, "bias must have size 4 in dimension 1"),
        ({"weight": torch.zeros(2, 4, 3, 3)}, ValueError, r"weight must have shape \[B,O,C/groups,kh,kw\]"),
        ({"activation": "swoosh"}, ValueError, "activation must be one of identity, relu"),
    ],
)
def test_errors_name_the_argument(change, error_type, words):
    arguments = {"x": torch.zeros(2, 5, 3, 9, 9), "weight": torch.zeros(2, 4, 3, 3, 3)}
    with pytest.raises(error_type, match=words):
        hf.ops.batched_conv2d(**(arguments | change))
