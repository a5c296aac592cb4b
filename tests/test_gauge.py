"""Gauge fixing: the networks stay the same, and equivalent weights become equal."""

from itertools import pairwise

import pytest
import torch
from contract import LOW, OpContract
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hyperfast as hf
from hyperfast import backends, native
from hyperfast.models.targets import deutsch_mnist, hypergan_mnist
from hyperfast.ops import fix_gauge
from hyperfast.plan_gauge import SCALE
from hyperfast.reference import gauge as reference

F64 = torch.float64
KERNEL = "triton" if backends.INTERPRETING else "cpp"


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.LeakyReLU(0.3), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 4))


def tiny():
    return nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3, bias=False), nn.ReLU(), nn.Linear(3, 2)
    )


def cnn():
    """A convolution whose pool is a stage of its own, an average pool, and Flatten: channels become blocks."""
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1), nn.Dropout(0.5),
        nn.Conv2d(3, 4, 3, bias=False), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Identity(), nn.ReLU(),
        nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip


def wide():
    """Filters of more than one tile, a layer that is left alone between layers that are scaled."""
    return nn.Sequential(
        nn.Linear(1500, 5), nn.ReLU(), nn.Linear(5, 33, bias=False), nn.Tanh(), nn.Linear(33, 17), nn.LeakyReLU(0.2),
        nn.Linear(17, 11),
    )  # fmt: skip


CASES = {
    "mlp": (mlp, (5,)),
    "cnn": (cnn, (2, 16, 16)),
    "deutsch": (deutsch_mnist, (1, 28, 28)),
    "hypergan": (hypergan_mnist, (1, 28, 28)),
}
NETS = {net.num_weights: net for net in (hf.nn.TargetNet(template()).eval() for template in (tiny, wide, cnn))}
SMALL, MEDIUM, LAYERED = NETS


def case(name: str, networks: int = 3, inputs: int = 4):
    template, shape = CASES[name]
    net = hf.nn.TargetNet(template()).eval()
    theta = 3 * net.init(networks).to(F64)
    return net, theta, torch.randn(networks, inputs, *shape, dtype=F64)


# ---- the contract -----------------------------------------------------------------------------------


class TestFixGauge(OpContract):
    medium = MEDIUM

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        small = size == "small"
        return [reference.make_inputs(SMALL if small else self.medium, 2 if small else 5, dtype=dtype, seed=seed)]

    def call(self, theta):
        return fix_gauge(theta, NETS[theta.shape[-1]])

    def raw_op_calls_for(self, dtype):
        (theta,) = self.inputs(dtype=dtype)
        rows = [number for row in NETS[SMALL].plan.gauge.rows(True) for number in row]
        for backend in [KERNEL]:
            forward = getattr(torch.ops.hyperfast, f"gauge_{backend}")
            backward = getattr(torch.ops.hyperfast, f"gauge_backward_{backend}")
            yield forward.default, (theta, rows)
            yield backward.default, (torch.randn_like(theta), theta, forward(theta, rows)[1], rows)

    @pytest.mark.parametrize("dtype", LOW)
    def test_17_autocast(self, dtype):
        """float32 whatever autocast says, as for torch's norms: the scales are small differences' ratios."""
        (theta,) = (t.requires_grad_() for t in self.inputs("medium"))
        plain = self.call(theta)
        with torch.autocast("cpu", dtype=dtype):
            y, low = self.call(theta), self.call(theta.to(dtype))
        assert torch.equal(y, plain)
        assert torch.equal(low, self.call(theta.to(dtype).float()))
        low.sum().backward()
        assert theta.grad.dtype == torch.float32


class TestFixGaugeOfConvolutions(TestFixGauge):
    medium = LAYERED


