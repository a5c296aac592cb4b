"""Tolerances that come from somewhere: twice the error of the same arithmetic in eager PyTorch, plus rounding.

Rounding is the 3 ulp that an elementwise function may have: of a tensor with a few values, eager may be exact by luck.
"""

import torch
from torch import Tensor

RMS_LIMIT = {torch.float32: 0.005, torch.bfloat16: 0.01, torch.float16: 0.01, torch.float64: 1e-10}


def error(value: Tensor, exact: Tensor) -> float:
    """The root mean square error relative to the exact value's."""
    difference = (value.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-300)
    return difference.item() if exact.numel() else 0.0


def assert_accurate(ours: Tensor, eager: Tensor, exact: Tensor, what: str) -> None:
    """ours and eager in one dtype, exact in float64."""
    assert ours.shape == exact.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    assert ours.dtype == eager.dtype, f"{what}: {ours.dtype}, expected {eager.dtype}"
    got, limit = error(ours, exact), 2 * error(eager, exact) + 3 * torch.finfo(ours.dtype).eps
    assert got <= limit, f"{what}: error {got:.2e} exceeds {limit:.2e}"
    assert got <= RMS_LIMIT[ours.dtype], f"{what}: error {got:.2e} exceeds {RMS_LIMIT[ours.dtype]}"
