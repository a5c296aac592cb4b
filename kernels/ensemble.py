"""The reduction of an ensemble: sums over members of softmax, entropy and votes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import power_of_two

# Inputs per program: few, so that 10,000 inputs fill a large GPU, and fewer with many classes, so that their
# sums fit in registers. Speed not measured.
MOST_ROWS = 16
MOST_VALUES = 1024


@triton.jit
def sums_kernel(
    logits, prob, entropy, votes, choice, M, N, C, member, row,
    PROB: tl.constexpr, ENTROPY: tl.constexpr, VOTES: tl.constexpr, CHOICE: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """All members for ROWS inputs, in order; the sums stay in registers."""
    n = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    c = tl.arange(0, CLASSES)
    inside = (n[:, None] < N) & (c[None, :] < C)
    prob_sum = tl.zeros((ROWS, CLASSES), tl.float64)
    entropy_sum = tl.zeros((ROWS,), tl.float64)
    vote_sum = tl.zeros((ROWS, CLASSES), tl.int32)
    at = logits + n[:, None] * row + c[None, :]
    for m in range(0, M):
        z = tl.load(at, inside, float("-inf"))
        at += member
        shifted = z - tl.max(z, 1)[:, None]
        e = tl.where(c[None, :] < C, tl.exp(shifted), 0.0)
        total = tl.sum(e, 1)
        p = e / total[:, None]
        if PROB:
            prob_sum += p.to(tl.float64)
        if ENTROPY:
            weighted = tl.sum(tl.where(e > 0, p * shifted, 0.0), 1)
            entropy_sum += (tl.log(total) - weighted).to(tl.float64)
        if VOTES or CHOICE:
            best = tl.argmax(z, 1, tie_break_left=True)
            if VOTES:
                vote_sum += (c[None, :] == best[:, None]).to(tl.int32)
            if CHOICE:
                tl.store(choice + tl.cast(m, tl.int64) * N + n, best.to(tl.int64), n < N)
    place = n[:, None] * C + c[None, :]
    if PROB:
        tl.store(prob + place, prob_sum, inside)
    if ENTROPY:
        tl.store(entropy + n, entropy_sum, n < N)
    if VOTES:
        tl.store(votes + place, vote_sum.to(tl.int64), inside)


def ensemble_sums(logits: Tensor, want_prob: bool, want_entropy: bool, want_votes: bool, want_choice: bool):
    """logits [M,N,C] float32 -> prob [N,C], entropy [N] float64, votes [N,C], choice [M,N] int64; empty if not wanted."""
    members, rows, classes = logits.shape
    new = lambda want, shape, dtype: logits.new_zeros(shape if want else (0,), dtype=dtype)
    prob = new(want_prob, (rows, classes), torch.float64)
    entropy = new(want_entropy, (rows,), torch.float64)
    votes = new(want_votes, (rows, classes), torch.int64)
    choice = new(want_choice, (members, rows), torch.int64)
    if rows and members:
        logits = logits if logits.stride(2) == 1 or classes == 1 else logits.contiguous()
        padded = power_of_two(classes, 2)
        block = max(1, min(MOST_ROWS, MOST_VALUES // padded))
        sums_kernel[(triton.cdiv(rows, block),)](
            logits, prob, entropy, votes, choice, members, rows, classes, logits.stride(0), logits.stride(1),
            PROB=want_prob, ENTROPY=want_entropy, VOTES=want_votes, CHOICE=want_choice, ROWS=block,
            CLASSES=padded, num_warps=4,
        )  # fmt: skip
    return prob, entropy, votes, choice
