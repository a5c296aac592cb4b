"""HyperLSTM and its simpler cells: kernels against the reference, the layers against nn.LSTM and the paper's counts."""

import pytest
import torch
from contract import LOW, OpContract
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import hyperfast as hf
from hyperfast import backends
from hyperfast.ops.hyper_lstm import NAMES, encode, hyper_lstm
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
        tensors = [x.new_empty(0) if t is None else t for t in tensors]
        spec = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), *encode(self.options)
        forward = getattr(torch.ops.hyperfast, f"hyper_lstm_{self.kernel()}")
        backward = getattr(torch.ops.hyperfast, f"hyper_lstm_backward_{self.kernel()}")
        outputs = list(forward(tensors, *spec, True))
        grads = [torch.randn_like(t) for t in outputs[:4]]
        yield forward, (tensors, *spec, False)
        yield forward, (tensors, *spec, True)
        yield backward, (grads, tensors, outputs, *spec, True, True)
        yield backward, (grads, tensors, outputs, *spec, False, False)


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


@pytest.mark.parametrize("hidden", [1, 4])
def test_long_sequence(hidden):
    """T = 4097, past many chunks."""
    tensors = flat_inputs((2, 3, hidden, 2, 2), F64, steps=4097)
    ours, expected = (run_packed(b, tensors, None, Options(), None) for b in ("cpp", "reference"))
    close(ours, expected)


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


# ---- the layers -------------------------------------------------------------------------------------


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_paper():
    """Tables 3 and 4, with a biased softmax over the symbols."""
    ptb = hf.nn.HyperLSTM(50, 1000, 128, 4, layer_norm=False, device="meta")
    assert parameters(ptb) + 1000 * 50 + 50 == 4_911_874
    enwik8 = hf.nn.HyperLSTM(205, 1800, 256, 64, device="meta", layer_norm=False)
    assert parameters(enwik8) + 1800 * 205 + 205 == 18_708_213
    assert parameters(hf.nn.HyperLSTM(50, 1000, 128, 4, layer_norm=False, hyper_layer_norm=True, device="meta")) == (
        4_913_154 - 50_050
    )


def test_names_of_parameters():
    m = hf.nn.HyperLSTM(3, 5, 4, 2, num_layers=2)
    shapes = {name: tuple(p.shape) for name, p in m.state_dict().items()}
    for layer, inputs in enumerate((3, 5)):
        own = {name.removesuffix(f"_l{layer}"): s for name, s in shapes.items() if name.endswith(f"_l{layer}")}
        assert own == {
            "weight_ih": (20, inputs), "weight_hh": (20, 5), "bias": (20,), "ln_weight": (5, 5), "ln_bias": (5, 5),
            "hyper_weight_ih": (16, 5 + inputs), "hyper_weight_hh": (16, 4), "hyper_bias": (16,),
            "hyper_ln_weight": (5, 4), "hyper_ln_bias": (5, 4),
            "z_h_weight": (4, 2, 4), "z_x_weight": (4, 2, 4), "z_b_weight": (4, 2, 4),
            "z_h_bias": (4, 2), "z_x_bias": (4, 2),
            "d_h_weight": (4, 5, 2), "d_x_weight": (4, 5, 2), "d_b_weight": (4, 5, 2),
        }  # fmt: skip


@pytest.mark.parametrize("kind", [hf.nn.HyperLSTM, hf.nn.LayerNormLSTM])
@pytest.mark.parametrize("batch_first", [False, True])
def test_from_lstm_computes_the_same(kind, batch_first):
    lstm = nn.LSTM(7, 12, num_layers=2, batch_first=batch_first).double()
    ours = kind.from_lstm(lstm)
    x = torch.randn(5, 3, 7, dtype=F64, requires_grad=True)
    batch = 5 if batch_first else 3
    state = torch.randn(2, batch, 12, dtype=F64), torch.randn(2, batch, 12, dtype=F64)
    expected, (h, c) = lstm(x, state)
    if kind is hf.nn.HyperLSTM:
        state = (*state, torch.zeros(2, batch, 128, dtype=F64), torch.zeros(2, batch, 128, dtype=F64))
    got, end = ours(x, state)
    close([got, end.h, end.c], [expected, h, c])
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected)]
    close(grads[:1], grads[1:])
    assert [torch.is_grad_enabled(), ours.weight_hh_l0.requires_grad] == [True, True]


