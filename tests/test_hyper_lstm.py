"""HyperLSTM and its simpler cells: kernels against the reference."""

import pytest
import torch
from contract import LOW, OpContract
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_ops import raw_calls
from torch.utils._python_dispatch import TorchDispatchMode

import hyperfast as hf
from hyperfast import backends
from hyperfast.ops.hyper_lstm import NAMES, hyper_lstm
from hyperfast.reference import hyper_lstm as reference
from hyperfast.reference.hyper_lstm import Cell, HyperState, LSTMState, Options, Scaling

F64 = torch.float64
KERNEL = "triton" if backends.INTERPRETING else "cpp"
VECTORS = ("bias", "hyper_bias")


def flat_inputs(sizes, dtype=torch.float32, seed=0, layer_norm=True, steps=3):
    """The 23 tensors of make_inputs, biases as matrices."""
    x, state, *weights = reference.make_inputs(steps, *sizes, dtype=dtype, seed=seed, layer_norm=layer_norm)
    every = [x, *state.main, *state.hyper, *(t for part in weights for t in part if t is not None)]
    return [t.view(4, -1) if t.dim() == 1 else t for t in every]


def grouped(tensors, layer_norm=True):
    """x, state, w, hyper, scaling of flat_inputs."""
    x, h, c, hyper_h, hyper_c, *weights = tensors
    size = 5 if layer_norm else 3
    cells = [weights[:size], weights[size : 2 * size]]
    cells = [Cell(part[0], part[1], part[2].flatten(), *part[3:]) for part in cells]
    return x, HyperState(LSTMState(h, c), LSTMState(hyper_h, hyper_c)), *cells, Scaling(*weights[2 * size :])


def together(states):
    """All four outputs as one tensor [R,2H+2K]."""
    return torch.cat(list(states), 1)


# ---- the contract -----------------------------------------------------------------------------------


class TestHyperLSTM(OpContract):
    small = (2, 2, 3, 2, 2)  # B, I, H, K, Z
    medium = (7, 5, 35, 18, 3)
    layer_norm = True
    options = Options(forget_bias=0.5)

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        small = size == "small"
        return flat_inputs(
            self.small if small else self.medium, dtype, seed, self.layer_norm, steps=2 if small else 5
        )  # fmt: skip

    def call(self, *inputs):
        return together(hyper_lstm(*grouped(inputs, self.layer_norm), self.options))

    def raw_op_calls_for(self, dtype):
        x, state, w, hyper, scaling = grouped(self.inputs("medium", dtype), self.layer_norm)
        tensors = [x, *state.main, *state.hyper, *w, *hyper, *scaling]
        return raw_calls(self.kernel(), tensors, self.options)


class TestWithoutLayerNorm(TestHyperLSTM):
    layer_norm = False
    options = Options("previous")


class TestLSTM(OpContract):
    """Without a hyper cell, with layer norm."""

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        every = flat_inputs((2, 2, 3, 1, 1) if size == "small" else (7, 5, 35, 1, 1), dtype, seed, steps=4)
        return [*every[:3], *every[5:10]]

    def call(self, x, h, c, weight_ih, weight_hh, bias, *layer_norm):
        nothing = x.new_empty(h.shape[0], 0)
        state = HyperState(LSTMState(h, c), LSTMState(nothing, nothing))
        return together(hyper_lstm(x, state, Cell(weight_ih, weight_hh, bias.flatten(), *layer_norm)))

    def raw_op_calls_for(self, dtype):
        return []

    test_03_opcheck = None


# ---- other sizes, sequences of different lengths ----------------------------------------------------


def run_packed(backend, tensors, sizes, options, seed, layer_norm=True):
    tensors = [t.clone().requires_grad_() for t in tensors]
    with hf.backend(backend):
        y = together(hyper_lstm(*grouped(tensors, layer_norm), options, batch_sizes=sizes, seed=seed))
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, gy, materialize_grads=True)]


def close(ours, expected, tolerance=1e-8):
    for name, a, b in zip(("output", *NAMES), ours, expected, strict=False):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("embedding_from", ["current", "previous"])
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [1], [4] * 9, [2, 1]])
def test_rows_of_different_lengths(lengths, embedding_from, layer_norm):
    sizes = torch.tensor([sum(n > t for n in lengths) for t in range(lengths[0])])
    options = Options(embedding_from, 0.3, 0.4, 0.2, layer=1)
    tensors = flat_inputs((len(lengths), 6, 19, 17, 5), F64, layer_norm=layer_norm, steps=1)
    tensors[0] = torch.randn(sum(lengths), 6, dtype=F64)
    seed = torch.tensor([1234567890123])
    ours, expected = (run_packed(b, tensors, sizes, options, seed, layer_norm) for b in ("cpp", "reference"))
    close(ours, expected)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(0, 6), batch=st.integers(0, 14), inputs=st.integers(1, 40), hidden=st.integers(1, 70),
    hyper=st.integers(1, 40), embedding=st.integers(1, 9), previous=st.booleans(), layer_norm=st.booleans(),
)  # fmt: skip
def test_07_08_any_size(steps, batch, inputs, hidden, hyper, embedding, previous, layer_norm):
    options = Options("previous" if previous else "current", 1.0)
    sizes = (batch, inputs, hidden, hyper, embedding)
    tensors = flat_inputs(sizes, F64, layer_norm=layer_norm, steps=steps)
    ours, expected = (run_packed(b, tensors, None, options, None, layer_norm) for b in ("cpp", "reference"))
    close(ours, expected)


