import pytest
import torch
from conftest import devices
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hyperfast as hf
from hyperfast import backends, native
from hyperfast.ops.ensemble import ensemble_sums
from hyperfast.reference.ensemble import make_inputs

EVERY = ("mean_prob", "votes", "entropy", "disagreement", "mean", "var", "member_accuracy")
KERNEL = "triton" if backends.INTERPRETING else "cpp"
ALL = (True, True, True, True)


def assert_sums_match(backend, logits, members):
    with hf.backend(backend):
        ours = ensemble_sums(logits, *ALL)
    with hf.backend("reference"):
        exact = ensemble_sums(logits.double(), *ALL)
    torch.testing.assert_close(ours.prob, exact.prob, rtol=1e-6, atol=1e-6 * members, equal_nan=True)
    torch.testing.assert_close(ours.entropy, exact.entropy, rtol=1e-6, atol=2e-6 * members, equal_nan=True)
    assert torch.equal(ours.votes, exact.votes)
    assert torch.equal(ours.choice, exact.choice)


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("shape", [(5, 37, 10), (3, 1, 1), (1, 16, 3), (70, 33, 17), (0, 4, 3), (3, 0, 4)])
def test_sums(shape, isa):
    native.force_isa(isa)
    try:
        assert_sums_match("cpp", make_inputs(*shape), shape[0])
    finally:
        native.force_isa("auto")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 9), st.integers(0, 40), st.integers(1, 20), st.booleans())
def test_07_09_sizes_and_layouts(members, rows, classes, transposed):
    logits = make_inputs(members, rows, classes)
    if transposed:
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    assert_sums_match("cpp", logits, members)
    with hf.backend("cpp"):
        plain = ensemble_sums(logits, *ALL)
        strided = ensemble_sums(
            torch.stack([logits, logits.new_full((), torch.nan).expand_as(logits)], -1)[..., 0], *ALL
        )
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))


@pytest.mark.interpreter
@pytest.mark.parametrize("shape", [(5, 37, 10), (3, 1, 1), (2, 16, 65)])
def test_26_sums_interpreted(shape):
    assert_sums_match("triton", make_inputs(*shape), shape[0])


@pytest.mark.gpu
def test_sums_gpu():
    assert_sums_match("triton", make_inputs(70, 1000, 10, device="cuda"), 70)


def test_13_extremes_stay_in_their_input():
    logits = make_inputs(4, 20, 5)
    logits[1, 3, 2], logits[2, 5, 1], logits[0, 7] = (
        torch.nan,
        torch.inf,
        torch.tensor([1e4, -1e4, 0, 1e30, -torch.inf]),
    )
    logits[3, 9, 0] = -torch.inf
    assert_sums_match("cpp", logits, 4)


def test_03_opcheck():
    for wanted in (ALL, (True, False, False, False), (False, True, True, False)):
        torch.library.opcheck(torch.ops.hyperfast.ensemble_sums_cpp.default, (make_inputs(3, 20, 5), *wanted))


def test_14_deterministic_for_any_number_of_threads():
    logits, threads = make_inputs(9, 100, 10), torch.get_num_threads()
    expected = ensemble_sums(logits, *ALL)
    try:
        for count in (1, 2, 3, 4) * 10:
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(ensemble_sums(logits, *ALL), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


# ---- predict ----------------------------------------------------------------------------------------


@pytest.fixture
def problem():
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4)))
    return net, 3 * net.init(23), torch.randn(31, 6), torch.randint(4, (31,))


