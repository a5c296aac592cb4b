"""fill_missing against its equation, pixel by pixel."""

import numpy as np
import pytest
import torch

from hyperfast.data.missing import fill_missing


def spread(n, side):
    """S_n along one axis, [side,side]."""
    found = np.zeros((side, side))
    for i in range(side):
        for j, tap in ((i - 2 ** (n - 1), 0.25), (i, 0.5), (i + 2 ** (n - 1), 0.25)):
            if 0 <= j < side:
                found[i, j] = tap
    return found


def by_loops(image, known):
    filled = image * known
    for y, x in np.argwhere(known == 0):
        total, weight, n = image * known, known, 0
        while weight[y, x] == 0:
            n += 1
            rows, cols = (spread(n, side) for side in known.shape)
            total, weight = rows @ total @ cols.T, rows @ weight @ cols.T
        filled[:, y, x] = total[:, y, x] / weight[y, x]
    return filled


@pytest.mark.parametrize("share", [0.2, 0.9, 0.99])
def test_it_is_the_equation(share):
    torch.manual_seed(0)
    image = torch.rand(3, 14, 11, dtype=torch.float64)
    known = (torch.rand(1, 14, 11) >= share).double()
    known[0, 3, 4] = 1
    expected = torch.from_numpy(by_loops(image.numpy(), known[0].numpy()))
    other = torch.where(known > 0, image, torch.rand_like(image))
    torch.testing.assert_close(fill_missing(other, known), expected, rtol=0, atol=1e-14)


def test_pictures_of_a_batch_are_filled_each_by_its_own_mask():
    images, known = torch.rand(2, 3, 9, 8), (torch.rand(2, 1, 9, 8) < 0.3).float()
    known[1] = 0
    known[1, 0, 8, 7] = 1  # one corner fills all
    found = fill_missing(images, known)
    torch.testing.assert_close(found[0], fill_missing(images[0], known[0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], images[1][:, 8:, 7:].expand(3, 9, 8), rtol=0, atol=1e-6)


def test_nothing_known_and_nothing_missing():
    image = torch.rand(3, 5, 1)
    assert torch.equal(fill_missing(image, torch.ones(1, 5, 1)), image)
    assert torch.equal(fill_missing(image, torch.zeros(1, 5, 1)), torch.zeros(3, 5, 1))
