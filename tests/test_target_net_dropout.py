"""Dropout with masks that are a function of seed and place: the same bits everywhere, and the right share of them."""

import pytest
import torch
from contract import OpContract
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hyperfast as hf
from hyperfast import backends, native
from hyperfast.ops.target_net_dropout import dropout, new_seed
from hyperfast.reference.target_net_dropout import philox

KERNEL = "triton" if backends.INTERPRETING else "cpp"
SEED = torch.tensor([0x1234_5678_9ABC_DEF0])


class TestDropout(OpContract):
    def call(self, x):
        return dropout(x, 0.4, SEED.to(x.device), 2)

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        shape = (2, 3, 6) if size == "small" else (3, 101, 70)
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)]

    def raw_op_calls_for(self, dtype):
        x = self.inputs("small", dtype)[0].unsqueeze(0)
        op = torch.ops.hyperfast.dropout_cpp.default
        yield op, (x, SEED, 2, 1 << 30, 4 / 3)
        yield op, (x.expand(3, 2, 3, 6), torch.arange(3), 2, 1 << 30, 4 / 3)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_17_autocast(self, dtype):
        """As F.dropout: in the type that comes."""
        for x in (self.inputs()[0], self.inputs(dtype=dtype)[0]):
            with torch.autocast("cpu", dtype=dtype):
                y = self.call(x)
            assert y.dtype == x.dtype
            assert torch.equal(y, self.call(x))


# ---- the bits ---------------------------------------------------------------------------------------


def mask(backend, shape, p=0.5, seed=SEED, layer=0, dtype=torch.float32) -> torch.Tensor:
    """True where a feature is kept."""
    with hf.backend(backend):
        return dropout(torch.ones(shape, dtype=dtype), p, seed, layer) != 0


