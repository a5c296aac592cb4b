"""HyperRNN: kernels against the reference; whole matrices on the reference."""

import pytest
import torch
from contract import LOW, OpContract
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrence_ops import raw_calls
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import hyperfast as hf
from hyperfast import backends
from hyperfast.ops.hyper_lstm_rnn import hyper_rnn
from hyperfast.reference import hyper_lstm_rnn as reference
from hyperfast.reference.hyper_lstm import Options, Scaling
from hyperfast.reference.hyper_lstm_rnn import RNNCell

F64 = torch.float64
NAMES = ("x", "h", "hyper_h", *RNNCell._fields, *(f"hyper_{n}" for n in RNNCell._fields), *Scaling._fields)


def flat_inputs(sizes, dtype=torch.float32, seed=0, steps=3):
    """The 17 tensors of make_inputs (B, I, H, K, Z), biases as matrices."""
    x, h, hyper_h, *weights = reference.make_inputs(steps, *sizes, dtype=dtype, seed=seed)
    every = [x, h, hyper_h, *(t for part in weights for t in part)]
    return [t.unsqueeze(0).clone() if t.dim() == 1 else t.clone() for t in every]


def grouped(tensors):
    """x, h, hyper_h, w, hyper, scaling of flat_inputs."""
    cells = [RNNCell(*tensors[i : i + 2], tensors[i + 2].flatten()) for i in (3, 6)]
    return *tensors[:3], *cells, Scaling(*tensors[9:])


def together(outputs):
    """h and hyper_h as one tensor [R,H+K]."""
    return torch.cat(list(outputs), 1)


class TestHyperRNN(OpContract):
    nonlinearity = "tanh"

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        small = size == "small"
        return flat_inputs((2, 2, 3, 2, 2) if small else (7, 5, 35, 18, 3), dtype, seed, steps=2 if small else 5)

    def call(self, *inputs):
        return together(hyper_rnn(*grouped(inputs), self.nonlinearity))

    def raw_op_calls_for(self, dtype):
        x, h, hyper_h, w, hyper, scaling = grouped(self.inputs("medium", dtype))
        c, hyper_c = x.new_empty(7, 0), x.new_empty(7, 0)
        tensors = [x, h, c, hyper_h, hyper_c, *w, None, None, *hyper, None, None, *scaling]
        return raw_calls(self.kernel(), tensors, Options(cell=self.nonlinearity))


class TestRelu(TestHyperRNN):
    nonlinearity = "relu"


# ---- other sizes, sequences of different lengths, types ---------------------------------------------


