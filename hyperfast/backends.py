"""Which implementation serves a call: the choice, its errors and its one warning."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterator

import torch

from . import native

BACKENDS = ("cpp", "triton", "cuda", "reference")


class HyperfastFallbackWarning(UserWarning):
    """No kernel covers a case, and the PyTorch reference serves it. Issued once per case."""


class _State(threading.local):
    backend = "auto"


_state = _State()
_warned: set[str] = set()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Context manager and decorator that names the implementation of every op inside it.

    name: "auto" (kernels by device: CPU -> cpp, GPU -> triton; the reference, with a warning, where no kernel
    covers a case), "cpp", "triton", "cuda" or "reference". A named backend never falls back: a call that it
    can't serve raises RuntimeError. On CPU tensors "triton" runs under Triton's interpreter, for which
    TRITON_INTERPRET=1 must be set before triton is imported. Per thread; backward uses the backend of forward.
    """
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"backend must be one of auto, {', '.join(BACKENDS)}; got {name!r}")
    previous = _state.backend
    _state.backend = name
    try:
        yield
    finally:
        _state.backend = previous


def current() -> str:
    """The backend that hf.backend() named on this thread, or "auto"."""
    return _state.backend


# ---- availability -----------------------------------------------------------------------------------

# op -> backends that have a kernel for it. The reference serves every op.
_kernels: dict[str, tuple[str, ...]] = {}


def register(op: str, *kernels: str) -> None:
    """Declares which backends have a kernel for `op`."""
    _kernels[op] = kernels


def ops() -> list[str]:
    """Every op, by name."""
    return sorted(_kernels)


# Constants, so that a traced function can read them; Triton reads its variable at import, too.
TRITON_MISSING = None if importlib.util.find_spec("triton") else "triton is not installed (pip install triton)"
INTERPRETING = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on")


# On meta tensors an op is its fake: shapes and types, nothing computed.
_CPP_DEVICES = ("cpu", "meta")


def why_not(name: str, op: str, device: str, *dtypes: torch.dtype) -> str | None:
    """None where backend `name` serves `op` for these types on this kind of device, else the reason."""
    if name == "reference":
        return None
    if name not in _kernels[op]:
        return f"{op} has no {name} kernel"
    if name == "cpp":
        serves = device in _CPP_DEVICES
        return native.WHY_NOT_LOADED if serves else f"the C++ kernels run on CPU tensors, not on {device}"
    if torch.float64 in dtypes:
        return "float64 runs on the backends cpp and reference"
    if name == "triton":
        if TRITON_MISSING:
            return TRITON_MISSING
        if device == "cpu" and not INTERPRETING:
            return (
                "Triton runs CPU tensors only under its interpreter: set TRITON_INTERPRET=1 before triton is imported"
            )
        return None
    return None if device == "cuda" else f"the CUDA kernels run on CUDA tensors, not on {device}"


def preferred(device: str) -> tuple[str, ...]:
    """The backends that "auto" tries on this kind of device, in order."""
    return ("cpp",) if device in _CPP_DEVICES else ("cuda", "triton")


def select(op: str, device: str, *dtypes: torch.dtype) -> str:
    """The backend that will serve a call. Raises RuntimeError where a named one can't."""
    name = current()
    if name != "auto":
        reason = why_not(name, op, device, *dtypes)
        if reason is not None:
            able = [b for b in BACKENDS if why_not(b, op, device, *dtypes) is None]
            raise RuntimeError(
                f"backend {name!r} can't serve {op} on {device}: {reason}. Available for this call: {', '.join(able)}"
            )
        return name
    reasons = []
    for candidate in preferred(device):
        reason = why_not(candidate, op, device, *dtypes)
        if reason is None:
            return candidate
        reasons.append(reason)
    # Not a decorator of _warn_once: that would import torch._dynamo, a second of every `import hyperfast`.
    warn = torch.compiler.disable(_warn_once)
    warn(f"{op} on {device} ({', '.join(str(t).removeprefix('torch.') for t in dtypes)}): {'; '.join(reasons)}")
    return "reference"


def _warn_once(case: str) -> None:
    if case not in _warned:
        _warned.add(case)
        warnings.warn(
            f"no kernel serves {case}. The PyTorch reference runs instead, slowly; see `hyperfast doctor`.",
            HyperfastFallbackWarning,
            stacklevel=4,
        )
