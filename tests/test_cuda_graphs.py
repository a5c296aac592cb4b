"""Replays of a host function's launches: what is recorded, what is kept, and on a GPU the graphs themselves."""

import pytest
import torch
from hyperfast.kernels.cuda_graphs import Replays, replays
from recurrence_ops import run_again


@pytest.fixture
def recorded():
    """(replays, list that grows by one with each recording); two are kept."""
    calls = []

    def record(call, where):
        calls.append(where)
        return run_again(call)

    return Replays(record, most=2), calls


def scaled(tensors, factor):
    return [tensors[0] * factor, tensors[0] + tensors[1]]


def test_second_call_of_a_kind_is_recorded(recorded):
    run, calls = recorded
    for call, expected in enumerate([0, 1, 1, 1]):
        x, y = torch.full((3,), float(call)), torch.ones(3)
        a, b = run(scaled, [x, y], 2.0)
        assert torch.equal(a, 2 * x)
        assert torch.equal(b, x + 1)
        assert len(calls) == expected


def test_kinds_differ_in_shapes_types_and_constants(recorded):
    run, calls = recorded
    kinds = [
        (torch.ones(3), 2.0),
        (torch.ones(4), 2.0),
        (torch.ones(3, dtype=torch.float64), 2.0),
        (torch.ones(3), 3.0),
    ]
    for x, factor in kinds:
        assert torch.equal(run(scaled, [x, x], factor)[0], x * factor)
    assert not calls


def test_results_are_not_overwritten(recorded):
    run, _ = recorded
    results = [run(scaled, [torch.full((3,), float(i)), torch.ones(3)], 2.0)[0] for i in range(4)]
    assert [float(t[0]) for t in results] == [0.0, 2.0, 4.0, 6.0]


def test_the_oldest_recording_goes_first(recorded):
    run, calls = recorded
    x = torch.ones(3)
    for factor in (1.0, 2.0, 3.0):
        for _ in range(2):
            run(scaled, [x, x], factor)
    assert len(calls) == 3
    run(scaled, [x, x], 3.0)
    assert len(calls) == 3, "still there"
    run(scaled, [x, x], 1.0)
    assert len(calls) == 4, "recorded again"


@pytest.mark.gpu
def test_29_graphs_on_a_gpu():
    """Bitwise what the first call, which is not recorded, gives; on a side stream, too."""
    x, y = torch.randn(1000, device="cuda"), torch.randn(1000, device="cuda")
    expected = scaled([x, y], 2.0)
    for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(100):
                found = replays(scaled, [x, y], 2.0)
        stream.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
