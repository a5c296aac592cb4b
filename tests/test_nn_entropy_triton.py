"""The Triton kernels of nn_entropy: screening and the search over all pairs give the same bits, whatever the rows."""

import pytest
import torch
from hyperfast.kernels import nn_entropy as kernels
from hyperfast.kernels import nn_entropy_exact as kernels_exact
from hyperfast.kernels.nn_entropy_exact import nearest_of_all
from hyperfast.kernels.nn_entropy_screen import ScreenConfig, nearest_by_screening

from hyperfast.reference import nn_entropy as reference
from hyperfast.reference.nn_entropy import make_inputs

pytestmark = pytest.mark.interpreter
NORMS = pytest.mark.parametrize("p", [1, 2])


@NORMS
@pytest.mark.parametrize(("rows", "features"), [(2, 1), (3, 5), (31, 300), (33, 1030), (130, 20), (520, 3)])
def test_all_pairs(rows, features, p):
    """Split by groups of features up to 512 rows, whole above; all rows and some."""
    theta = make_inputs(rows, features)
    for start, stop in ((0, rows), (1, min(rows, 20))):
        distance, index = nearest_of_all(theta, start, stop, p)
        exact, right = reference.nearest_neighbor(theta.double(), p, start, stop)
        assert torch.equal(index, right)
        torch.testing.assert_close(distance.double(), exact, rtol=3e-7, atol=0)


def broken_rows():
    theta = make_inputs(54, 40)
    theta[3], theta[50, 2] = torch.nan, torch.inf
    theta[51] *= 1e19
    theta[52] = theta[51] * (1 + 1e-6)
    return theta


SETS = {
    "normal": lambda: make_inputs(66, 40),
    "long": lambda: make_inputs(34, 300),
    "one tight cluster": lambda: 100 + 1e-3 * make_inputs(40, 30),
    "two tight clusters far apart": lambda: 1e3 * make_inputs(2, 30).repeat(20, 1) + 1e-3 * make_inputs(40, 30, seed=1),
    "duplicates": lambda: make_inputs(9, 30).repeat(4, 1),
    "ties": lambda: torch.randint(-1, 2, (40, 6)).float(),
    "broken": broken_rows,
}


@pytest.mark.parametrize("name", SETS)
def test_screening_has_the_bits_of_all_pairs(name):
    """Slots of 32 columns; at most 3 pairs one by one, so that whole slots are searched, too."""
    theta = SETS[name]().float()
    rows = theta.shape[0]
    for start, stop in ((0, rows), (5, 20)):
        got = nearest_by_screening(theta, start, stop, most=3)
        # Not split by features: there float64 decides between rows that rounding can't tell apart.
        expected = all_pairs(theta, start, stop)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def all_pairs(theta, start, stop):
    split, kernels_exact.SPLIT_ROWS = kernels_exact.SPLIT_ROWS, 0
    try:
        return nearest_of_all(theta, start, stop, 2)
    finally:
        kernels_exact.SPLIT_ROWS = split


@pytest.mark.parametrize("config", [ScreenConfig(16, 16, 64, 16, 64, 1, 1), ScreenConfig(16, 32, 64, 16, 4096, 1, 1)])
def test_screening_tiles(config):
    """One slot a tile and two, folded sums and plain ones."""
    theta = make_inputs(50, 130)
    got = nearest_by_screening(theta, 0, 50, config)
    torch.testing.assert_close(got, all_pairs(theta, 0, 50), rtol=0, atol=0)


def test_rows_take_turns(monkeypatch):
    from hyperfast.kernels import nn_entropy_screen as screen

    theta = make_inputs(70, 20)
    expected = nearest_by_screening(theta, 0, 70)
    monkeypatch.setattr(screen, "MOST_BYTES", 1)  # 32 rows a turn
    torch.testing.assert_close(nearest_by_screening(theta, 0, 70), expected, rtol=0, atol=0)


@NORMS
@pytest.mark.parametrize("scanned", [1024, 1])
def test_backward(p, scanned, monkeypatch):
    """Rows sought in the index, and sorted by it."""
    monkeypatch.setattr(kernels, "SCANNED_ROWS", scanned)
    for theta in (make_inputs(2, 1), make_inputs(33, 300), SETS["duplicates"](), broken_rows()):
        rows = theta.shape[0]
        distance, index = reference.nearest_neighbor(theta, p)
        grad = make_inputs(rows, 1, seed=2)[:, 0]
        for start, stop in ((0, rows), (1, rows - 1)):
            arguments = (grad, theta, distance, index, start, stop, p)
            got = kernels.nearest_neighbor_backward(*arguments)
            torch.testing.assert_close(got, reference.nearest_neighbor_backward(*arguments), equal_nan=True)


def test_which_search_serves(monkeypatch):
    """Screening from 257 rows of 256 features on, for p=2 alone."""
    called = []
    for name in ("nearest_of_all", "nearest_by_screening"):
        monkeypatch.setattr(kernels, name, lambda *_, name=name: called.append(name))
    for rows, features, p in ((257, 256, 2), (256, 256, 2), (257, 255, 2), (257, 256, 1)):
        kernels.nearest_neighbor(torch.zeros(rows, features), 0, rows, p)
    assert called == ["nearest_by_screening", *["nearest_of_all"] * 3]