def word(seed: int, *counter: int) -> list[int]:
    """Philox4x32-10 in Python's own whole numbers."""
    c, k = list(counter), [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


# Known answers of the authors' library, Random123: key, counter -> words.
KNOWN = [
    (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (0x299F31D0_A4093822, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "counter", "words"), KNOWN)
def test_known_answers(seed, counter, words):
    assert word(seed, *counter) == list(words)
    signed = torch.tensor([seed - 2**64 if seed >= 2**63 else seed])
    assert [w.item() for w in philox(signed, *(torch.tensor([c]) for c in counter))] == list(words)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_the_mask_is_the_documented_function(backend):
    for seed in (0, 5, 2**62 + 77):
        for layer in (0, 3, 2**32 - 1):
            kept = mask(backend, (3, 4, 70), 0.3, torch.tensor([seed]), layer)
            for b, n, h in ((0, 0, 0), (0, 0, 5), (1, 2, 63), (2, 3, 64), (2, 3, 69), (1, 0, 30)):
                assert kept[b, n, h].item() == (word(seed, h // 4, n, b, layer)[h % 4] >= round(0.3 * 2**32))


SHAPES = [(2, 3, 7), (3, 5, 200), (1, 1, 1), (2, 2, 3, 5, 5), (2, 3), (3, 1, 1500), (0, 3, 4), (2, 0, 3), (2, 3, 0)]


def same_as_reference(backend, shape, p, dtype, seed=SEED, layer=1):
    """Bit by bit: mask, product and rounding."""
    x = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    results = []
    for name in (backend, "reference"):
        with hf.backend(name):
            y = dropout(x, p, seed, layer)
        results.append((y, *torch.autograd.grad(y, x, torch.full_like(y, 0.7))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert results[0][0].shape == x.shape


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference_bitwise(shape, dtype, isa):
    native.force_isa(isa)
    try:
        for p in (0.1, 0.5, 1.0):
            same_as_reference("cpp", shape, p, dtype)
    finally:
        native.force_isa("auto")


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_26_equals_the_reference_bitwise_interpreted(shape, dtype):
    for p in (0.1, 0.5, 1.0):
        same_as_reference("triton", shape, p, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_gpu_masks_are_the_cpu_s(shape):
    x = torch.randn(shape)
    assert torch.equal(dropout(x.cuda(), 0.3, SEED.cuda(), 4).cpu(), dropout(x, 0.3, SEED, 4))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 4), st.integers(0, 9), st.integers(0, 150), st.floats(0, 1), st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_07_any_size_seed_and_probability(networks, rows, features, p, seed, layer):
    same_as_reference("cpp", (networks, rows, features), p, torch.float32, torch.tensor([seed]), layer)


def test_masks_do_not_depend_on_the_dtype_or_on_neighbours():
    whole = mask(KERNEL, (3, 8, 100), 0.3)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(mask(KERNEL, (3, 8, 100), 0.3, dtype=dtype), whole)
    assert torch.equal(mask(KERNEL, (2, 5, 37), 0.3), whole[:2, :5, :37])
    assert torch.equal(mask(KERNEL, (3, 8, 4, 25), 0.3), whole.view(3, 8, 4, 25))


def test_every_coordinate_matters():
    whole = mask(KERNEL, (3, 8, 100))
    for dim in range(3):
        first, second = whole.select(dim, 0), whole.select(dim, 1)
        assert 0.3 < (first == second).double().mean() < 0.7
    for other in (mask(KERNEL, (3, 8, 100), layer=1), mask(KERNEL, (3, 8, 100), seed=SEED + 1)):
        assert 0.4 < (other == whole).double().mean() < 0.6
    high = mask(KERNEL, (3, 8, 100), seed=SEED ^ (1 << 40))
    assert 0.4 < (high == whole).double().mean() < 0.6


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9])
def test_statistics(p):
    """Share of kept features within five standard deviations: of all, of each network, of each of 4 words."""
    kept = mask(KERNEL, (5, 1000, 40), p).double()
    words = kept.view(5, 1000, 10, 4)
    neighbours = (kept[..., 1:] * kept[..., :-1]).mean() - (1 - p) ** 2
    for mean, count in (
        (kept.mean(), kept.numel()), *((k.mean(), k.numel()) for k in kept), *((w.mean(), w.numel()) for w in words.unbind(-1)),
    ):  # fmt: skip
        assert abs(mean.item() - (1 - p)) < 5 * (p * (1 - p) / count) ** 0.5
    assert abs(neighbours.item()) < 5 * 2 * (p * (1 - p) / kept.numel()) ** 0.5


# ---- values -----------------------------------------------------------------------------------------


def test_probabilities_zero_and_one():
    x = torch.randn(2, 3, 9, requires_grad=True)
    assert torch.equal(dropout(x, 0.0, SEED), x)
    x.data[0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    y = dropout(x, 1.0, SEED)
    assert torch.equal(y, torch.zeros_like(x))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_13_what_is_dropped_is_zero_and_the_rest_is_scaled():
    x = torch.randn(2, 30, 9)
    kept = mask(KERNEL, x.shape, 0.2)
    assert torch.equal(dropout(x, 0.2, SEED), torch.where(kept, x * (1 / (1 - 0.2)), 0.0))
    x[0] = torch.nan
    y = dropout(x, 0.2, SEED)
    assert torch.equal(y[0].isnan(), kept[0])
    assert y[1].isfinite().all()


def test_memory_holds_no_mask():
    x = torch.randn(2, 3, 50, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        dropout(x, 0.5, SEED)
    assert saved == [1]


def test_18_vmap_over_seeds():
    x, seeds = torch.randn(2, 3, 9), torch.arange(12).view(3, 4, 1)
    expected = torch.stack([torch.stack([dropout(x, 0.5, s) for s in row]) for row in seeds])
    over = lambda f, *dims: torch.vmap(f, in_dims=dims)
    call = lambda x, seed: dropout(x, 0.5, seed)
    assert torch.equal(over(over(call, None, 0), None, 0)(x, seeds), expected)
    assert torch.equal(over(over(call, None, 0), None, 1)(x, seeds), expected.transpose(0, 1))
    both = over(over(call, 0, None), None, 0)(x.expand(5, 2, 3, 9), seeds[0])
    assert torch.equal(both, expected[0].unsqueeze(1).expand(4, 5, 2, 3, 9))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": [1.0]}, TypeError, r"x must be a tensor \[B,N,...\]"),
        ({"x": torch.zeros(3)}, ValueError, r"x must have shape \[B,N,...\]"),
        ({"p": 1.5}, ValueError, "p must be a probability from 0 to 1; got 1.5"),
        ({"p": float("nan")}, ValueError, "p must be a probability"),
        ({"seed": 3}, TypeError, "seed must be an int64 tensor; got 3"),
        ({"seed": torch.zeros(1)}, TypeError, "seed must be an int64 tensor; got torch.float32"),
        ({"seed": torch.arange(2)}, ValueError, "seed must have one element on cpu"),
        ({"layer": -1}, ValueError, "layer must be a number from 0"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    with pytest.raises(error, match=words):
        dropout(**({"x": torch.zeros(2, 3, 4), "p": 0.5, "seed": SEED} | change))


# ---- TargetNet --------------------------------------------------------------------------------------


def mc_net(p=0.5):
    return hf.nn.TargetNet(nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 5), nn.Dropout(p)))


def test_monte_carlo_dropout():
    net = mc_net()
    theta, x = net.init(4), torch.randn(7, 3)
    assert not torch.equal(net(x, theta), net(x, theta))
    torch.manual_seed(3)
    first = net(x, theta)
    torch.manual_seed(3)
    assert torch.equal(net(x, theta), first)
    seed = new_seed("cpu")
    assert torch.equal(net(x, theta, seed=seed), net(x, theta, seed=seed))
    net.eval()
    state = torch.get_rng_state()
    assert torch.equal(net(x, theta), net(x, theta))
    assert torch.equal(net(x, theta, seed=seed), net(x, theta))
    assert torch.equal(torch.get_rng_state(), state)  # draws no seed in evaluation


def test_target_net_drops_layer_by_layer():
    """Equals the stages by hand, and the mean over many masks is the evaluation's of a linear network."""
    net = hf.nn.TargetNet(nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 3)))
    theta, x = net.init(4), torch.randn(7, 6)
    w1, b1, w2, b2 = net.unflatten(theta).values()
    h = dropout(x.expand(4, 7, 6), 0.2, SEED, 0)
    assert not torch.equal(h[0], h[1])  # a shared x, but every network's own mask
    h = dropout(hf.ops.batched_linear(h, w1, b1), 0.5, SEED, 1)
    torch.testing.assert_close(net(x, theta, shared=True, seed=SEED), hf.ops.batched_linear(h, w2, b2))
    many = torch.stack([net(x, theta, shared=True) for _ in range(800)])
    error = (many.mean(0) - net.eval()(x, theta, shared=True)) / (many.std(0) / 800**0.5)
    assert error.abs().max() < 5


def test_plan_names_the_op():
    net = mc_net()
    assert [stage.served_by for stage in net.plan.stages] == ["batched_mlp", "dropout", "batched_mlp", "dropout"]
    assert "dropout 0.5" in str(net.plan)


@pytest.mark.parametrize("engine", ["eager", "inductor"])
def test_16_target_net_compiles(engine):
    torch._dynamo.reset()
    net = mc_net()
    theta, x = net.init(4).requires_grad_(), torch.randn(7, 3)
    compiled = torch.compile(net, fullgraph=True, backend=engine)
    assert not torch.equal(compiled(x, theta), compiled(x, theta))
    y = compiled(x, theta, seed=SEED)
    torch.testing.assert_close(y, net(x, theta, seed=SEED))
    (ours,) = torch.autograd.grad(y.square().sum(), theta)
    (plain,) = torch.autograd.grad(net(x, theta, seed=SEED).square().sum(), theta)
    torch.testing.assert_close(ours, plain)


def test_18_target_net_under_vmap():
    net = mc_net()
    theta, x = net.init(8).view(2, 4, -1), torch.randn(7, 3)
    run = lambda theta: net(x, theta)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(run)(theta[:1].expand(2, -1, -1))
    same = torch.vmap(run, randomness="same")(theta[:1].expand(2, -1, -1))
    different = torch.vmap(run, randomness="different")(theta[:1].expand(2, -1, -1))
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])
