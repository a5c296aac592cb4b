"""TargetNet: the compiler, the layout of theta, and the stages, against torch.func.functional_call."""

import copy

import pytest
import torch
import torch.nn.functional as F
from accuracy import error
from torch import nn
from torch.nn.utils import parameters_to_vector

import hyperfast as hf
from hyperfast import backends
from hyperfast.models import targets
from hyperfast.plan import FlattenStage, MLPStage, ResidualStage


def image_template():
    wide = nn.Sequential(nn.Linear(64, 256), hf.nn.Cos(), nn.Linear(256, 64), hf.nn.Cos())
    return nn.Sequential(
        nn.Linear(2, 32), hf.nn.Cos(), nn.Linear(32, 64), hf.nn.Cos(), hf.nn.Residual(wide), nn.Linear(64, 3), nn.Sigmoid()
    )  # fmt: skip


def norm_template(mode="per_target"):
    return nn.Sequential(
        nn.Linear(3, 16),
        hf.nn.PerTargetNorm(16, mode),
        nn.ReLU(),
        nn.Linear(16, 8),
        hf.nn.PerTargetNorm(8, mode),
        nn.Linear(8, 2),
    )


def cnn_template():
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, bias=False), nn.LeakyReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(6 * 6 * 6, 10), nn.Tanh(), nn.Linear(10, 3),
    )  # fmt: skip


def oracle(template, theta, x, net, own=True):
    """vmap of functional_call: PyTorch's own way."""

    def one(weights, x):
        return torch.func.functional_call(template, weights, (x,))

    return torch.func.vmap(one, in_dims=(0, 0 if own else None))(net.unflatten(theta), x)


TEMPLATES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 20), nn.GELU(approximate="tanh"), nn.Linear(20, 2, bias=False), nn.ELU(0.7)), (3,)),
    "linears": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Identity(), nn.Linear(5, 2)), (3,)),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 5), nn.SiLU()), nn.Sequential(nn.Linear(5, 2), nn.LeakyReLU(0.3))), (3,)),
    "activation first": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(3, 5), hf.nn.Sin(), nn.GELU(), nn.Linear(5, 1)), (3,)),
    "residual": (image_template, (2,)),
    "norm": (norm_template, (3,)),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("own", [True, False])
def test_equals_functional_call(name, own):
    make, features = TEMPLATES[name]
    template = make()
    net = hf.nn.TargetNet(template)
    theta = net.init(4).requires_grad_()
    x = torch.randn((4, 11, *features) if own else (11, *features)).requires_grad_()
    y, expected = net(x, theta), oracle(template, theta, x, net, own)
    gy = torch.randn_like(y)
    ours, plain = (torch.autograd.grad(out, (x, theta), gy) for out in (y, expected))
    exact_inputs = [t.detach().double().requires_grad_() for t in (x, theta)]
    exact_y = oracle(copy.deepcopy(template).double(), exact_inputs[1], exact_inputs[0], net, own)
    exact = [exact_y, *torch.autograd.grad(exact_y, exact_inputs, gy.double())]
    for o, p, e in zip((y, *ours), (expected, *plain), exact, strict=True):
        assert o.shape == p.shape
        assert error(o, e) <= 2 * error(p, e) + 1e-6


@pytest.mark.parametrize("own", [True, False])
def test_dilated_and_grouped_convolutions_run_on_the_reference(own):
    template = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, padding="same", dilation=(2, 1)), nn.SiLU(),
        nn.MaxPool2d(2), nn.Conv2d(6, 4, 2, groups=2, bias=False), nn.Tanh(), nn.Conv2d(4, 3, 3, stride=2), nn.Flatten(),
    )  # fmt: skip
    net = hf.nn.TargetNet(template)
    general = "batched_cnn_dilated_or_grouped"
    assert [stage.served_by for stage in net.plan.stages] == ["batched_cnn", general, "batched_cnn", "torch"]
    assert net.num_weights == sum(p.numel() for p in template.parameters())
    assert net.plan.flops_per_row((2, 11, 12)) == 2 * (108 * 132 + 54 * 120 + 48 * 20 + 108 * 2)  # windows' pixels
    theta, x = net.init(4).requires_grad_(), torch.randn((4, 5, 2, 11, 12) if own else (5, 2, 11, 12)).requires_grad_()
    backends._warned.clear()
    with pytest.warns(hf.HyperfastFallbackWarning, match=f"{general} has no cpp kernel"):
        y = net(x, theta)
    expected = oracle(template, theta, x, net, own)
    torch.testing.assert_close(y, expected)
    for ours, plain in zip(*(torch.autograd.grad(out.sin().sum(), (x, theta)) for out in (y, expected)), strict=True):
        torch.testing.assert_close(ours, plain)
    with hf.backend("cpp"), pytest.raises(RuntimeError, match=f"can't serve {general}"):
        net(x, theta)


