"""The recurrent layers: the paper's parameter counts, nn.LSTM's forms of input, packed sequences, scales, errors."""

import copy

import pytest
import torch
from test_hyper_lstm import close, flat_inputs, grouped, together
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import hyperfast as hf
from hyperfast.ops.hyper_lstm import hyper_lstm
from hyperfast.reference import hyper_lstm as reference
from hyperfast.reference.hyper_lstm import HyperState, LSTMState

F64 = torch.float64


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
    _, _, scales = m(x, return_scales=True)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [hf.nn.HyperLSTM, hf.nn.LayerNormLSTM])
def test_layers_begin_in_half_types(kind, dtype):
    m = kind(3, 20, dtype=dtype)
    assert {p.dtype for p in m.parameters()} == {dtype}
    square = m.weight_hh_l0.float()
    torch.testing.assert_close(square.T @ square, torch.eye(20), rtol=0, atol=8 * torch.finfo(dtype).eps)
    lstm = nn.LSTM(3, 20, dtype=dtype)
    x = torch.randn(5, 2, 3, dtype=dtype)
    torch.testing.assert_close(kind.from_lstm(lstm)(x)[0], lstm(x)[0], rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [hf.nn.HyperLSTM, hf.nn.LayerNormLSTM, hf.nn.HyperRNN])
def test_17_autocast_of_layers_and_chunks(kind, dtype):
    """A second layer reads what the first wrote in autocast's type, and a second call its state, beside a float32 x."""
    m = kind(3, 20) if kind is hf.nn.HyperRNN else kind(3, 20, num_layers=2)
    x = torch.randn(9, 4, 3)
    with torch.autocast("cpu", dtype=dtype):
        whole, end = m(x)
        first, state = m(x[:4])
        second, last = m(x[4:], state)
    expected, _ = copy.deepcopy(m).to(dtype)(x.to(dtype))
    assert {whole.dtype, *(part.dtype for part in end)} == {dtype}
    assert torch.equal(whole, expected)
    rounding = 4 * torch.finfo(dtype).eps  # of the state between the calls, at most 1; within a call it is float32
    for part, other in zip([torch.cat([first, second]), *last], [whole, *end], strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=rounding)


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
    (lambda m: hf.nn.HyperRNN(3, 3, scaling="columns"), ValueError, "scaling"),
    (lambda m: hf.nn.HyperRNN(3, 3, nonlinearity="cos"), ValueError, "nonlinearity"),
]


@pytest.mark.parametrize("bad", BAD, ids=[case[2] for case in BAD])
def test_errors_name_the_argument(bad):
    call, kind, message = bad
    with pytest.raises(kind, match=message):
        call(hf.nn.HyperLSTM(3, 8, 4, 2))