@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("kind", [hf.nn.HyperLSTM, hf.nn.LayerNormLSTM])
def test_packed_input(kind, enforce_sorted):
    m = kind(4, 9, num_layers=2).double()
    lengths = [5, 4, 2, 1] if enforce_sorted else [2, 5, 1, 4]
    sequences = [torch.randn(n, 4, dtype=F64) for n in lengths]
    sizes = [9, 9, 128, 128][: 4 if kind is hf.nn.HyperLSTM else 2]
    state = [0.3 * torch.randn(2, 4, size, dtype=F64) for size in sizes]
    out, end = m(pack_sequence(sequences, enforce_sorted=enforce_sorted), state)
    padded, out_lengths = pad_packed_sequence(out)
    assert out_lengths.tolist() == lengths
    for b, sequence in enumerate(sequences):
        one, one_end = m(sequence, [part[:, b] for part in state])
        torch.testing.assert_close(padded[: lengths[b], b], one)
        assert (padded[lengths[b] :, b] == 0).all()
        for got, expected in zip(end, one_end, strict=True):
            torch.testing.assert_close(got[:, b], expected)


@pytest.mark.parametrize("embedding_from", ["current", "previous"])
def test_scales(embedding_from):
    """They are what was applied: the pre-activation is theirs times the products."""
    m = hf.nn.HyperLSTM(3, 6, 5, 2, num_layers=2, embedding_from=embedding_from, init="asymmetric").double()
    x = torch.randn(4, 2, 3, dtype=F64)
    out, end, scales = m(x, return_scales=True)
    assert [tuple(s.shape) for s in scales] == [(2, 4, 2, 4, 6)] * 3
    zeros = lambda *size: torch.zeros(2, *size, dtype=F64)
    state = HyperState(LSTMState(zeros(6), zeros(6)), LSTMState(zeros(5), zeros(5)))
    for t in range(4):
        state, applied = reference.hyper_lstm_step(x[t], state, *m._weights(0), embedding_from=embedding_from)
        for got, expected in zip(scales, applied, strict=True):
            torch.testing.assert_close(got[0, t], expected)
    lengths = [4, 2]
    packed = pack_sequence([x[:n, b] for b, n in enumerate(lengths)])
    _, _, of_packed = m(packed, return_scales=True)
    assert (of_packed.d_h[:, 2:, 1] == 0).all()
    torch.testing.assert_close(of_packed.d_h[:, :2], scales.d_h[:, :2])


def test_two_chunks_equal_the_whole():
    m = hf.nn.HyperLSTM(3, 20, 6, 2, num_layers=2).double()
    x = torch.randn(9, 4, 3, dtype=F64)
    whole, end = m(x)
    first, state = m(x[:4])
    second, last = m(x[4:], state)
    close([torch.cat([first, second]), *last], [whole, *end])


def test_cell_is_one_step():
    m = hf.nn.HyperLSTM(3, 20, 6, 2).double()
    cell = hf.nn.HyperLSTMCell(3, 20, 6, 2).double()
    cell.load_state_dict(m.state_dict())
    x, state = torch.randn(4, 5, 3, dtype=F64), None
    for step in x:
        state = cell(step, state)
    close(list(state), [part[0] for part in m(x)[1]])
    assert cell(x[0, 0]).h.shape == (20,)


def test_forms_of_input():
    m = hf.nn.HyperLSTM(3, 8, 4, 2, num_layers=2, batch_first=True)
    x = torch.randn(2, 5, 3)
    out, end = m(x)
    one, one_end = m(x[0])
    assert out.shape == (2, 5, 8)
    torch.testing.assert_close(one, out[0])
    torch.testing.assert_close(one_end.hyper_h, end.hyper_h[:, 0])
    for empty in (torch.randn(2, 0, 3), torch.randn(0, 5, 3)):
        out, end = m(empty)
        assert out.shape == (*empty.shape[:2], 8)
        assert end.h.shape == (2, len(empty), 8)


