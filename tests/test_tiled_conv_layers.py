"""TileHypernetwork and HyperConv2d: the paper's counts, kernels assembled once, and never stale."""

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from ranks import on_ranks
from torch import nn

import hyperfast as hf
from hyperfast.ops import tiled_conv as ops
from hyperfast.reference import tiled_conv as reference

CHANNELS = (8, 4, 12)


class Net(nn.Module):
    """Two generated convolutions, one with a stride; a plain layer before and behind."""

    def __init__(self, kernel_size=3, **options):
        super().__init__()
        self.g = hf.nn.TileHypernetwork(6, 5, (4, 2), kernel_size, **options)
        self.first = nn.Conv2d(3, CHANNELS[0], 3)
        self.conv = hf.nn.HyperConv2d(CHANNELS[0], CHANNELS[1], self.g, padding=1)
        self.last = hf.nn.HyperConv2d(CHANNELS[1], CHANNELS[2], self.g, stride=2, bias=False)
        self.head = nn.Linear(CHANNELS[2], 2)

    def forward(self, x):
        h = F.relu(self.conv(F.relu(self.first(x))))
        return self.head(self.last(h).relu().mean((2, 3)))


def calls(monkeypatch):
    """Counts the forward calls of the raw op."""
    count = []
    original = ops.TiledConv.apply
    monkeypatch.setattr(ops.TiledConv, "apply", lambda *a: count.append(len(a) - 6) or original(*a))
    return count


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def images(n=4):
    return torch.randn(n, 3, 11, 9, generator=torch.Generator().manual_seed(5))


# ---- names, counts, shapes --------------------------------------------------------------------------


def test_parameter_counts_of_the_paper():
    """Section 4.1: 4,240 for the generator of MNIST's kernel and 4 for z; table 6 counts 4,244."""
    g = hf.nn.TileHypernetwork(4, 4, (16, 16), 7, init="paper")
    conv = hf.nn.HyperConv2d(16, 16, g, bias=False)
    assert sum(p.numel() for p in g.parameters()) == 4240
    assert sum(p.numel() for p in conv.parameters()) == 4244
    assert conv.weight.shape == (16, 16, 7, 7)
    wide = hf.nn.TileHypernetwork()
    assert sum(p.numel() for p in wide.parameters()) == 75_920
    for width, embeddings in ((1, 15_488), (2, 61_824)):
        assert sum(rows * cols for rows, cols in reference.wide_resnet(width)) * 64 == embeddings


def test_names_and_shapes():
    net = Net(kernel_size=(3, 1))
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {
        "g.weight_in": (4, 5, 6), "g.bias_in": (4, 5), "g.weight_out": (2, 3, 1, 5), "g.bias_out": (2, 3, 1),
        "first.weight": (8, 3, 3, 3), "first.bias": (8,), "conv.embedding": (2, 2, 6), "conv.bias": (4,),
        "last.embedding": (1, 6, 6), "head.weight": (2, 12), "head.bias": (2,),
    }  # fmt: skip
    assert net.conv.generator is net.last.generator is net.g
    assert net.conv.weight.shape == (4, 8, 3, 1)
    assert "kernel_size=(3, 1)" in repr(net)
    assert {"conv.embedding", "conv.generator.weight_in", "g.weight_in"} < set(net.state_dict())
    copy = Net(kernel_size=(3, 1))
    copy.load_state_dict(net.state_dict())
    assert torch.equal(copy.last.weight, net.last.weight)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}])
def test_it_is_a_convolution_with_the_generated_kernel(options):
    g = hf.nn.TileHypernetwork(6, 5, (4, 2), 3)
    conv = hf.nn.HyperConv2d(8, 6, g, **options)
    nn.init.normal_(conv.bias)
    plain = nn.Conv2d(8, 6, 3, **options)
    with torch.no_grad():
        plain.weight.copy_(reference.assemble_kernel(conv.embedding, reference.Generator(*g.parameters())))
        plain.bias.copy_(conv.bias)
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(conv(x), plain(x))
    torch.testing.assert_close(conv(x[0]), plain(x[0]))


def test_he_initialisation():
    """Kernels of every width start at He's scale; "paper" far below it."""
    torch.manual_seed(0)
    g = hf.nn.TileHypernetwork()
    for channels in (16, 32, 128):
        std = hf.nn.HyperConv2d(channels, 128, g).weight.std().item()
        assert std == pytest.approx((2 / (channels * 9)) ** 0.5, rel=0.15)
    small = hf.nn.TileHypernetwork(init="paper")
    conv = hf.nn.HyperConv2d(16, 16, small)
    for weight in (small.weight_in, small.weight_out, conv.embedding):
        assert weight.abs().max() <= 0.02
        assert weight.std().item() == pytest.approx(0.0088, rel=0.1)  # 0.01, truncated at two of them
    assert conv.weight.abs().max() < 1e-3