def test_batched_conv2d_dilated_and_grouped():
    x, weight, bias = torch.randn(3, 2, 4, 9, 8), torch.randn(3, 6, 2, 3, 2), torch.randn(3, 6)
    options = {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 2}
    with hf.backend("reference"):
        y = hf.ops.batched_conv2d(x, weight, bias, activation="relu", pool=2, **options)
    for b in range(3):
        expected = F.max_pool2d(F.conv2d(x[b], weight[b], bias[b], **options).relu(), 2)
        torch.testing.assert_close(y[b], expected)
    with pytest.raises(ValueError, match="groups must divide weight's 6 output channels; got 4"):
        hf.ops.batched_conv2d(x, weight, groups=4)
    with pytest.raises(ValueError, match="dilation must be one or two numbers of at least 1; got 0"):
        hf.ops.batched_conv2d(x, weight, groups=2, dilation=0)


def test_theta_is_parameters_to_vector():
    template = nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Sequential(nn.Linear(20, 5), nn.ReLU(), nn.Linear(5, 2)))
    net = hf.nn.TargetNet(template)
    theta = parameters_to_vector(template.parameters()).detach().unsqueeze(0)
    assert net.num_weights == theta.shape[1]
    assert [(name, shape) for name, shape, _ in net.layout] == [
        (n, tuple(p.shape)) for n, p in template.named_parameters()
    ]
    weights = net.unflatten(theta)
    assert all(
        torch.equal(weights[n][0], p) and weights[n].data_ptr() >= theta.data_ptr()
        for n, p in template.named_parameters()
    )
    assert torch.equal(net.flatten(weights), theta)
    x = torch.randn(6, 3)
    torch.testing.assert_close(net(x, theta)[0], template(x))


def test_residual_names_and_module():
    template = image_template()
    assert "4.0.weight" in dict(template.named_parameters())
    f = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    x = torch.randn(5, 3)
    assert torch.equal(hf.nn.Residual(f)(x), x + f(x))
    narrow = nn.Sequential(nn.Linear(3, 4), hf.nn.Residual(nn.Sequential(nn.Linear(4, 1))))
    with pytest.raises(ValueError, match=r"Residual: f\(x\) must have x's shape \(5, 4\); got \(5, 1\)"):
        narrow(x)
    net = hf.nn.TargetNet(narrow)
    with pytest.raises(ValueError, match=r"layer '1': f\(x\) must have x's shape \(2, 5, 4\); got \(2, 5, 1\)"):
        net(x, net.init(2))
    with pytest.raises(TypeError, match=r"Residual takes an nn\.Sequential"):
        hf.nn.Residual(nn.Linear(3, 3))


def test_plan_groups_layers_and_reads_well():
    net = hf.nn.TargetNet(image_template())
    first, residual, last = net.plan.stages
    assert isinstance(first, MLPStage)
    assert first.mlp.widths == (2, 32, 64)
    assert isinstance(residual, ResidualStage)
    assert residual.stages[0].mlp.widths == (64, 256, 64)
    assert last.mlp.widths == (64, 3)
    assert net.num_weights == 35_491
    text = str(net.plan)
    for words in ("MLP 64-256-64 (cos, cos)", "x + f(x)", "batched_mlp", "35,491 weights per network"):
        assert words in text
    with pytest.raises(AttributeError):
        net.plan.stages = ()


def test_owns_no_weights_but_norms():
    assert hf.nn.TargetNet(image_template()).state_dict() == {}
    net = hf.nn.TargetNet(norm_template("shared"))
    assert set(net.state_dict()) == {
        f"norms.{i}.{n}" for i in (1, 4) for n in ("gamma", "beta", "running_mean", "running_var")
    }
    assert not any(p is q for p in net.parameters() for q in norm_template().parameters())


def test_init_has_pytorch_s_bounds_and_follows_its_generator():
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(16, 50), nn.ReLU(), nn.Linear(50, 4)))
    theta = net.init(300, torch.Generator().manual_seed(3))
    assert torch.equal(theta, net.init(300, torch.Generator().manual_seed(3)))
    for name, value in net.unflatten(theta).items():
        bound = (16 if name.startswith("0") else 50) ** -0.5
        assert value.abs().max() <= bound
        assert abs(value.std().item() - bound / 3**0.5) < 0.02 * bound


# ---- norms ------------------------------------------------------------------------------------------


def test_per_target_norm_on_other_points():
    net = hf.nn.TargetNet(norm_template())
    theta, grid, points = net.init(3), torch.randn(40, 3), torch.randn(3, 7, 3)
    stats = net.statistics(theta, grid)
    assert {name: tuple(t.shape for t in s) for name, s in stats.items()} == {
        "1": ((3, 1, 16),) * 2,
        "4": ((3, 1, 8),) * 2,
    }
    torch.testing.assert_close(net(grid, theta, stats=stats), net(grid, theta))
    one = net(points[:, :1], theta, stats=stats)
    torch.testing.assert_close(net(points, theta, stats=stats)[:, :1], one)
    with pytest.raises(ValueError, match="stats must have the layers"):
        net(points, theta, stats={"1": stats["1"]})