def plain(net, theta, x, targets):
    """Every reduction from all members' outputs at once."""
    y = net(x, theta).double()
    p = y.softmax(-1)
    mean = p.mean(0)
    entropy = torch.special.entr(mean).sum(-1)
    return {
        "mean_prob": mean,
        "votes": nn.functional.one_hot(y.argmax(-1), y.shape[-1]).sum(0),
        "entropy": entropy,
        "disagreement": entropy - torch.special.entr(p).sum(-1).mean(0),
        "mean": y.mean(0),
        "var": y.var(0),
        "member_accuracy": (y.argmax(-1) == targets).double().mean(1),
    }


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("chunk", ["auto", 1, 7, 23, 100])
def test_every_reduction(problem, chunk, device):
    net, theta, x, targets = problem
    theta, x, targets = theta.to(device), x.to(device), targets.to(device)
    r = hf.ensemble.predict(net, x, theta, EVERY, chunk=chunk, targets=targets)
    for name, expected in plain(net, theta, x, targets).items():
        torch.testing.assert_close(getattr(r, name).double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_a_sampler_s_answer_depends_on_neither_chunk_nor_batches(problem):
    net, theta, x, targets = problem
    asked = []

    def sampler(indices):
        asked.append(len(indices))
        return theta[indices]

    whole = hf.ensemble.predict(net, x, theta, EVERY, targets=targets)
    for chunk in (1, 5, 23):
        parts = hf.ensemble.predict(net, iter(x.split(10)), (sampler, 23), EVERY, chunk=chunk, targets=targets)
        for name in EVERY:
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-6, atol=1e-7)
    assert max(asked) == 23


def test_only_what_was_asked_for(problem):
    net, theta, x, _ = problem
    r = hf.ensemble.predict(net, x, theta, "votes")
    assert [name for name in EVERY if getattr(r, name) is not None] == ["votes"]
    assert r.votes.dtype == torch.int64
    r = hf.ensemble.predict(net, x, theta)
    assert [name for name in EVERY if getattr(r, name) is not None] == ["mean_prob"]


def test_ties_go_to_the_smallest_label():
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(1, 5)))
    r = hf.ensemble.predict(net, torch.ones(2, 1), torch.zeros(7, 10), ("votes",))
    assert torch.equal(r.votes, torch.tensor([[7, 0, 0, 0, 0]] * 2))


def test_variance_keeps_its_digits_far_from_zero():
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(1, 1, bias=False)))
    theta = 1e4 + torch.arange(100.0).unsqueeze(1) / 8
    r = hf.ensemble.predict(net, torch.ones(1, 1), theta, ("var",), chunk=7)
    torch.testing.assert_close(r.var[0, 0].double(), theta.double().var(), rtol=1e-6, atol=0)


def test_progress_reports_members(problem):
    net, theta, x, _ = problem
    seen = []
    hf.ensemble.predict(net, x, theta, chunk=10, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(10, 23), (20, 23), (23, 23)]


def test_memory_does_not_grow_with_the_members():
    """O(N*C): the peak of one call is the same for 100 and for 10,000 members that a sampler makes."""
    net = hf.nn.TargetNet(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)))
    x, base = torch.randn(200, 64), net.init(1)
    sampler = lambda indices: base + 1e-3 * indices.unsqueeze(1)

    def peak(members):
        with torch.profiler.profile(profile_memory=True) as profile:
            hf.ensemble.predict(net, x, (sampler, members), ("mean_prob", "votes", "disagreement"))
        alive = highest = 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                highest = max(highest, alive)
        return highest

    few, many = peak(200), peak(5_000)
    assert few > 0
    assert many <= 1.5 * few


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"reduce": ("mode",)}, ValueError, "reduce must name some of mean_prob"),
        ({"reduce": ()}, ValueError, "reduce must name some of"),
        ({"reduce": ("member_accuracy",)}, ValueError, "needs targets="),
        ({"members": 3}, TypeError, "members must be theta"),
        ({"members": torch.zeros(0, 136)}, ValueError, "at least one"),
        ({"members": (lambda i: torch.zeros(1, 136), 5)}, ValueError, r"must return theta \(5, 136\)"),
        ({"members": (lambda i: [0.0], 5)}, TypeError, "sampler must return a tensor .*; got list"),
        ({"chunk": 0}, ValueError, "chunk must be 'auto' or a positive"),
        ({"x": 3}, TypeError, "x must be a tensor or an iterable of tensors; got int"),
        ({"x": [[torch.zeros(4, 6)]]}, TypeError, "iterable of tensors; batch 0 is a list"),
        ({"x": iter(())}, ValueError, "at least one batch"),
        ({"targets": torch.zeros(40)}, ValueError, "one label per input, 31"),
        ({"group": object()}, TypeError, "group must be a process group or a DeviceMesh"),
    ],
)
def test_errors_name_the_argument(problem, change, error, words):
    net, theta, x, _ = problem
    with pytest.raises(error, match=words):
        hf.ensemble.predict(**({"net": net, "x": x, "members": theta} | change))