def run(backend, tensors, nonlinearity="tanh", batch_sizes=None, of_outputs=(0, 1)):
    """h, hyper_h, and a gradient for each tensor."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    with hf.backend(backend):
        out = hyper_rnn(*grouped(leaves), nonlinearity, batch_sizes)
    generator = torch.Generator().manual_seed(1)
    gys = [torch.randn(y.shape, generator=generator, dtype=F64).to(y.dtype) for y in out]
    chosen = [out[i] for i in of_outputs], leaves, [gys[i] for i in of_outputs]
    return [*(y.detach() for y in out), *torch.autograd.grad(*chosen, materialize_grads=True)]


def close(ours, expected, tolerance=1e-9):
    for name, a, b in zip(("h after", "hyper_h after", *NAMES), ours, expected, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [1], [4] * 9, [2, 1]])
def test_rows_of_different_lengths(lengths, nonlinearity):
    sizes = torch.tensor([sum(n > t for n in lengths) for t in range(lengths[0])])
    tensors = flat_inputs((len(lengths), 6, 19, 17, 5), F64, steps=1)
    tensors[0] = torch.randn(sum(lengths), 6, dtype=F64)
    close(*(run(backend, tensors, nonlinearity, sizes) for backend in ("cpp", "reference")))


@settings(max_examples=60, deadline=None)
@given(
    steps=st.integers(0, 6), batch=st.integers(0, 14), inputs=st.integers(1, 40), hidden=st.integers(1, 70),
    hyper=st.integers(1, 40), embedding=st.integers(1, 9), relu=st.booleans(),
)  # fmt: skip
def test_07_08_any_size(steps, batch, inputs, hidden, hyper, embedding, relu):
    tensors = flat_inputs((batch, inputs, hidden, hyper, embedding), F64, steps=steps)
    close(*(run(backend, tensors, "relu" if relu else "tanh") for backend in ("cpp", "reference")))


def test_long_sequence():
    """T = 4097, past many chunks."""
    tensors = flat_inputs((2, 3, 4, 2, 2), F64, steps=4097)
    close(*(run(backend, tensors) for backend in ("cpp", "reference")))


@pytest.mark.parametrize("of_outputs", [[0], [1]])
def test_gradients_of_one_output(of_outputs):
    tensors = flat_inputs((3, 4, 19, 9, 3), F64)
    close(*(run(backend, tensors, of_outputs=of_outputs) for backend in ("cpp", "reference")))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("batch", [1, 9])
def test_weights_in_low_precision_beside_float32(dtype, batch):
    """Weights are converted where they are read: what float32 copies of them give."""
    tensors = flat_inputs((batch, 5, 40, 20, 3), steps=6)
    low = [*tensors[:3], *(t.to(dtype) for t in tensors[3:])]
    with torch.no_grad():
        ours = together(hyper_rnn(*grouped(low), "tanh"))
        expected = together(hyper_rnn(*grouped([t.float() for t in low]), "tanh"))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_13_broken_rows_stay_alone(nonlinearity):
    x, h, hyper_h, *weights = grouped(flat_inputs((9, 5, 40, 20, 3), steps=4))
    bad = x.clone().view(4, 9, 5)
    bad[1, 2, 0], bad[2, 7, 3] = torch.nan, torch.inf
    whole = [i for i in range(9) if i not in (2, 7)]
    with torch.no_grad():
        ours, clean = (
            hyper_rnn(v.reshape(-1, 5), h, hyper_h, *weights, nonlinearity)[0].view(4, 9, 40) for v in (bad, x)
        )
    assert torch.equal(ours[:, whole], clean[:, whole])
    assert ours[1:, 2].isnan().all()


def test_flops():
    """The products of all rows, a quarter of an LSTM's."""
    from torch.utils.flop_counter import FlopCounterMode

    tensors = flat_inputs((2, 5, 7, 4, 3), steps=6)
    with FlopCounterMode(display=False) as counter:
        hyper_rnn(*grouped(tensors), "tanh")
    assert counter.get_total_flops() == 2 * 12 * (7 * 5 + 7 * 7 + 4 * (7 + 5) + 4 * 4 + 3 * 3 * (4 + 7))


@pytest.mark.interpreter
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_26_rows_of_different_lengths(nonlinearity):
    """As the reference in float64, within rounding; many embeddings, K above a block; one unit."""
    for sizes, lengths in (((3, 4, 19, 9, 3), (3, 1, 1)), ((2, 3, 17, 70, 7), (1, 1)), ((1, 1, 1, 1, 1), (2,))):
        batch_sizes = torch.tensor([sum(n > t for n in lengths) for t in range(lengths[0])])
        tensors = flat_inputs(sizes, steps=1)
        tensors[0] = torch.randn(sum(lengths), sizes[1], generator=torch.Generator().manual_seed(3))
        exact = run("reference", [t.double() for t in tensors], nonlinearity, batch_sizes)
        close(run("triton", tensors, nonlinearity, batch_sizes), exact, 2e-5)


@pytest.mark.interpreter
@pytest.mark.parametrize(("batch", "steps"), [(0, 2), (3, 0)])
def test_26_nothing_to_do(batch, steps):
    """No sequence, and no step: gradients are zeros."""
    ours = run("triton", flat_inputs((batch, 4, 5, 3, 2), steps=steps))
    assert all((t == 0).all() for t in ours)
    assert ours[0].shape == (0, 5)
    assert ours[3].shape == (batch, 5)