def test_shared_norm_is_batch_norm():
    template = nn.Sequential(nn.Linear(3, 6), hf.nn.PerTargetNorm(6, "shared"))
    net, batch_norm = hf.nn.TargetNet(template), nn.BatchNorm1d(6)
    theta, x = net.init(4), torch.randn(4, 9, 3)
    z = hf.ops.batched_linear(x, *net.unflatten(theta).values())
    for _ in range(2):
        torch.testing.assert_close(net(x, theta), batch_norm(z.flatten(0, 1)).view(4, 9, 6))
    net.eval()
    batch_norm.eval()
    torch.testing.assert_close(net(x, theta), batch_norm(z.flatten(0, 1)).view(4, 9, 6))


def test_norms_learn():
    net = hf.nn.TargetNet(norm_template())
    net(torch.randn(2, 9, 3), net.init(2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# ---- convolutional templates ------------------------------------------------------------------------


def test_cnn():
    template = cnn_template()
    net = hf.nn.TargetNet(template)
    assert net.num_weights == sum(p.numel() for p in template.parameters())
    assert [stage.served_by for stage in net.plan.stages] == ["batched_cnn", "torch", "torch", "batched_mlp"]
    theta, own, shared = net.init(3), torch.randn(3, 5, 1, 28, 28), torch.randn(5, 1, 28, 28)
    torch.testing.assert_close(net(own, theta), oracle(template, theta, own, net), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        net(shared, theta), oracle(template, theta, shared, net, own=False), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("target", "weights", "image"),
    [("deutsch_mnist", 20_018, (1, 28, 28)), ("hypergan_mnist", 31_520, (1, 28, 28)), ("hypergan_cifar", 57_520, (3, 32, 32))],
)  # fmt: skip
def test_the_papers_targets_run_on_kernels_alone(target, weights, image):
    template = getattr(targets, target)()
    net = hf.nn.TargetNet(template)
    assert net.num_weights == weights
    assert [stage.served_by for stage in net.plan.stages] == ["batched_cnn", "torch", "batched_mlp"]
    assert isinstance(net.plan.stages[1], FlattenStage)
    theta, x = net.init(2), torch.rand(2, 3, *image)
    with hf.backend("cpp"):  # raises where a stage has no kernel
        y = net(x, theta)
    torch.testing.assert_close(y, oracle(template, theta, x, net), rtol=1e-4, atol=1e-5)


def test_dropout_only_in_training():
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(3, 200), nn.Dropout(0.5), nn.Linear(200, 200)))
    theta, x = net.init(2), torch.randn(2, 4, 3)
    assert not torch.equal(net(x, theta), net(x, theta))
    net.eval()
    assert torch.equal(net(x, theta), net(x, theta))


# ---- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "error_type", "words"),
    [
        (nn.Linear(3, 2), TypeError, "template must be an nn.Sequential; got Linear"),
        (nn.Sequential(nn.Linear(3, 2), nn.LSTM(2, 2)), TypeError, "layer '1' is a LSTM.*Supported: Linear, Conv2d"),
        (nn.Sequential(nn.Sequential(nn.Softmax(0))), TypeError, "layer '0.0' is a Softmax"),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(4, 2)), ValueError, "layer '1' takes 4 features but gets 2"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(2, 4, 3)), ValueError, "layer '1' takes 2 channels but gets 4"),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, padding_mode="reflect")),
            ValueError,
            "layer '0': Conv2d with padding_mode='ref",
        ),
        (nn.Sequential(nn.Conv2d(4, 4, 2, padding="same")), ValueError, "odd kernel sizes"),
        (nn.Sequential(nn.Flatten(0)), ValueError, r"Flatten\(0, -1\) is not supported"),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), ValueError, "ceil_mode=True is not supported"),
    ],
)
def test_template_errors_name_the_layer(template, error_type, words):
    with pytest.raises(error_type, match=words):
        hf.nn.TargetNet(template)


def test_tied_weights_are_refused():
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="'0' and '2' are the same module"):
        hf.nn.TargetNet(nn.Sequential(layer, nn.ReLU(), layer))


def test_call_errors():
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(3, 2)))
    theta = net.init(4)
    with pytest.raises(ValueError, match="theta must have size 8"):
        net(torch.zeros(4, 5, 3), theta[:, :-1])
    with pytest.raises(ValueError, match="x must have theta's 4 networks"):
        net(torch.zeros(3, 5, 3), theta)
    with pytest.raises(ValueError, match=r"x must have 2 \(shared\) or 3 \(own\) dimensions for a first Linear"):
        net(torch.zeros(3), theta)
    with pytest.raises(ValueError, match="x must have 2 dimensions"):
        net(torch.zeros(4, 5, 3), theta, shared=True)
    ambiguous = hf.nn.TargetNet(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="pass shared=True or False"):
        ambiguous(torch.zeros(3, 2, 2), ambiguous.init(3))
    assert ambiguous(torch.zeros(3, 2, 2), ambiguous.init(5), shared=True).shape == (5, 3, 2)
    with pytest.raises(ValueError, match="weights must have the names"):
        net.flatten({"0.weight": torch.zeros(1, 2, 3)})
