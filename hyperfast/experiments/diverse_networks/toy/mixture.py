"""The landscape of the toy problem: ten Gaussians in the plane, with the constants of the paper's code."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MEANS = (
    (3.518, -1.396), (3.655, -3.689), (-0.717, -2.271), (-4.36, -3.999), (-4.889, 3.612),
    (-1.32, 1.62), (-1.865, 1.854), (-2.787, 4.611), (4.06, -2.396), (0.136, 1.364),
)  # fmt: skip
DEVIATIONS = (1.0553, 1.0362, 1.025, 1.0495, 1.0222, 1.0603, 1.0051, 1.0059, 1.0219, 1.0065)
PROBABILITIES = (0.1257, 0.1045, 0.1007, 0.1131, 0.1026, 0.0988, 0.0729, 0.1, 0.0878, 0.0938)


def value(y: Tensor) -> Tensor:
    """f(y) = sum_i p_i 2 pi s_i^2 exp(-|y - m_i|^2 / (2 s_i^2)): y [...,2] -> [...].

    A density would divide by 2 pi s_i^2; the paper's code multiplies, and so does this.
    """
    means, deviations, p = (torch.tensor(t, dtype=y.dtype, device=y.device) for t in (MEANS, DEVIATIONS, PROBABILITIES))
    squares = (y.unsqueeze(-2) - means).square().sum(-1)  # [...,10]
    variances = deviations.square()
    return (p * 2 * math.pi * variances * torch.exp(-squares / (2 * variances))).sum(-1)
