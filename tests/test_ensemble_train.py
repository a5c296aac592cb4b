"""Training at once against training alone: plain nn.Modules, each with its own torch optimiser."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accuracy import error
from conftest import devices
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import hyperfast as hf

MEMBERS, STEPS, N = 3, 12, 8
MLP = lambda: nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 4))
CNN = lambda: nn.Sequential(
    nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 4 * 4, 4)
)
TEMPLATES = {"mlp": (MLP, (6,)), "cnn": (CNN, (1, 8, 8))}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 1e-2}),
}


def cross_entropy(outputs, targets):
    """[M,n,C], [M,n] -> [M]."""
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)


def data(row, same, dtype=torch.float64):
    """x [T,M,n,...] (or [T,n,...]) and labels."""
    lead = (STEPS, N) if same else (STEPS, MEMBERS, N)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(*lead, *row, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(4, lead, generator=generator)


def alone(template, theta, x, y, optimizer, options):
    """One network trained by plain PyTorch: theta [P], x [T,n,...], y [T,n] -> [P]."""
    net = copy.deepcopy(template).to(theta.dtype)
    vector_to_parameters(theta.clone(), net.parameters())
    stepper = optimizer(net.parameters(), **options)
    for inputs, targets in zip(x, y, strict=True):
        stepper.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        stepper.step()
    return parameters_to_vector(net.parameters()).detach()


def initial(template, seed=0, dtype=torch.float64):
    return hf.nn.TargetNet(template).init(MEMBERS, torch.Generator().manual_seed(seed)).to(dtype)


def every_member_alone(template, x, y, same, optimizer, options):
    own = (lambda t, m: t) if same else (lambda t, m: t[:, m])
    start = initial(template, dtype=x.dtype)
    return torch.stack(
        [alone(template, start[m], own(x, m), own(y, m), optimizer, options) for m in range(MEMBERS)]
    )  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_member_equals_the_network_trained_alone(name, same, optimizer):
    """In float64, whose rounding (1e-16) twelve steps of a smooth optimiser multiply by far less than a million."""
    make, row = TEMPLATES[name]
    template = make()
    kind, options = OPTIMIZERS[optimizer]
    x, y = data(row, same)
    theta = hf.ensemble.train(
        template, MEMBERS, lambda step: (x[step], y[step]), cross_entropy, kind, steps=STEPS, same_batches=same, **options
    )  # fmt: skip
    expected = every_member_alone(template, x, y, same, kind, options)
    torch.testing.assert_close(theta, expected, rtol=0, atol=1e-10 * expected.abs().max().item())
    moved = (theta - initial(template)).norm(dim=1)
    assert (moved > 100 * 1e-10).all()
    assert all((theta[i] - theta[j]).norm() > 0.1 for i in range(MEMBERS) for j in range(i))


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("name", TEMPLATES)
def test_float32_is_as_exact_as_pytorch(name, device):
    make, row = TEMPLATES[name]
    template = make()
    kind, options = OPTIMIZERS["sgd"]
    x, y = data(row, same=False, dtype=torch.float32)
    theta = hf.ensemble.train(
        template, MEMBERS, lambda step: (x[step].to(device), y[step].to(device)), cross_entropy, kind, steps=STEPS, **options
    )  # fmt: skip
    assert theta.dtype == torch.float32
    assert theta.device.type == device
    exact = every_member_alone(template, x.double(), y, False, kind, options)
    plain = every_member_alone(template, x, y, False, kind, options)
    assert error(theta.cpu(), exact) <= 2 * error(plain, exact) + 3 * torch.finfo(torch.float32).eps


def recorded(same, seed=0, steps=9, total=20, size=6, **options):
    """What members saw of a data set whose targets are row numbers: [T,M,n]; and the trained theta."""
    inputs, seen = torch.randn(total, 6, generator=torch.Generator().manual_seed(5)), []

    def loss_fn(outputs, targets):
        seen.append((targets, outputs))
        return outputs.square().mean((1, 2))

    theta = hf.ensemble.train(
        MLP(), MEMBERS, (inputs, torch.arange(total)), loss_fn, steps=steps, seed=seed, same_batches=same, batch_size=size,
        **options,
    )  # fmt: skip
    return torch.stack([targets for targets, _ in seen]), theta, inputs, seen


def test_tensors_are_drawn_without_replacement_in_an_order_of_each_member():
    rows, theta, inputs, seen = recorded(same=False)
    assert rows.shape == (9, MEMBERS, 6)
    for epoch in rows.split(3):  # 20 rows: three batches of six, two rows left over
        for m in range(MEMBERS):
            assert len(set(epoch[:, m].flatten().tolist())) == 18
    assert not torch.equal(rows[:, 0], rows[:, 1])
    assert not torch.equal(rows[:3], rows[3:6])
    first = hf.nn.TargetNet(MLP())(inputs[rows[0]], initial(MLP(), dtype=torch.float32))
    assert torch.equal(seen[0][1], first)  # the inputs that belong to these targets
    again = hf.ensemble.train(
        MLP(), MEMBERS, lambda step: (inputs[rows[step]], rows[step]), lambda out, _: out.square().mean((1, 2)), steps=9
    )
    assert torch.equal(theta, again)


def test_fewer_inputs_than_a_batch_are_all_taken():
    rows, *_ = recorded(same=False, total=4, steps=3)
    assert torch.equal(rows.sort(-1).values, torch.arange(4).expand(3, MEMBERS, 4))


def test_same_batches_are_one_order():
    rows, *_ = recorded(same=True)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert len(set(rows[:3, 0].flatten().tolist())) == 18


@pytest.mark.parametrize("same", [False, True])
def test_14_seeds_reproduce_bitwise(same):
    (rows, theta, *_), (rows_again, again, *_) = recorded(same, seed=4), recorded(same, seed=4)
    assert torch.equal(rows, rows_again)
    assert torch.equal(theta, again)
    other_rows, other, *_ = recorded(same, seed=5)
    assert not torch.equal(rows, other_rows)
    assert not torch.equal(theta, other)


def test_dropout_follows_the_seed_and_leaves_the_default_generator_alone():
    template = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Dropout(0.5), nn.Linear(30, 4))
    x, y = data((6,), same=False)
    state = torch.get_rng_state()
    run = lambda seed, start=template: hf.ensemble.train(
        start, MEMBERS, lambda step: (x[step], y[step]), cross_entropy, steps=STEPS, seed=seed, lr=0.01
    )
    assert torch.equal(run(1), run(1))
    assert torch.equal(torch.get_rng_state(), state)
    without = nn.Sequential(nn.Linear(6, 30), nn.ReLU(), nn.Linear(30, 4))
    assert not torch.equal(run(1), run(1, without))


def test_iterables_begin_again_and_loaders_serve():
    x, y = torch.randn(10, 6), torch.randint(4, (10,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5)
    assert len(loader) < 7
    theta = hf.ensemble.train(MLP(), MEMBERS, loader, cross_entropy, steps=7, same_batches=True)
    halves = lambda step: (x.split(5)[step % 2], y.split(5)[step % 2])
    assert torch.equal(theta, hf.ensemble.train(MLP(), MEMBERS, halves, cross_entropy, steps=7, same_batches=True))
    with pytest.raises(ValueError, match="batches must yield a batch for every step; got 2"):
        hf.ensemble.train(MLP(), MEMBERS, iter(list(loader)), cross_entropy, steps=7, same_batches=True)


def test_it_learns_and_reports():
    x = torch.randn(200, 6)
    y = (x[:, 0] > 0).long()
    seen = []
    theta = hf.ensemble.train(
        MLP(), 5, (x, y), cross_entropy, steps=150, lr=1e-2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(i + 1, 150) for i in range(150)]
    assert not theta.requires_grad
    r = hf.ensemble.predict(hf.nn.TargetNet(MLP()), x, theta, "member_accuracy", targets=y)
    assert (r.member_accuracy > 0.9).all()


def test_optimisers_with_closures_run_and_no_grad_around_does_not_matter():
    x, y = torch.randn(30, 6), torch.randint(4, (30,))
    start = initial(MLP(), dtype=torch.float32)
    loss = lambda theta: cross_entropy(hf.nn.TargetNet(MLP())(x, theta), y.expand(MEMBERS, 30)).sum()
    with torch.no_grad():
        theta = hf.ensemble.train(
            MLP(), MEMBERS, lambda step: (x, y), cross_entropy, torch.optim.LBFGS, steps=3, same_batches=True
        )
    assert loss(theta) < 0.8 * loss(start)


def test_no_steps_give_the_initial_weights():
    theta = hf.ensemble.train(MLP(), MEMBERS, (torch.randn(40, 6).double(), torch.zeros(40)), cross_entropy, steps=0)
    assert torch.equal(theta, initial(MLP()))


def test_the_loss_function_s_own_weights_get_no_gradient():
    scale = torch.ones((), requires_grad=True)
    loss_fn = lambda outputs, targets: scale * cross_entropy(outputs, targets)
    x, y = data((6,), same=False)
    hf.ensemble.train(MLP(), MEMBERS, lambda step: (x[step], y[step]), loss_fn, steps=2)
    assert scale.grad is None


def test_the_example_of_the_documentation_runs():
    page = Path(__file__).resolve().parent.parent / "docs/ensemble.md"
    (example,) = [block.split("```")[0] for block in page.read_text().split("```python\n")[1:]]
    names = {}
    exec(example, names)
    assert names["theta"].shape == (20, 82)
    assert names["r"].member_accuracy.mean() > 0.8


PAIR = (torch.zeros(40, 6), torch.zeros(40, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"template": nn.Linear(6, 4)}, TypeError, "template must be an nn.Sequential"),
        ({"template": nn.Sequential(nn.Linear(6, 4), hf.nn.PerTargetNorm(4))}, ValueError, "template must have no PerTargetNorm"),
        ({"members": 0}, ValueError, "members must be a whole number of at least 1; got 0"),
        ({"members": 2.5}, ValueError, "members must be a whole number"),
        ({"steps": -1}, ValueError, "steps must be a whole number of at least 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1"),
        ({"batches": (torch.rand(0, 5), torch.rand(0))}, ValueError, "batches must have at least one input"),
        ({"batches": 3}, TypeError, "batches must be a pair of tensors.*got int"),
        ({"batches": PAIR[0]}, TypeError, "batches must be a pair of tensors.*got Tensor"),
        ({"batches": (PAIR[0], PAIR[1][:9])}, ValueError, r"batches\[1\] must have a target for each of 40 inputs"),
        ({"batches": (PAIR[1], PAIR[1])}, TypeError, r"batches\[0\] must be float32"),
        ({"batches": []}, ValueError, "batches must yield a batch for every step; got 0"),
        ({"batches": lambda step: PAIR[0]}, TypeError, r"batches must give pairs of tensors \(x, y\); got Tensor"),
        ({"batches": lambda step: PAIR}, ValueError, r"x of batches must be \[M,n,...\] with 3 members"),
        ({"batches": lambda step: (torch.zeros(3, 5, 6), torch.zeros(3, 4))}, ValueError, r"y of batches must begin with x's \(3, 5\)"),
        ({"loss_fn": lambda outputs, targets: outputs.mean()}, ValueError, r"loss_fn must return one loss per member, \(3,\); got \(\)"),
        ({"loss_fn": lambda outputs, targets: 1.0}, ValueError, "loss_fn must return one loss per member.*got float"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, kind, words):
    arguments = {"template": MLP(), "members": 3, "batches": PAIR, "loss_fn": cross_entropy, "steps": 1}
    with pytest.raises(kind, match=words):
        hf.ensemble.train(**(arguments | change))
