"""Dropout whose mask is a function of a seed and a place, in plain PyTorch; Philox4x32-10 in int64 arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_RAISE = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(seed: Tensor, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., 2011): four random words for every counter (c0, c1, c2, c3), by the key `seed`.

    All int64 and broadcast against each other; a counter and a result hold 32 bits each, the seed 64.
    """
    key = [seed & _WORD, (seed >> 32) & _WORD]
    for _ in range(10):
        high0, low0 = _product(_MULTIPLY[0], c0)
        high1, low1 = _product(_MULTIPLY[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0
        key = [(k + r) & _WORD for k, r in zip(key, _RAISE, strict=True)]
    return c0, c1, c2, c3


def _product(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product, in halves of `word` so that nothing exceeds 63 bits."""
    low = constant * (word & 0xFFFF)
    middle = constant * (word >> 16) + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def dropout(x: Tensor, seed: Tensor, layer: int, last: int, scale: float) -> Tensor:
    """y[s, b, n, h] = scale * x[s, b, n, h] where word(seed_s, layer, b, n, h) > last, else 0.

    x [S,B,N,H]; seed [S] or [1] int64. word is number h mod 4 of the four words that philox gives for the counter
    (h div 4, n, b, layer).
    """
    _, networks, rows, features = x.shape
    index = lambda size, dims: torch.arange(size, device=x.device).view(size, *(1,) * dims)
    groups = index((features + 3) // 4, 0)
    words = philox(
        seed.view(-1, 1, 1, 1), groups, index(rows, 1), index(networks, 2), torch.full_like(groups, layer)
    )  # fmt: skip
    word = torch.stack(torch.broadcast_tensors(*words), -1).flatten(-2)[..., :features]
    compute = torch.promote_types(x.dtype, torch.float32)
    return torch.where(word > last, x.to(compute) * scale, 0).to(x.dtype)