def test_long_sequence(long_run):
    """T = 4097, past many chunks, equals pieces of it; in a long run also the reference, whose backward takes long."""
    tensors, batch = flat_inputs((2, 3, 4, 2, 2), F64, steps=4097), 2
    tensors = [t.requires_grad_() for t in tensors]
    x, state, *weights = grouped(tensors)
    pieces = []
    for rows in x.split(64 * batch):
        outputs = hyper_lstm(rows, state, *weights)
        h, c, hyper_h, hyper_c = (t[-batch:] for t in outputs)
        state = HyperState(LSTMState(h, c), LSTMState(hyper_h, hyper_c))
        pieces.append(together(outputs))
    y = torch.cat(pieces)
    gy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    whole = run_packed("cpp", tensors, None, Options(), None)
    close(whole, [y, *torch.autograd.grad(y, tensors, gy)])
    if long_run:
        close(whole, run_packed("reference", tensors, None, Options(), None))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("batch", [1, 9])
def test_weights_in_low_precision_beside_float32(dtype, batch):
    """Weights are converted where they are read: what float32 copies of them give."""
    tensors = flat_inputs((batch, 5, 40, 20, 3), steps=6)
    low = [*tensors[:5], *(t.to(dtype) for t in tensors[5:])]
    with torch.no_grad():
        ours = together(hyper_lstm(*grouped(low)))
        expected = together(hyper_lstm(*grouped([t.float() for t in low])))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_15_a_sequence_alone_and_in_a_batch():
    tensors = flat_inputs((9, 5, 40, 20, 3), steps=6)
    x, state, *weights = grouped(tensors)
    batch = hyper_lstm(x, state, *weights).h.view(6, 9, 40)
    one = HyperState(*(LSTMState(*(part[4:5] for part in cell)) for cell in state))
    alone = hyper_lstm(x.view(6, 9, 5)[:, 4], one, *weights).h
    torch.testing.assert_close(alone, batch[:, 4], rtol=1e-5, atol=1e-6)


def test_13_broken_rows_stay_alone():
    tensors = flat_inputs((9, 5, 40, 20, 3), steps=4)
    x, state, *weights = grouped(tensors)
    bad = x.clone().view(4, 9, 5)
    bad[1, 2, 0], bad[2, 7, 3] = torch.nan, torch.inf
    whole = [i for i in range(9) if i not in (2, 7)]
    with torch.no_grad():
        ours, clean = (hyper_lstm(v.reshape(-1, 5), state, *weights).h.view(4, 9, 40) for v in (bad, x))
    assert torch.equal(ours[:, whole], clean[:, whole])
    assert ours[1:, 2].isnan().all()


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_13_saturated_gates(value):
    tensors = flat_inputs((3, 5, 20, 10, 2), layer_norm=False)
    tensors[7] = torch.full_like(tensors[7], value)
    ours, expected = (run_packed(b, tensors, None, Options(), None, False) for b in ("cpp", "reference"))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- vmap -------------------------------------------------------------------------------------------


class Calls(TorchDispatchMode):
    """Counts calls of the raw ops."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "hyper_lstm" in func.name()
        return func(*args, **(kwargs or {}))


PACKED = torch.tensor([3, 3, 1])


@pytest.mark.parametrize("sizes", [None, PACKED])
@pytest.mark.parametrize("batched", [(0,), (1, 4), (0, 1, 2, 3, 4)])
def test_18_samples_that_share_weights_are_one_call(batched, sizes):
    """Forward, and gradients of x and the states, as the loop over samples gives them."""
    tensors = flat_inputs((3, 4, 19, 9, 3), F64, steps=3)
    tensors[0] = tensors[0][: 7 if sizes is not None else 9]
    given = [torch.stack([t + 0.1 * s for s in range(4)], 1) if i in batched else t for i, t in enumerate(tensors)]

    def call(*few):
        return together(hyper_lstm(*grouped([*few, *tensors[5:]]), Options(forget_bias=0.5), batch_sizes=sizes))

    gradient = torch.func.grad(lambda *few: call(*few).sin().sum(), argnums=tuple(range(5)))
    dims = tuple(1 if i in batched else None for i in range(5))
    for function, calls in ((call, 1), (gradient, 2)):
        with Calls() as counted:
            ours = torch.vmap(function, in_dims=dims)(*given[:5])
        assert counted.count == calls
        for s in range(4):
            expected = function(*(t[:, s] if i in batched else t for i, t in enumerate(given[:5])))
            torch.testing.assert_close([t[s] for t in ours] if calls > 1 else ours[s], expected)


def test_18_samples_that_differ_are_a_loop():
    """Weights of their own; gradients of shared ones; dropout, whose masks belong to a row's place."""
    tensors = flat_inputs((3, 4, 19, 9, 3), F64)
    xs = torch.stack([tensors[0] + 0.1 * s for s in range(4)])
    seed = torch.tensor([5])

    def run(x, weight, options):
        every = [x, *tensors[1:6], weight, *tensors[7:]]
        return together(hyper_lstm(*grouped(every), options, seed=seed))

    drop = Options(recurrent_dropout=0.4)
    ours = torch.vmap(lambda x: run(x, tensors[6], drop))(xs)
    torch.testing.assert_close(ours, torch.stack([run(x, tensors[6], drop) for x in xs]))
    per_sample = torch.func.grad(lambda weight, x: run(x, weight, Options()).sin().sum())
    ours = torch.vmap(per_sample, in_dims=(None, 0))(tensors[6], xs)
    torch.testing.assert_close(ours, torch.stack([per_sample(tensors[6], x) for x in xs]))