# ---- what the gauge is ------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_class_probabilities_do_not_change(name, backend):
    net, theta, x = case(name)
    with hf.backend(backend):
        fixed, same_outputs = fix_gauge(theta, net), fix_gauge(theta, net, logits=False)
    before = net(x, theta)
    torch.testing.assert_close(net(x, fixed).softmax(-1), before.softmax(-1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net(x, same_outputs), before, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_filters_have_the_norm_of_their_size(name):
    net, theta, _ = case(name)
    weights = net.unflatten(fix_gauge(theta, net))
    layers = [entry.name.removesuffix(".weight") for entry in net.plan.layout if entry.name.endswith("weight")]
    for layer in layers[:-1]:
        parts = [weights[f"{layer}.weight"].flatten(2)]
        if f"{layer}.bias" in weights:
            parts.append(weights[f"{layer}.bias"].unsqueeze(2))
        filters = torch.cat(parts, 2)
        squares = filters.square().sum(2)
        torch.testing.assert_close(squares, torch.full_like(squares, filters.shape[2]), rtol=1e-12, atol=0)
    last = weights.get(f"{layers[-1]}.bias")
    if last is not None:
        assert last.sum(1).abs().max() < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_equivalent_weights_become_equal(name):
    """Filters scaled by hand, layer by layer, and a number added to the last bias."""
    net, theta, x = case(name)
    weights = {key: value.clone() for key, value in net.unflatten(theta).items()}
    layers = [key.removesuffix(".weight") for key in weights if key.endswith("weight")]
    for layer, following in pairwise(layers):
        factor = 0.2 + 3 * torch.rand(weights[f"{layer}.weight"].shape[:2], dtype=F64)
        channels = factor.shape[1]
        weights[f"{layer}.weight"] *= factor.view(*factor.shape, *[1] * (weights[f"{layer}.weight"].dim() - 2))
        if f"{layer}.bias" in weights:
            weights[f"{layer}.bias"] *= factor
        columns = weights[f"{following}.weight"]
        blocks = columns.reshape(*columns.shape[:2], channels, -1) / factor[:, None, :, None]
        weights[f"{following}.weight"] = blocks.reshape(columns.shape)
    if f"{layers[-1]}.bias" in weights:
        weights[f"{layers[-1]}.bias"] += 7.0
    other = net.flatten(weights)
    torch.testing.assert_close(net(x, other).softmax(-1), net(x, theta).softmax(-1), rtol=1e-9, atol=1e-12)
    fixed, also = (fix_gauge(t, net) for t in (theta, other))
    assert (theta - other).abs().max() > 0.1
    torch.testing.assert_close(also, fixed, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(fix_gauge(fixed, net), fixed, rtol=1e-12, atol=1e-13)


# ---- any network ------------------------------------------------------------------------------------

ACTIVATIONS = st.sampled_from([nn.ReLU, lambda: nn.LeakyReLU(0.2), nn.Identity, nn.Tanh, nn.GELU, nn.Dropout, hf.nn.Cos])  # fmt: skip


@st.composite
def templates(draw):
    """(template, shape of an input): convolutions and pools, Flatten, then fully-connected layers with all between."""
    layers, shape = [], (draw(st.integers(1, 3)),)
    if draw(st.booleans()):
        shape = (shape[0], 6, 6)
        channels = shape[0]
        for _ in range(draw(st.integers(1, 2))):
            out = draw(st.integers(1, 4))
            layers.append(nn.Conv2d(channels, out, 3, padding=draw(st.integers(0, 1)), bias=draw(st.booleans())))
            layers.append(draw(ACTIVATIONS)())
            channels = out
        pools = [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2, 1, 1)]
        layers += [*draw(st.lists(st.sampled_from(pools), max_size=1)), nn.Flatten()]
        width = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    else:
        width = shape[0]
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["linear", "linear", "linear", "residual", "norm"]))
        out = draw(st.integers(1, 5))
        if kind == "linear":
            layers.append(nn.Linear(width, out, bias=draw(st.booleans())))
            width = out
        elif kind == "residual":
            inner = [nn.Linear(width, out), draw(ACTIVATIONS)(), nn.Linear(out, width)]
            layers.append(hf.nn.Residual(nn.Sequential(*inner)))
        else:
            layers.append(hf.nn.PerTargetNorm(width))
        layers.append(draw(ACTIVATIONS)())
    return nn.Sequential(*layers), shape