# ---- assembled --------------------------------------------------------------------------------------


def test_assembled_once_and_the_same(monkeypatch):
    net, x = Net(), images()
    net(x).square().sum().backward()
    expected, out = gradients(net), net(x).detach()
    net.zero_grad()
    count = calls(monkeypatch)
    with net.g.assembled(net):
        y = net(x)
        y.square().sum().backward()
    assert count == [2]
    torch.testing.assert_close(y, out)
    for name, grad in gradients(net).items():
        torch.testing.assert_close(grad, expected[name], msg=name)
    assert net.conv.weight is not net.conv.weight  # outside again its own


def test_the_penalty_comes_with_the_kernels():
    net = Net()
    by_hand = net.conv.weight.square().sum() + net.last.weight.square().sum()
    expected = torch.autograd.grad(by_hand, net.g.weight_in)[0]
    with net.g.assembled(net) as kernels:
        assert [tuple(k.shape) for k in kernels.kernels] == [(4, 8, 3, 3), (12, 4, 3, 3)]
        penalty = kernels.penalty
    torch.testing.assert_close(penalty, by_hand)
    torch.testing.assert_close(torch.autograd.grad(penalty, net.g.weight_in)[0], expected)


def add_one(p):
    with torch.no_grad():
        p.add_(1)


def change_generator(net):
    net(images())
    add_one(net.g.weight_in)
    net(images())


def replace_embedding(net):
    net.last.embedding = nn.Parameter(net.last.embedding.detach() + 1)
    net(images())


def step_and_leave(net):
    """No kernel is used again, or by a compiled model, which would not look."""
    net(images()).sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()


def break_off(net):
    add_one(net.g.weight_in)
    raise KeyError("mine")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (change_generator, RuntimeError, r"stale: weight_in changed inside assembled\(\)"),
        (replace_embedding, RuntimeError, "the embedding of convolution 1 changed"),
        (step_and_leave, RuntimeError, "step the optimiser after the block"),
        (break_off, KeyError, "mine"),
    ],
)
def test_a_changed_parameter_is_an_error(change, error, words):
    """That hides no other; outside all is well."""
    net = Net()

    def block():
        with net.g.assembled(net):
            change(net)

    with pytest.raises(error, match=words):
        block()
    assert net.conv._assembly is None
    net(images())


def test_a_stale_penalty_is_an_error():
    net = Net()
    kernels = net.g.assembled(net).__enter__()
    add_one(net.g.bias_out)
    with pytest.raises(RuntimeError, match="bias_out changed"):
        kernels.penalty  # noqa: B018


def test_steps_between_blocks():
    net, x = Net(), images()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        with net.g.assembled(net):
            loss = net(x).square().sum()
        assert loss == net(x).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_modes_inside_do_not_mix(monkeypatch):
    """Kernels made without a graph must not serve a loss, nor those of autocast a plain layer."""
    net, x, count = Net(), images(), calls(monkeypatch)
    with torch.no_grad():
        context = net.g.assembled(net)
        context.__enter__()
        net(x)
    net(x).sum().backward()
    assert net.g.weight_in.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert net.conv.weight.dtype == torch.bfloat16
        net(x)
    net(x)
    context.__exit__(None, None, None)
    assert len(count) == 3


def test_nested_and_foreign():
    net, other = Net(), Net()
    with net.g.assembled(net) as outer:
        kernel = net.conv.weight
        with net.g.assembled(nn.ModuleList([net.conv])) as inner:
            assert net.conv.weight is inner.kernels[0]
            assert net.last.weight is outer.kernels[1]
        assert net.conv.weight is kernel
        assert other.conv.weight is not other.conv.weight
    with pytest.raises(ValueError, match="must have a HyperConv2d with this generator; got Net with none"):
        net.g.assembled(other).__enter__()


def test_17_autocast_gives_kernels_in_its_type():
    net, x = Net(), images()
    with torch.autocast("cpu", torch.bfloat16), net.g.assembled(net) as kernels:
        assert {k.dtype for k in kernels.kernels} == {torch.bfloat16}
        assert kernels.penalty.dtype == torch.float32
        net(x).float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())


