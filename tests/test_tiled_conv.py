"""Kernels assembled from generated tiles: kernels against the reference."""

import math
from typing import ClassVar

import pytest
import torch
from contract import LOW, OpContract
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperfast as hf
from hyperfast import backends, native
from hyperfast.ops import assemble_kernels
from hyperfast.reference import tiled_conv as reference

F64 = torch.float64
KERNEL = "triton" if backends.INTERPRETING else "cpp"


def flat_inputs(*arguments, **options):
    zs, generator = reference.make_inputs(*arguments, **options)
    return [*generator, *zs]


def together(kernels):
    """[elements, 1]."""
    return torch.cat([k.reshape(-1, 1) for k in kernels])


# ---- the contract -----------------------------------------------------------------------------------


class TestAssembleKernels(OpContract):
    """Three kernels of different grids; medium is past a block of tiles and of every panel."""

    small: ClassVar = {"grids": [(2, 1), (1, 2)], "embedding": 2, "hidden": 3, "tile": (2, 1), "kernel_size": (1, 2)}
    medium: ClassVar = {
        "grids": [(5, 3), (1, 2), (7, 9)],
        "embedding": 19,
        "hidden": 21,
        "tile": (4, 5),
        "kernel_size": (3, 3),
    }

    def inputs(self, size="small", dtype=torch.float32, seed=0):
        return flat_inputs(**(self.small if size == "small" else self.medium), dtype=dtype, seed=seed)

    def call(self, *inputs):
        return together(assemble_kernels(inputs[4:], *inputs[:4]))

    def raw_op_calls_for(self, dtype):
        *weights, z, other = self.inputs(dtype=dtype)
        zs = [z, other]
        forward = getattr(torch.ops.hyperfast, f"tiled_conv_{self.kernel()}")
        backward = getattr(torch.ops.hyperfast, f"tiled_conv_backward_{self.kernel()}")
        kernels = [torch.randn_like(k) for k in assemble_kernels(zs, *weights)]
        none, one = z.new_empty(0), torch.ones(())
        yield forward, (zs, weights, False)
        yield forward, (zs, weights, True)
        yield backward, (kernels, none, [], zs, weights, True, True)
        yield backward, ([kernels[0], none], one, kernels, zs, weights, False, True)
        yield backward, (kernels, none, [], zs, weights, True, False)


class TestSixteen(TestAssembleKernels):
    """The paper's tile; the penalty beside the kernels."""

    medium: ClassVar = {
        "grids": [(1, 2), (2, 3)],
        "embedding": 64,
        "hidden": 64,
        "tile": (16, 16),
        "kernel_size": (3, 3),
    }
    test_01_02_gradcheck_and_gradgradcheck = None
    test_23_memory_does_not_grow = None
    test_16_compile_inductor = None

    def call(self, *inputs):
        kernels, penalty = assemble_kernels(inputs[4:], *inputs[:4], penalty=True)
        if len({k.dtype for k in kernels} | {penalty.dtype}) > 1:
            penalty = penalty.to(kernels[0].dtype)
        return torch.cat([together(kernels), 0.1 * penalty.view(1, 1)])


def test_01_02_gradients_of_the_penalty():
    """Alone, without a gradient of any kernel; and beside one kernel of two."""
    inputs = [t.requires_grad_() for t in flat_inputs(**TestAssembleKernels.small, dtype=F64)]
    alone = lambda *t: assemble_kernels(t[4:], *t[:4], penalty=True)[1]

    def beside(*t):
        kernels, penalty = assemble_kernels(t[4:], *t[:4], penalty=True)
        return kernels[1], penalty

    for call in (alone, beside):
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


# ---- numbers ----------------------------------------------------------------------------------------


def by_hand(z, weight_in, bias_in, weight_out, bias_out):
    """Equations 2 and 3, tile after tile."""
    (rows, cols, _), n_in = z.shape, weight_in.shape[0]
    n_out, kh, kw, _ = weight_out.shape
    kernel = torch.zeros(cols * n_out, rows * n_in, kh, kw, dtype=z.dtype)
    for row in range(rows):
        for col in range(cols):
            for i in range(n_in):
                a = weight_in[i] @ z[row, col] + bias_in[i]
                kernel[col * n_out : (col + 1) * n_out, row * n_in + i] = weight_out @ a + bias_out
    return kernel


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_rows_tile_the_inputs(backend):
    dtype = torch.float32 if backend == "triton" else F64
    zs, generator = reference.make_inputs([(2, 3)], 5, 4, (3, 2), (2, 1), dtype=dtype)
    with hf.backend(backend):
        (kernel,) = assemble_kernels(zs, *generator)
    assert kernel.shape == (6, 6, 2, 1)
    torch.testing.assert_close(kernel, by_hand(zs[0], *generator))