@settings(max_examples=200, deadline=None)
@given(templates(), st.integers(0, 2), st.integers(0, 99))
def test_07_outputs_of_any_network_do_not_change(drawn, networks, seed):
    template, shape = drawn
    net = hf.nn.TargetNet(template).eval()
    generator = torch.Generator().manual_seed(seed)
    theta = 0.2 + reference.make_inputs(net.num_weights, networks, dtype=F64, seed=seed)
    x = torch.randn(networks, 3, *shape, generator=generator, dtype=F64)
    before = net(x, theta)
    with hf.backend("cpp"):
        fixed, shifted = fix_gauge(theta, net, logits=False), fix_gauge(theta, net)
    with hf.backend("reference"):
        torch.testing.assert_close(fix_gauge(theta, net, logits=False), fixed, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(fix_gauge(theta, net), shifted, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(net(x, fixed), before, rtol=1e-7, atol=1e-9)
    after = net(x, shifted)
    torch.testing.assert_close(after.softmax(-1), before.softmax(-1), rtol=1e-7, atol=1e-9)
    if net.plan.gauge.unshifted_because:
        assert torch.equal(shifted, fixed)
    weights = net.unflatten(shifted)
    for layer in net.plan.gauge.layers:  # a filter is fixed, or the plan says why not
        if not layer.left_because:
            filters = weights[f"{layer.name}.weight"].flatten(2).square().sum(2)
            if layer.bias >= 0:
                filters = filters + weights[f"{layer.name}.bias"].square()
            torch.testing.assert_close(filters, torch.full_like(filters, layer.fan_in + (layer.bias >= 0)))


def plan_of(*layers):
    return hf.nn.TargetNet(nn.Sequential(*layers)).plan


@pytest.mark.parametrize(
    ("layers", "scaled", "words"),
    [
        ([nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)], "none", "0 (tanh is not positively homogeneous)"),
        ([nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ELU(), nn.Linear(4, 2)], "0", "2 (elu(1) is not positively"),
        ([nn.Linear(3, 4), nn.ReLU(), nn.Sigmoid(), nn.Linear(4, 2)], "none", "0 (sigmoid is not"),
        ([nn.Conv2d(1, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 2)], "3", "0 (gelu is not"),
        ([nn.Linear(3, 4), hf.nn.PerTargetNorm(4), nn.ReLU(), nn.Linear(4, 2)], "none", "0 (norm '1' does not keep it)"),
        ([nn.Linear(3, 4), hf.nn.Residual(nn.Sequential(nn.Linear(4, 4))), nn.Linear(4, 2)], "none",
         "0, 1.0 (the residual connection '1' takes its outputs)"),
        ([hf.nn.Residual(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))), nn.Linear(3, 2)], "0.0",
         "0.2 (the residual connection '0' takes its outputs)"),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4, 2)], "none", "0 (layer '2' reads rows of its planes)"),
        ([nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)], "0", "2 (no layer reads its outputs)"),
        ([nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 3)], "2",
         "0 (layer '2' reads its outputs in groups)"),
    ],
)  # fmt: skip
def test_the_plan_says_which_layers_are_left_alone_and_why(layers, scaled, words):
    plan = plan_of(*layers)
    text = str(plan)
    assert f"gauge scales: {scaled}\n" in text
    assert f"gauge leaves: {words}" in text


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([nn.Linear(3, 2)], "loses its mean"),
        ([nn.Linear(3, 2), nn.Identity()], "loses its mean"),
        ([nn.Linear(3, 2, bias=False)], "keeps its mean (the last layer has none)"),
        ([nn.Linear(3, 2), nn.ReLU()], "keeps its mean (relu does not keep it)"),
        ([nn.Linear(3, 2), nn.Dropout()], "keeps its mean (dropout 0.5 does not drop it)"),
        ([nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, padding=1)], "mixes it with zeros)"),
        ([nn.Conv2d(1, 2, 3), nn.AvgPool2d(2)], "loses its mean"),
        ([nn.Linear(3, 2), hf.nn.PerTargetNorm(2)], "keeps its mean (norm '1' does not keep it)"),
        ([nn.ReLU()], "keeps its mean (there is none)"),
    ],
)  # fmt: skip
def test_the_plan_says_whether_the_last_bias_is_shifted(layers, words):
    assert words in str(plan_of(*layers)).splitlines()[-1]


