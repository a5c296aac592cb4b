"""Input checks that the families share: ValueError and TypeError with the argument's name and its value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_tensor(name: str, value: object, dims: tuple[int, ...], shape: str) -> Tensor:
    """A floating tensor with one of `dims` dimensions; `shape` is how the docstring writes it."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {shape}; got {type(value).__name__}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16; got {value.dtype}")
    if value.dim() not in dims:
        raise ValueError(f"{name} must have shape {shape}; got {tuple(value.shape)}")
    return value


def check_size(name: str, value: Tensor, dim: int, expected: int, why: str) -> None:
    """Raises ValueError unless `value` has size `expected` in `dim`; `why` says where that size comes from."""
    if value.shape[dim] != expected:
        raise ValueError(f"{name} must have size {expected} in dimension {dim} ({why}); got {tuple(value.shape)}")


def check_together(**tensors: Tensor | None) -> None:
    """The same device; float64 only with float64, as no kernel mixes it with others."""
    given = {name: t for name, t in tensors.items() if t is not None}
    devices = {name: t.device for name, t in given.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"tensors must be on one device; got {_listed(devices)}")
    dtypes = {name: t.dtype for name, t in given.items()}
    if torch.float64 in dtypes.values() and len(set(dtypes.values())) > 1:
        raise TypeError(f"float64 does not mix with other types; got {_listed(dtypes)}")


def _listed(values: dict) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def autocast_type(device: str) -> torch.dtype | None:
    """The type of autocast on this kind of device; None where it is off, or where there is none (meta)."""
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def autocast(device: str, *tensors: Any) -> tuple[Any, ...]:
    """Under autocast, every tensor in the autocast dtype, as nn.Linear takes them; otherwise unchanged."""
    dtype = autocast_type(device)
    if dtype is None:
        return tensors
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def float32_under_autocast(tensor: Tensor) -> Tensor:
    """Under autocast in float32 (float64 stays), for the ops that run in it; otherwise unchanged."""
    if autocast_type(tensor.device.type) is None or tensor.dtype == torch.float64:
        return tensor
    return tensor.float()
