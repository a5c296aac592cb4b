"""Dropout whose mask is a function of a seed and a place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import philox_words, power_of_two

# Values per program: 8 for each of 128 threads, so that words, values and addresses fit in registers.
# Speed not measured.
MOST_VALUES = 1024


# Layer and threshold are numbers of any value: 1 must not become a constant, nor a multiple of 16 a variant.
@triton.jit(do_not_specialize=["layer", "last"])
def dropout_kernel(
    x, seed, y, R, B, N, H, sample, network, row, seed_stride, layer, last, scale,
    ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """ROWS of the R = S*B*N rows, FEATURES of their features: words in registers, x read once, y written once.

    Ten rounds of Philox for every fourth value.
    """
    blocks = tl.cdiv(H, FEATURES)
    pid = tl.program_id(0).to(tl.int64)
    r = (pid // blocks) * ROWS + tl.arange(0, ROWS)
    first = (pid % blocks) * FEATURES
    n, b, s = r % N, (r // N) % B, r // N // B
    key = tl.load(seed + s * seed_stride, r < R, 0)
    word = philox_words(key, first // 4, n, b, layer, FEATURES // 4)
    h = first + tl.arange(0, FEATURES)
    inside = (r[:, None] < R) & (h[None, :] < H)
    value = tl.load(x + (s * sample + b * network + n * row)[:, None] + h[None, :], inside, 0.0).to(tl.float32)
    kept = tl.where(word > last.to(tl.uint32), value * scale, 0.0)
    tl.store(y + r[:, None] * H + h[None, :], kept.to(y.dtype.element_ty), inside)


def dropout(x: Tensor, seed: Tensor, layer: int, last: int, scale: float) -> Tensor:
    """x [S,B,N,H], seed [S] or [1] int64 -> y [S,B,N,H]."""
    x = x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    samples, networks, rows, features = x.shape
    if y.numel():
        block = min(power_of_two(features, 4), MOST_VALUES)
        height = max(1, MOST_VALUES // block)
        count = samples * networks * rows
        dropout_kernel[(triton.cdiv(count, height) * triton.cdiv(features, block),)](
            x, seed, y, count, networks, rows, features, x.stride(0), x.stride(1), x.stride(2),
            seed.stride(0) if seed.shape[0] > 1 else 0, layer, last, scale,
            ROWS=height, FEATURES=block, num_warps=4,
        )  # fmt: skip
    return y