def test_dropout_is_drawn_anew_and_off_in_eval():
    m = hf.nn.HyperLSTM(3, 40, 6, 2, recurrent_dropout=0.5, hyper_recurrent_dropout=0.2)
    x = torch.randn(5, 4, 3)
    assert not torch.equal(m(x)[0], m(x)[0])
    m.eval()
    assert torch.equal(m(x)[0], m(x)[0])
    masks = reference.keep_mask(torch.tensor([5]), 0, 0.25, torch.zeros(4000).long(), torch.arange(4000), 50)
    assert masks.unique().tolist() == pytest.approx([0, 4 / 3])
    assert masks.mean() == pytest.approx(1, abs=0.01)


def test_symmetry_of_the_paper_and_its_breaking():
    """Elements of z_h stay alike under the paper's initialisation; "asymmetric" tells them apart."""
    for init, alike in (("paper", True), ("asymmetric", False)):
        m = hf.nn.HyperLSTM(3, 8, 4, 3, init=init)
        optimizer = torch.optim.Adam(m.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            m(torch.randn(5, 4, 3))[0].square().sum().backward()
            optimizer.step()
        difference = (m.d_h_weight_l0[..., 0] - m.d_h_weight_l0[..., 1]).abs().max()
        assert (difference < 1e-6) == alike


def test_what_is_saved_for_backward():
    """At most half of what eager autograd saves (in bytes), as docs/hyper_lstm.md says."""
    tensors = [t.requires_grad_() for t in flat_inputs((16, 20, 100, 32, 4), steps=10)]
    leaves = {t.data_ptr() for t in tensors}

    def saved(backend):
        kept = {}

        def keep(t):
            if t.data_ptr() not in leaves:
                kept[t.data_ptr()] = t.untyped_storage().nbytes()
            return t

        with hf.backend(backend), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = together(hyper_lstm(*grouped(tensors)))  # noqa: F841
        return sum(kept.values())

    ours, eager = saved("cpp"), saved("reference")
    width, rows = 4 * (112 + 32), 160
    assert ours == 4 * rows * (width + 2 * 100 + 2 * 32)
    assert ours < eager / 2


BAD = [
    (lambda m: m(torch.randn(4, 2, 5)), ValueError, "input_size = 3"),
    (lambda m: m(torch.randn(4)), ValueError, "T,B,I"),
    (lambda m: m([1.0]), TypeError, "PackedSequence"),
    (lambda m: m(torch.randn(4, 2, 3), torch.zeros(1, 2, 8)), ValueError, "state must have the parts h, c"),
    (lambda m: m(torch.randn(4, 2, 3), [torch.zeros(1, 3, 8)] * 4), ValueError, "state's h must be"),
    (lambda m: m(torch.randn(4, 2, 3).double()), TypeError, "float64 does not mix"),
    (lambda m: m(torch.ones(4, 2, 3, dtype=torch.int64)), TypeError, "x must be float32"),
    (lambda m: hf.nn.HyperLSTM(0, 3), ValueError, "input_size"),
    (lambda m: hf.nn.HyperLSTM(3, 3, embedding_from="next"), ValueError, "embedding_from"),
    (lambda m: hf.nn.HyperLSTM(3, 3, init="random"), ValueError, "init"),
    (lambda m: hf.nn.HyperLSTM(3, 3, recurrent_dropout=1.5), ValueError, "recurrent_dropout"),
    (lambda m: hf.nn.HyperLSTM.from_lstm(nn.LSTM(3, 3, bidirectional=True)), ValueError, "one direction"),
    (lambda m: hf.nn.HyperLSTMCell(3, 3, num_layers=2), TypeError, "num_layers"),
]


@pytest.mark.parametrize("bad", BAD, ids=[case[2] for case in BAD])
def test_errors_name_the_argument(bad):
    call, kind, message = bad
    with pytest.raises(kind, match=message):
        call(hf.nn.HyperLSTM(3, 8, 4, 2))