def test_gradients_in_other_layouts():
    """As a convolution in channels_last gives them; each kernel's its own."""
    zs, generator = reference.make_inputs([(2, 1), (1, 3)], 6, 5, (4, 2), (3, 3))
    leaves = [t.requires_grad_() for t in generator]
    kernels = ops.assemble_kernels(zs, *leaves)
    grads = [torch.randn_like(k) for k in kernels]
    expected = torch.autograd.grad(kernels, leaves, grads, retain_graph=True)
    others = [grads[0].to(memory_format=torch.channels_last), grads[1].transpose(0, 1).contiguous().transpose(0, 1)]
    for a, b in zip(torch.autograd.grad(kernels, leaves, others), expected, strict=True):
        assert torch.equal(a, b)


# ---- torch's transformations ------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_16_compile(inside):
    """The block around the compiled model; without a block. Two sizes, no graph break."""
    torch._dynamo.reset()
    net = Net()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=graphs, dynamic=True)
    for n in (3, 5):
        for model in (net, compiled):
            net.zero_grad()
            if inside:
                with net.g.assembled(net):
                    y = model(images(n))
            else:
                y = model(images(n))
            y.square().sum().backward()
            if model is net:
                expected, out = gradients(net), y
        torch.testing.assert_close(y, out)
        for name, grad in gradients(net).items():
            torch.testing.assert_close(grad, expected[name], msg=name)
    assert graphs.frame_count <= 2


def test_16_a_compiled_model_meets_fresh_kernels():
    """Kernels of another step are not those that were compiled in."""
    torch._dynamo.reset()
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(4):
        with net.g.assembled(net):
            loss = compiled(images()).square().sum()
        assert loss == net(images()).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Loss(nn.Module):
    """A model whose kernels are assembled in its own forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = Net()

    def forward(self, x):
        with self.net.g.assembled(self.net) as kernels:
            return self.net(x).square().sum() + 0.01 * len(x) * kernels.penalty


def gradients_of_rank(rank, world, outside):
    model, x = Loss(), images().chunk(world)[rank]
    if outside:
        parallel = nn.parallel.DistributedDataParallel(model.net)
        with model.net.g.assembled(parallel) as kernels:
            loss = parallel(x).square().sum() + 0.01 * len(x) * kernels.penalty
    else:
        parallel = nn.parallel.DistributedDataParallel(model)
        loss = parallel(x)
    loss.backward()
    return gradients(model)


@pytest.mark.parametrize("outside", [False, True])
def test_20_two_ranks_have_the_gradients_of_one(outside, tmp_path):
    ranks = on_ranks(gradients_of_rank, 2, tmp_path, outside)
    model = Loss()
    model(images()).backward()
    whole = gradients(model)
    for found in ranks:
        difference = torch.cat([(len(ranks) * found[n] - g).flatten() for n, g in whole.items()]).norm()
        assert difference <= 1e-6 * torch.cat([g.flatten() for g in whole.values()]).norm()


# ---- errors -----------------------------------------------------------------------------------------

BAD = [
    (lambda g: hf.nn.HyperConv2d(24, 32, g), "in_channels must be a multiple of the tile's N_in = 16; got 24"),
    (lambda g: hf.nn.HyperConv2d(32, 40, g), "out_channels must be a multiple of the tile's N_out = 32; got 40"),
    (lambda g: hf.nn.HyperConv2d(0, 32, g), "in_channels must be a positive whole number; got 0"),
    (lambda g: hf.nn.HyperConv2d(16, 32, g, padding="valid?"), "padding must be a number"),
    (lambda g: hf.nn.TileHypernetwork(0), "embedding_size must be a positive whole number; got 0"),
    (lambda g: hf.nn.TileHypernetwork(tile=(16, 0)), "tile must be a positive whole number; got 0"),
    (lambda g: hf.nn.TileHypernetwork(tile=(1, 2, 3)), r"tile must be a positive whole number or a pair of them; got \(1"),
    (lambda g: hf.nn.TileHypernetwork(kernel_size=3.0), "kernel_size must be a positive"),
    (lambda g: hf.nn.TileHypernetwork(init="small"), "init must be 'he' or 'paper'; got 'small'"),
    (lambda g: g(torch.zeros(1, 1, 63)), r"zs\[0\] must have size 64 in dimension 2"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), BAD)
def test_user_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make(hf.nn.TileHypernetwork(tile=(16, 32)))


def test_a_generator_is_a_generator():
    with pytest.raises(TypeError, match=r"generator must be an hf\.nn\.TileHypernetwork; got Linear"):
        hf.nn.HyperConv2d(16, 16, nn.Linear(1, 1))