# ---- the layer --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error::hyperfast.HyperfastFallbackWarning")
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_layer_has_a_kernel(nonlinearity):
    """Eq. 8 takes no fallback, forward or backward."""
    backends._warned.clear()
    m = hf.nn.HyperRNN(3, 5, nonlinearity=nonlinearity)
    x = torch.randn(4, 2, 3)
    out, _ = m(x)
    out.sum().backward()
    assert all(p.grad is not None for p in m.parameters())
    with hf.backend("cpp"):
        assert torch.equal(m(x)[0], out)


@pytest.mark.parametrize("scaling", ["rows", "matrix"])
@pytest.mark.filterwarnings("ignore::hyperfast.HyperfastFallbackWarning")
def test_layer(scaling):
    """Equations 5, 6 and 8, written once more by hand; packed rows; the names of the parameters."""
    m = hf.nn.HyperRNN(3, 5, hyper_size=4, embedding_size=2, scaling=scaling, nonlinearity="relu").double()
    for p in m.parameters():
        nn.init.normal_(p, std=0.4)
    g = lambda name: getattr(m, f"{name}_l0")
    x, h, k = torch.randn(4, 3, dtype=F64), torch.zeros(5, dtype=F64), torch.zeros(4, dtype=F64)
    out, end = m(x)
    for t in range(4):
        k = (g("hyper_weight_ih") @ torch.cat([h, x[t]]) + g("hyper_weight_hh") @ k + g("hyper_bias")).relu()
        z_h, z_x = (g(f"z_{n}_weight")[0] @ k + g(f"z_{n}_bias")[0] for n in "hx")
        if scaling == "matrix":
            products = (g("weight_hh") @ z_h) @ h + (g("weight_ih") @ z_x) @ x[t]
        else:
            d_h, d_x = g("d_h_weight")[0] @ z_h, g("d_x_weight")[0] @ z_x
            products = torch.diag(d_h) @ g("weight_hh") @ h + torch.diag(d_x) @ g("weight_ih") @ x[t]
        h = (products + g("d_b_weight")[0] @ (g("z_b_weight")[0] @ k) + g("bias")).relu()
        torch.testing.assert_close(out[t], h)
    torch.testing.assert_close(end.hyper_h[0], k)
    packed, _ = m(pack_sequence([x[:2], x], enforce_sorted=False))
    padded, _ = pad_packed_sequence(packed)
    torch.testing.assert_close(padded[:, 1], out)
    torch.testing.assert_close(padded[:2, 0], out[:2])
    m.reset_parameters()
    m(x)[0].sum().backward()


def test_matrix_scaling_says_that_it_has_no_kernel():
    m, x = hf.nn.HyperRNN(3, 5, scaling="matrix"), torch.randn(4, 2, 3)
    with hf.backend("cpp"), pytest.raises(RuntimeError, match="hyper_rnn_matrix has no cpp kernel"):
        m(x)
    backends._warned.clear()
    with pytest.warns(hf.HyperfastFallbackWarning, match="hyper_rnn_matrix"):
        m(x)


BAD = [
    (lambda t: [t[0][:, :3], *t[1:]], "weight_ih must be [H,I] with I = 3"),
    (lambda t: [*t[:6], t[6][:, :4], *t[7:]], "hyper_weight_ih must be [K,H+I] with H+I = 9"),
    (lambda t: [*t[:14], torch.ones(2, 5, 2), *t[15:]], "d_h_weight must be [1,H,Z] with 1 = 1"),
    (lambda t: [t[0], t[1].double(), *t[2:]], "float64 does not mix"),
]


@pytest.mark.parametrize("bad", BAD, ids=[case[1] for case in BAD])
def test_errors_name_the_argument(bad):
    change, message = bad
    with pytest.raises((TypeError, ValueError)) as raised:
        hyper_rnn(*grouped(change(flat_inputs((2, 4, 5, 3, 2)))), "tanh")
    assert message in str(raised.value)
    with pytest.raises(ValueError, match="nonlinearity must be one of tanh, relu; got 'cos'"):
        hyper_rnn(*grouped(flat_inputs((2, 4, 5, 3, 2))), "cos")
