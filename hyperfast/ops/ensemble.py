"""The reduction behind hf.ensemble.predict: sums over members of what their logits say. No gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .. import backends, native
from ..reference import ensemble as reference
from ..reference.ensemble import Sums
from .checks import check_tensor

backends.register("ensemble_sums", "cpp", "triton")


def ensemble_sums(
    logits: Tensor, prob: bool = True, entropy: bool = False, votes: bool = False, choice: bool = False
) -> Sums:
    """Sums over the members of an ensemble.

    Args:
        logits: [M,N,C], C >= 1.
        prob, entropy, votes, choice: what is wanted.

    Returns:
        Sums with prob [N,C], the sum of the members' softmax, and entropy [N], the sum of their entropies in nats,
        both float64; votes [N,C] int64, members whose largest logit is that class (ties: the smallest class);
        choice [M,N] int64, that class. None where not wanted.
    """
    check_tensor("logits", logits, (3,), "[M,N,C]")
    if logits.shape[2] < 1:
        raise ValueError(f"logits must have at least one class; got {tuple(logits.shape)}")
    wanted = (prob, entropy, votes, choice)
    chosen = backends.select("ensemble_sums", logits.device.type, torch.float32)
    if chosen == "reference" or logits.dtype == torch.float64:  # float64 members are rare; kernels take float32
        return reference.ensemble_sums(logits, *wanted)
    op = getattr(torch.ops.hyperfast, f"ensemble_sums_{chosen}")
    return Sums(*(t if want else None for t, want in zip(op(logits.float(), *wanted), wanted, strict=True)))


def _fake(logits, want_prob, want_entropy, want_votes, want_choice):
    members, rows, classes = logits.shape
    new = lambda want, shape, dtype: logits.new_empty(shape if want else (0,), dtype=dtype)
    return (
        new(want_prob, (rows, classes), torch.float64),
        new(want_entropy, (rows,), torch.float64),
        new(want_votes, (rows, classes), torch.int64),
        new(want_choice, (members, rows), torch.int64),
    )


def _triton(*args):
    from ..kernels import ensemble as kernels

    with torch.cuda.device_of(args[0]):  # Triton launches on the current device
        return kernels.ensemble_sums(*args)


SCHEMA = (
    "(Tensor logits, bool want_prob, bool want_entropy, bool want_votes, bool want_choice) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_library = torch.library.Library("hyperfast", "FRAGMENT")
_library.define("ensemble_sums_triton" + SCHEMA)
for _key in ("CPU", "CUDA", "XPU"):
    _library.impl("ensemble_sums_triton", _triton, _key)
for _name in ["ensemble_sums_triton"] + ["ensemble_sums_cpp"] * (native.WHY_NOT_LOADED is None):
    torch.library.register_fake(f"hyperfast::{_name}", _fake, lib=_library)
    register_flop_formula(getattr(torch.ops.hyperfast, _name))(lambda *_, **__: 0)  # exponentials, no products
