"""Triton kernels of HyperLSTM under the interpreter: packed rows, dropout, and what may be absent."""

import pytest
import torch
from hyperfast.kernels import cuda_graphs
from recurrence_ops import run_again

import hyperfast as hf
from hyperfast.ops.hyper_lstm import NAMES, encode, hyper_lstm
from hyperfast.reference import hyper_lstm as reference
from hyperfast.reference.hyper_lstm import Cell, HyperState, LSTMState, Options, Scaling

pytestmark = pytest.mark.interpreter
SIZES = (3, 4, 19, 9, 3)  # B, I, H, K, Z
PLAIN = Options()
PACKED = torch.tensor([3, 1, 1])


def inputs(sizes=SIZES, *, rows, layer_norm=True, hyper_cell=True):
    """The 23 tensors, None where absent."""
    x, state, *parts = reference.make_inputs(1, *sizes, layer_norm=layer_norm)
    x = torch.randn(rows, x.shape[1], generator=torch.Generator().manual_seed(3))
    tensors = [x, *state.main, *state.hyper, *(t for part in parts for t in part)]
    if not hyper_cell:
        tensors[3:5] = [t[:, :0] for t in tensors[3:5]]
        tensors[10:] = [None] * 13
    return tensors


def run(backend, tensors, options, batch_sizes=None, seed=None, of_outputs=range(4)):
    """The outputs, and a gradient for each tensor that is there."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    x, h, c, hyper_h, hyper_c = leaves[:5]
    hyper = scaling = None
    if leaves[10] is not None:
        hyper, scaling = Cell(*leaves[10:15]), Scaling(*leaves[15:])
    state = HyperState(LSTMState(h, c), LSTMState(hyper_h, hyper_c))
    with hf.backend(backend):
        out = hyper_lstm(x, state, Cell(*leaves[5:10]), hyper, scaling, options, batch_sizes=batch_sizes, seed=seed)
    generator = torch.Generator().manual_seed(1)
    pairs = [(y, torch.randn(y.shape, generator=generator).to(y.dtype)) for y in out]
    y, gy = zip(*(pairs[i] for i in of_outputs), strict=True)
    wanted = [t for t in leaves if t is not None]
    grads = iter(torch.autograd.grad(y, wanted, gy, materialize_grads=True))
    return [*(y.detach() for y in out), *(None if t is None else next(grads) for t in leaves)]


def assert_same(tensors, options=PLAIN, batch_sizes=None, seed=None, of_outputs=range(4)):
    """As the reference in float64, within rounding: the contract compares errors, at sizes where they say something."""
    arguments = options, batch_sizes, seed, of_outputs
    ours = run("triton", tensors, *arguments)
    exact = run("reference", [None if t is None else t.double() for t in tensors], *arguments)
    names = [f"output {i}" for i in range(4)] + [f"gradient of {name}" for name in NAMES]
    for name, a, b in zip(names, ours, exact, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b.float(), rtol=2e-5, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(
    ("embedding_from", "layer_norm"), [("current", True), ("previous", True), ("current", False), ("previous", False)]
)
def test_rows_of_different_lengths_with_dropout(embedding_from, layer_norm):
    """Dropout's mask is the reference's, or the outputs would differ."""
    options = Options(embedding_from, 0.3, 0.4, 0.2, layer=1)
    seed = torch.tensor([1234567890123])
    assert_same(inputs(rows=5, layer_norm=layer_norm), options, PACKED, seed)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_without_a_hyper_cell(layer_norm):
    options = Options("current", 1.0, 0.5, 0.5)
    tensors = inputs(rows=5, layer_norm=layer_norm, hyper_cell=False)
    assert_same(tensors, options, PACKED, torch.tensor([-3]), [0, 1])


@pytest.mark.parametrize(("of_outputs", "drop"), [([0], 1.0), ([3], 0.0), ([1, 2], 0.0)])
def test_gradients_of_some_outputs(of_outputs, drop):
    """Of one output alone; where everything is dropped."""
    assert_same(inputs(rows=3), Options(recurrent_dropout=drop), None, torch.tensor([5]), of_outputs)


def test_layer_norm_of_one_cell():
    tensors = inputs(rows=3)
    tensors[8:10] = [None, None]
    assert_same(tensors)
    tensors = inputs(rows=3)
    tensors[13:15] = [None, None]
    assert_same(tensors)


def test_sizes_past_a_block():
    """Many embeddings, in several tiles; K above H; one unit."""
    assert_same(inputs((2, 3, 17, 70, 7), rows=2))
    assert_same(inputs((1, 1, 1, 1, 1), rows=2, layer_norm=False))


@pytest.mark.parametrize(("batch", "rows"), [(0, 0), (3, 0)])
@pytest.mark.parametrize("hyper_cell", [True, False])
def test_nothing_to_do(batch, rows, hyper_cell):
    """No sequence, and no step: gradients are zeros."""
    ours = run("triton", inputs((batch, 4, 5, 3, 2), rows=rows, hyper_cell=hyper_cell), Options())
    for t in ours:
        assert t is None or (t == 0).all()
    assert ours[0].shape == (0, 5)
    assert ours[5].shape == (batch, 5)


def test_weights_in_low_precision_beside_float32():
    """What float32 copies of them give."""
    tensors = inputs(rows=3)
    low = [*tensors[:5], *(t.half() for t in tensors[5:])]
    ours = run("triton", low, Options())
    expected = run("triton", [t.float() for t in low], Options())
    for a, b, t in zip(ours[4:], expected[4:], low, strict=True):
        assert a.dtype == t.dtype
        torch.testing.assert_close(a, b.to(t.dtype))
    for a, b in zip(ours[:4], expected[:4], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("save", [True, False])
def test_03_schema_and_fakes(save):
    """Shapes under torch.compile are those of the kernels; no output shares memory with another tensor."""
    every = inputs((2, 3, 5, 3, 2), rows=2)
    spec = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), *encode(PLAIN)
    checks = "test_schema", "test_faketensor"
    forward, backward = torch.ops.hyperfast.hyper_lstm_triton, torch.ops.hyperfast.hyper_lstm_backward_triton
    torch.library.opcheck(forward, (every, *spec, save), test_utils=checks)
    outputs = list(forward(every, *spec, True))
    grads = [torch.randn_like(t) for t in outputs[:4]]
    torch.library.opcheck(backward, (grads, every, outputs, *spec, save, save), test_utils=checks)
    found = backward(grads, every, outputs, *spec, True, True)
    assert len({g.untyped_storage().data_ptr() for g in found}) == len(found)


def test_calls_replayed(monkeypatch):
    """As on a GPU, with a function that runs again in place of a graph: new tensors and new masks at every call."""
    recorded = []

    def record(call, where):
        recorded.append(call)
        return run_again(call)

    monkeypatch.setattr(cuda_graphs, "replays", cuda_graphs.Replays(record))
    monkeypatch.setattr(cuda_graphs, "worthwhile", lambda device, steps: True)
    for call in range(3):  # at once, recorded, replayed
        tensors = [t * (1 + 0.1 * call) for t in inputs(rows=6)]
        assert_same(tensors, Options(recurrent_dropout=0.5), None, torch.tensor([call]))
        assert len(recorded) == (0 if call == 0 else 2), "one forward, one backward"