def whole_numbers(*arguments, **options):
    return [t.mul(3).round().clamp(-3, 3) for t in flat_inputs(*arguments, **options)]


def run(backend, inputs, gy_scale=1.0):
    """Kernels, penalty and all gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    with hf.backend(backend):
        kernels, penalty = assemble_kernels(leaves[4:], *leaves[:4], penalty=True)
    generator = torch.Generator().manual_seed(2)
    gys = [torch.randn(k.shape, generator=generator).mul(2).round().mul(gy_scale).to(k) for k in kernels]
    grads = torch.autograd.grad([*kernels, penalty], leaves, [*gys, torch.ones_like(penalty)])
    return [*(k.detach() for k in kernels), penalty.detach(), *grads]


INTEGERS = {"grids": [(2, 3), (1, 1)], "embedding": 5, "hidden": 4, "tile": (4, 6), "kernel_size": (3, 3)}


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("backend", ["cpp"])
def test_06_small_integers_are_exact(backend, isa):
    """No sum reaches 2^24: nothing rounds, in whatever order and whether folded or not."""
    inputs = whole_numbers(**INTEGERS)
    native.force_isa(isa)
    try:
        ours = run(backend, inputs)
    finally:
        native.force_isa("auto")
    exact = run("reference", [t.double() for t in inputs])
    assert max(e.abs().max() for e in exact) < 2**24
    for a, b in zip(ours, exact, strict=True):
        assert torch.equal(a.double(), b)


@pytest.mark.interpreter
def test_06_small_integers_are_exact_interpreted():
    test_06_small_integers_are_exact("triton", "auto")


@settings(max_examples=200, deadline=None)
@given(
    grids=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4),
    tile=st.tuples(st.integers(1, 9), st.integers(1, 9)), kernel_size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    embedding=st.integers(1, 34), hidden=st.integers(1, 34),
)  # fmt: skip
def test_07_08_any_size(grids, tile, kernel_size, embedding, hidden):
    inputs = flat_inputs(grids, embedding, hidden, tile, kernel_size, dtype=F64)
    for a, b in zip(run("cpp", inputs), run("reference", inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1 + b.abs().amax() if b.numel() else 1))


@pytest.mark.parametrize("kernel_size", range(1, 8))
def test_kernels_and_windows_of_the_papers_tile(kernel_size):
    inputs = flat_inputs([(1, 2), (2, 1)], 20, 8, (16, 16), (kernel_size, 8 - kernel_size), dtype=F64)
    for a, b in zip(run("cpp", inputs), run("reference", inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sizes", [{"embedding": 300, "hidden": 3}, {"embedding": 3, "hidden": 300}])
def test_sizes_past_a_sum(sizes):
    """More elements than the kernels add up in one go, and more tiles."""
    inputs = flat_inputs([(13, 17)], tile=(2, 3), kernel_size=(1, 3), **sizes)
    ours, eager = run("cpp", inputs), run("reference", inputs)
    for o, e, x in zip(ours, eager, run("reference", [t.double() for t in inputs]), strict=True):
        assert (o - x).norm() <= 2 * (e - x).norm() + 3 * torch.finfo(torch.float32).eps * x.norm()


@pytest.mark.parametrize("dtype", LOW)
def test_weights_and_embeddings_of_two_types(dtype):
    """Kernels come in the embeddings' type, and weights are converted where they are read."""
    *weights, z, other = flat_inputs([(3, 2), (1, 1)], 9, 7, (4, 4), (3, 3))
    with hf.backend(KERNEL):
        low = [w.to(dtype) for w in weights]
        ours = assemble_kernels([z, other], *low)
        expected = assemble_kernels([z, other], *(w.float() for w in low))
        rounded = assemble_kernels([z.to(dtype), other.to(dtype)], *weights)
    assert [k.dtype for k in ours + rounded] == [torch.float32] * 2 + [dtype] * 2
    torch.testing.assert_close(together(ours), together(expected), rtol=1e-5, atol=1e-5)
    wide = assemble_kernels([z.to(dtype).float(), other.to(dtype).float()], *weights)
    torch.testing.assert_close(together(rounded), together(wide).to(dtype), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
def test_the_penalty_is_that_of_the_kernels(dtype):
    inputs = flat_inputs([(3, 2), (5, 7)], 9, 7, (4, 5), (3, 3), dtype=dtype)
    with hf.backend(KERNEL):
        kernels, penalty = assemble_kernels(inputs[4:], *inputs[:4], penalty=True)
    assert penalty.dtype == torch.float32
    assert penalty.shape == ()
    expected = together(kernels).double().square().sum()
    torch.testing.assert_close(penalty.double(), expected, rtol=3 * torch.finfo(dtype).eps, atol=0)


# ---- neighbours, memory -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [KERNEL, "reference"])
def test_13_15_a_tile_does_not_see_its_neighbours(backend):
    *weights, z = flat_inputs([(7, 9)], 19, 21, (4, 5), (3, 3))
    spoiled = z.clone()
    spoiled[2, 3, 5], spoiled[6, 0, 0] = torch.nan, torch.inf
    kernels = lambda z: assemble_kernels([z], *weights)[0].unflatten(1, (-1, 4)).unflatten(0, (-1, 5))
    with hf.backend(backend):
        whole, broken, alone = kernels(z), kernels(spoiled), kernels(z[4:5, 1:2])
    bad = torch.zeros(9, 7, dtype=torch.bool)
    bad[3, 2] = bad[0, 6] = True
    by_tile = lambda k: k.movedim(1, 2).flatten(2)  # [cols, rows, ...]
    assert torch.equal(by_tile(broken)[~bad], by_tile(whole)[~bad])
    assert not by_tile(broken)[bad].isfinite().any()
    if backend == "cpp":
        assert torch.equal(alone[0, :, 0], whole[1, :, 4])


def test_13_a_broken_gradient_stays_with_its_tile():
    *weights, z = flat_inputs([(3, 4)], 19, 21, (4, 5), (3, 3))
    z.requires_grad_()
    with hf.backend(KERNEL):
        (kernel,) = assemble_kernels([z], *weights)
    gy = torch.randn_like(kernel)
    (clean,) = torch.autograd.grad(kernel, z, gy, retain_graph=True)
    gy[6, 9] = torch.nan  # column 1, row 2
    (broken,) = torch.autograd.grad(kernel, z, gy)
    bad = torch.zeros(3, 4, dtype=torch.bool)
    bad[2, 1] = True
    assert torch.equal(broken[~bad], clean[~bad])
    assert broken[bad].isnan().all()


def test_a_kernel_without_a_gradient():
    """Only one of three is used: the others count as zeros."""
    inputs = flat_inputs([(1, 2), (2, 2), (3, 1)], 9, 7, (4, 5), (3, 3), dtype=F64)
    found = []
    for backend in ("cpp", "reference"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        with hf.backend(backend):
            kernels = assemble_kernels(leaves[4:], *leaves[:4])
        grads = torch.autograd.grad(kernels[1].sin().sum(), leaves, materialize_grads=True)
        found.append(grads)
        assert (grads[4] == 0).all()
        assert (grads[6] == 0).all()
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_08_empty():
    *weights, z = flat_inputs([(2, 2)], 3, 4, (2, 3), (1, 1))
    for backend in (KERNEL, "reference"):
        with hf.backend(backend):
            assert assemble_kernels([], *weights) == []
            kernels, penalty = assemble_kernels([], *weights, penalty=True)
            assert kernels == []
            assert penalty == 0
            leaves = [t.clone().requires_grad_() for t in (*weights, z[:0], z[:, :0])]
            kernels, penalty = assemble_kernels(leaves[4:], *leaves[:4], penalty=True)
        assert [tuple(k.shape) for k in kernels] == [(6, 0, 1, 1), (0, 4, 1, 1)]
        grads = torch.autograd.grad([*kernels, penalty], leaves, [*kernels, torch.ones_like(penalty)])
        assert all((g == 0).all() and g.shape == t.shape for g, t in zip(grads, leaves, strict=True))


def test_11_places_beyond_two_to_the_31():
    """An embedding's stride of more than 2^31 elements; only the pages that are touched exist."""
    *weights, z = flat_inputs([(2, 2)], 3, 4, (2, 3), (1, 1), dtype=torch.float16)
    memory = torch.empty_strided((2, 2, 3), (2**31 + 7, 3, 1), dtype=torch.float16)
    memory.copy_(z)
    with hf.backend(KERNEL):
        assert torch.equal(together(assemble_kernels([memory], *weights)), together(assemble_kernels([z], *weights)))


def test_kernels_lie_beside_each_other():
    """One block of memory, written by one call."""
    inputs = flat_inputs([(1, 2), (2, 2)], 3, 4, (2, 3), (1, 1))
    first, second = assemble_kernels(inputs[4:], *inputs[:4])
    assert first.is_contiguous()
    assert second.data_ptr() == first.data_ptr() + first.nbytes


def test_the_hidden_layer_is_not_kept():
    """Saved for backward: the arguments alone."""
    inputs = [t.requires_grad_() for t in flat_inputs([(3, 2), (2, 2)], 9, 7, (4, 5), (3, 3))]
    own = {t.data_ptr() for t in inputs}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        kernels = assemble_kernels(inputs[4:], *inputs[:4])  # noqa: F841
    assert {t.data_ptr() for t in kept} == own


def test_flops():
    from torch.utils.flop_counter import FlopCounterMode

    zs, generator = reference.make_inputs(reference.wide_resnet(2))
    with FlopCounterMode(display=False) as counter:
        assemble_kernels(zs, *generator)
    assert counter.get_total_flops() == 2 * 16 * 144 * 64 * (64 + 966)


def test_sizes_of_the_paper():
    """242 and 966 tiles; kernels of 0.56 and 2.2 million weights."""
    for width, tiles in ((1, 242), (2, 966)):
        grids = reference.wide_resnet(width)
        assert len(grids) == 36
        assert sum(math.prod(grid) for grid in grids) == tiles


def good():
    zs, generator = reference.make_inputs([(1, 2), (2, 2)], 3, 4, (2, 5), (1, 3))
    return {"zs": zs, **generator._asdict()}


BAD = [
    ({"zs": torch.zeros(1, 1, 3)}, TypeError, r"zs must be a sequence of tensors \[rows,cols,Z\]; got Tensor"),
    ({"zs": [1.0]}, TypeError, r"zs\[0\] must be a tensor \[rows,cols,Z\]; got float"),
    ({"zs": [torch.zeros(2, 3)]}, ValueError, r"zs\[0\] must have shape \[rows,cols,Z\]; got \(2, 3\)"),
    ({"zs": [torch.zeros(2, 2, 4)]}, ValueError, r"zs\[0\] must have size 3 in dimension 2 \(weight_in's Z\)"),
    ({"zs": [torch.zeros(2, 2, 3, dtype=torch.int64)]}, TypeError, "must be float32"),
    ({"zs": [torch.zeros(1, 1, 3), torch.zeros(1, 1, 3).half()]}, TypeError, "all zs must have one dtype"),
    ({"zs": [torch.zeros(1, 1, 3, dtype=F64)]}, TypeError, "float64 does not mix"),
    ({"bias_in": torch.zeros(2, 5)}, ValueError, r"bias_in must have size 4 in dimension 1"),
    ({"weight_out": torch.zeros(5, 1, 3, 9)}, ValueError, r"weight_out must have size 4 in dimension 3"),
    ({"bias_out": torch.zeros(5, 3, 3)}, ValueError, r"bias_out must have size 1 in dimension 1"),
    ({"bias_out": torch.zeros(5, 3)}, ValueError, r"bias_out must have shape \[N_out,kh,kw\]; got \(5, 3\)"),
    ({"weight_in": torch.zeros(2, 4, 3).bfloat16()}, TypeError, "all weights must have one dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "error", "words"), BAD)
def test_user_errors(change, error, words):
    with pytest.raises(error, match=words):
        assemble_kernels(**(good() | change))