# ---- numbers at the edge ----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_a_dead_filter_stays_and_its_gradient_is_finite(backend):
    net, _, x = case("mlp")
    theta = net.init(3)
    net.unflatten(theta)["0.weight"][0, 2] = 0
    net.unflatten(theta)["0.bias"][0, 2] = 0
    net.unflatten(theta)["2.weight"][1] = 0
    theta.requires_grad_()
    with hf.backend(backend):
        fixed = fix_gauge(theta, net)
        gradient = torch.autograd.grad(fixed.square().sum() + fixed.sum(), theta)[0]
    with hf.backend("reference"):
        exact = torch.autograd.grad((f := fix_gauge(t := theta.detach().double().requires_grad_(), net)).square().sum() + f.sum(), t)[0]  # fmt: skip
    assert net.unflatten(fixed)["0.weight"][0, 2].abs().max() == 0
    assert net.unflatten(fixed)["2.weight"][1].abs().max() == 0
    torch.testing.assert_close(net(x.float(), fixed).softmax(-1), net(x.float(), theta).softmax(-1))
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_13_15_a_network_does_not_see_its_neighbours(backend):
    net = NETS[LAYERED]
    theta = reference.make_inputs(LAYERED, 4)
    spoiled = theta.clone()
    spoiled[1, 5], spoiled[2, -1] = torch.nan, torch.inf
    gy = torch.randn_like(theta)

    def run(t):
        t = t.clone().requires_grad_()
        with hf.backend(backend):
            fixed = fix_gauge(t, net)
        return fixed.detach(), torch.autograd.grad(fixed, t, gy[: len(t)])[0]

    for whole, with_spoiled, alone in zip(run(theta), run(spoiled), run(theta[:1]), strict=True):
        assert torch.equal(with_spoiled[[0, 3]], whole[[0, 3]])
        assert not with_spoiled[1].isfinite().all()
        if backend == KERNEL:
            assert torch.equal(alone[0], whole[0])


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("backend", ["cpp"])
def test_06_powers_of_two_are_exact(backend, isa):
    """Filters of n values +-2^k have s = 2^k: nothing rounds, in any order of summation."""
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 8, bias=False), nn.Linear(8, 4)))
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (3, net.num_weights), generator=generator) * 2.0 - 1
    theta = signs.clone()
    for name, scale in (("0.weight", 4.0), ("0.bias", 4.0), ("2.weight", 0.5)):
        net.unflatten(theta)[name].mul_(scale)
    native.force_isa(isa)
    try:
        with hf.backend(backend):
            fixed = fix_gauge(theta, net, logits=False)
    finally:
        native.force_isa("auto")
    expected = signs.clone()
    net.unflatten(expected)["3.weight"].mul_(2.0)
    assert torch.equal(fixed, expected)


@pytest.mark.interpreter
def test_06_powers_of_two_are_exact_interpreted():
    test_06_powers_of_two_are_exact("triton", "auto")


def test_11_places_beyond_two_to_the_31():
    """A stride between networks of more than 2^31 values; only the pages that are touched exist."""
    net = NETS[SMALL]
    memory = torch.empty_strided((2, SMALL), (2**31 + 7, 1), dtype=torch.float16)
    theta = reference.make_inputs(SMALL, 2, dtype=torch.float16)
    memory.copy_(theta)
    with hf.backend(KERNEL):
        assert torch.equal(fix_gauge(memory, net), fix_gauge(theta, net))


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_08_empty(backend):
    with hf.backend(backend):
        net = hf.nn.TargetNet(nn.Sequential(nn.Linear(3, 2)))
        assert fix_gauge(net.init(0), net).shape == (0, 8)
        theta = net.init(2)
        fixed = fix_gauge(theta, net)
        assert torch.equal(fixed[:, :6], theta[:, :6])
        assert torch.equal(fix_gauge(theta, net, logits=False), theta)
        none = hf.nn.TargetNet(nn.Sequential(nn.ReLU()))
        assert fix_gauge(torch.zeros(3, 0, requires_grad=True), none).shape == (3, 0)


@pytest.mark.parametrize(
    ("theta", "net", "logits", "error", "words"),
    [
        (torch.zeros(2, 3), NETS[SMALL], True, ValueError, f"theta must have size {SMALL} in dimension 1"),
        (torch.zeros(SMALL), NETS[SMALL], True, ValueError, r"theta must have shape \[B,P\]"),
        (torch.zeros(2, SMALL, dtype=torch.int64), NETS[SMALL], True, TypeError, "theta must be float32"),
        ([1.0], NETS[SMALL], True, TypeError, "theta must be a tensor"),
        (torch.zeros(2, SMALL), NETS[SMALL].plan, True, TypeError, "net must be an hf.nn.TargetNet; got Plan"),
        (torch.zeros(2, SMALL), NETS[SMALL], 1, TypeError, "logits must be True or False; got 1"),
    ],
)
def test_user_errors(theta, net, logits, error, words):
    with pytest.raises(error, match=words):
        fix_gauge(theta, net, logits)


def test_scaled_layers_are_those_of_the_paper():
    rows = hf.nn.TargetNet(deutsch_mnist()).plan.gauge.rows(logits=False)
    assert [(row.filters, row.fan_in) for row in rows if row.treatment == SCALE] == [(32, 25), (16, 800), (8, 784)]
