"""Triton kernels of tiled_conv under the interpreter: sizes, the penalty, what may be absent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tiled_conv import flat_inputs, run, together

import hyperfast as hf
from hyperfast.ops import assemble_kernels

pytestmark = pytest.mark.interpreter


def assert_same(*arguments, **options):
    """Kernels, penalty and gradients as the reference's in float64, within rounding."""
    inputs = flat_inputs(*arguments, **options)
    for a, b in zip(run("triton", inputs), run("reference", [t.double() for t in inputs]), strict=True):
        scale = b.abs().amax().item() if b.numel() else 1
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5 * (1 + scale))


@settings(max_examples=25, deadline=None)
@given(
    grids=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3),
    tile=st.tuples(st.integers(1, 5), st.integers(1, 9)), kernel_size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    embedding=st.integers(1, 20), hidden=st.integers(1, 20),
)  # fmt: skip
def test_07_08_any_size(grids, tile, kernel_size, embedding, hidden):
    assert_same(grids, embedding, hidden, tile, kernel_size)


def test_sizes_past_a_block():
    """Hidden and embedding elements, rows and tiles past a block of each; tiles in several parts."""
    assert_same([(2, 1)], 70, 3, (2, 2), (1, 1))
    assert_same([(2, 1)], 3, 70, (2, 30), (1, 3))
    assert_same([(17, 19)], 3, 2, (1, 2), (1, 1))


def test_13_a_tile_does_not_see_its_neighbours():
    *weights, z = flat_inputs([(3, 4)], 19, 21, (4, 5), (3, 3))
    spoiled = z.clone()
    spoiled[2, 1, 5] = torch.nan
    with hf.backend("triton"):
        whole, broken = (assemble_kernels([t], *weights)[0] for t in (z, spoiled))
    bad = torch.zeros(20, 12, dtype=torch.bool)
    bad[5:10, 8:] = True
    assert torch.equal(broken[~bad], whole[~bad])
    assert broken[bad].isnan().all()


def test_a_kernel_without_a_gradient():
    inputs = flat_inputs([(1, 2), (2, 2), (3, 1)], 9, 7, (4, 5), (3, 3))
    found = []
    for backend in ("triton", "reference"):
        leaves = [t.clone().requires_grad_() for t in inputs]
        with hf.backend(backend):
            kernels = assemble_kernels(leaves[4:], *leaves[:4])
        found.append(torch.autograd.grad(kernels[1].sin().sum(), leaves, materialize_grads=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_08_empty():
    *weights, z = flat_inputs([(2, 2)], 3, 4, (2, 3), (1, 1))
    with hf.backend("triton"):
        assert assemble_kernels([], *weights, penalty=True) == ([], torch.zeros(()))
        leaves = [t.clone().requires_grad_() for t in (*weights, z[:0], z[:, :0])]
        kernels, penalty = assemble_kernels(leaves[4:], *leaves[:4], penalty=True)
    assert [tuple(k.shape) for k in kernels] == [(6, 0, 1, 1), (0, 4, 1, 1)]
    grads = torch.autograd.grad([*kernels, penalty], leaves, [*kernels, torch.ones_like(penalty)])
    assert all((g == 0).all() and g.shape == t.shape for g, t in zip(grads, leaves, strict=True))


@pytest.mark.parametrize("kinds", [(torch.float32, torch.float16), (torch.float16, torch.float32)])
def test_weights_and_embeddings_of_two_types(kinds):
    """What float32 copies of them give."""
    weight_type, z_type = kinds
    inputs = flat_inputs([(3, 2), (1, 1)], 9, 7, (4, 4), (3, 3))
    low = [*(w.to(weight_type) for w in inputs[:4]), *(z.to(z_type) for z in inputs[4:])]
    ours, expected = run("triton", low), run("reference", [t.float() for t in low])
    assert [t.dtype for t in ours] == [z_type] * 2 + [torch.float32] + [weight_type] * 4 + [z_type] * 2
    for a, b in zip(ours, expected, strict=True):
        assert (a.double() - b.double()).norm() <= 2e-3 * b.double().norm()


def test_11_places_beyond_two_to_the_31():
    """The second tile lies past what 32 bits address; only the pages that are touched exist."""
    from hyperfast.kernels import tiled_conv as kernels

    zs = [torch.ones(1, 1, 2), torch.ones(1, 1, 2)]
    weights = flat_inputs([], 2, 3, (2, 3), (1, 1))
    call = kernels._Call(zs, weights)
    far = 2**31 + 7
    table = torch.tensor([[0, 2], [far, 2]])
    memory = torch.empty_strided((2, 6), (far, 1), dtype=torch.float16)
    c, shared = call.config(torch.float32)
    kernels.assemble_kernel[(2,)](
        call.z, table, *call.weights, memory, memory, 2, D=3, SQUARES=False, BH=c.h, **shared
    )  # fmt: skip
    with hf.backend("reference"):
        expected = together(assemble_kernels(zs[:1], *weights)).flatten().half()
    torch.testing.assert_close(memory[1], expected)
    torch.testing.assert_close(memory[0], expected)


def test_03_schema_and_fakes():
    *weights, z, other = flat_inputs([(2, 1), (1, 2)], 3, 4, (2, 3), (1, 2))
    zs, none = [z, other], z.new_empty(0)
    checks = "test_schema", "test_faketensor"
    forward, backward = torch.ops.hyperfast.tiled_conv_triton, torch.ops.hyperfast.tiled_conv_backward_triton
    for penalty in (False, True):
        torch.library.opcheck(forward, (zs, weights, penalty), test_utils=checks)
    kernels = [torch.randn_like(k) for k in assemble_kernels(zs, *weights)]
    for arguments in (
        (kernels, none, [], zs, weights, True, True),
        ([kernels[0], none], torch.ones(()), kernels, zs, weights, True, False),
        (kernels, none, [], zs, weights, False, True),
    ):
        torch.library.opcheck(backward, arguments, test_utils=checks)
    found = backward(kernels, none, [], zs, weights, True, True)
    assert len({g.untyped_storage().data_ptr() for g in found}) == len(found)
