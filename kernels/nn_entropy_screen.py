"""Euclidean nearest neighbours of many rows: screened by a Gram matrix in 16 bits, certified, and settled from differences.

1. Rows are centred by the column mean and rounded to float16, each with its own power of two, so that float16 has the
   eleven bits of TF32 at twice its rate.
2. The Gram matrix, the symmetric half where all rows are asked for, gives of every pair a lower bound of its squared
   distance. Of each row and slot (128 columns or so) the KEYS lowest are kept with their columns; N x N never is.
3. Each row goes through its pairs in order of the bound, taking distances from differences, until the next bound is
   above the best distance: what remains is further, whatever was rounded.
4. Slots in which more than was kept lies below the best distance (tight clusters) are searched from differences.

The result has the bits of a search from differences over all pairs. The bound: v = x - mean = h + r with h in float16
and |r| <= rho |v|, so v_i.v_j differs from the screened product by at most 2 rho |v_i||v_j| <= rho (|v_i|^2 + |v_j|^2),
rho holding the product's own error, too. Hence |v_i - v_j|^2 >= low_i + low_j - 2 screened, low = (1 - 2 rho) |v|^2.

Longer than 400 lines: the bounds that one kernel writes are those that the next one trusts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperfast.backends import INTERPRETING

from .common import is_amd
from .nn_entropy_exact import (
    COLUMNS,
    NOTHING,
    PROGRAMS,
    ROWS,
    merge,
    nearest_of_columns,
    pack,
    pair_groups,
    pair_sum,
    slack,
)

# Pairs kept of a row and slot. With three candidates a row among 10,000 rows in 79 slots, four in one slot are rare.
KEYS = tl.constexpr(4)
RANKS = tl.constexpr(3)  # the last one only says that there may be more
# The low bits of a key are the column in its slot, the rest those of a float32, rounded down.
IN_SLOT = tl.constexpr(127)
NO_KEY = tl.constexpr(0x7FFFFFFF)
INFINITY = tl.constexpr(float("inf"))
# Squares below float32's range are lost: this much is taken off every bound.
TINY = tl.constexpr(1e-36)
HUGE = tl.constexpr(1e37)  # squared norms above it get no bound
# Pairs that a row settles one by one; a row with more leaves them to whole slots. In one tight cluster of 10,000
# rows these 64 are 0.6 % of all pairs.
MOST_PAIRS = 64
# Bytes of keys, flags, lists and results; more rows take turns.
MOST_BYTES = 1 << 30
SUM_ROWS = 128
U = 2.0**-24  # float32's unit roundoff


@dataclass(frozen=True)
class ScreenConfig:
    """Tile of screen_kernel: m x n pairs, k features at a time, slots of `slot` columns. Speed not measured.

    A sum of more than `fold` products is folded into a second accumulator: its error bound stays small.
    """

    m: int
    n: int
    k: int
    slot: int
    fold: int
    num_warps: int
    num_stages: int

    @classmethod
    def for_shape(cls, rows: int, features: int) -> ScreenConfig:
        if INTERPRETING:
            return cls(32, 64, 64, 32, 128, 1, 1)
        if is_amd():  # 64 KB of shared memory; 128 x 128 spills 76 bytes in a rectangle of rows
            return cls(64, 128, 64, 64, 4096, 8, 2)
        if rows <= 2048:  # 136 tiles at N=1000; 4 warps spill 104 bytes on sm_80
            return cls(64, 64, 64, 64, 4096, 8, 4)
        # Two accumulators of 128 x 128 spill 490 bytes; and on sm_100 one does, 152 bytes with Triton 3.6.
        if features > 32768 or triton.runtime.driver.active.get_current_target().arch >= 100:
            return cls(64, 128, 64, 64, 4096, 8, 3)
        # 48 KB of operands for 4.2 MFLOP: with 128 x 128 tiles L2 would bound it.
        return cls(128, 256, 64, 128, 32768, 8, 3)

    def rho(self, features: int) -> float:
        """|r| / |v| and half the error of a screened product relative to |h_i||h_j|.

        float16 rounds by 2^-11; every addition of a product may truncate at float32's last bit.
        """
        additions = min(features, self.fold) + triton.cdiv(features, self.fold) + 2
        return 1.001 * (2.0**-11 + additions * U)


# ---- centring ---------------------------------------------------------------------------------------


@triton.jit
def column_sums_kernel(theta, sums, N, D, row_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """sums[chunk] = sum of ROWS rows, what is not finite left out: BLOCK columns of one chunk a program.

    Reads theta once, writes D values a chunk.
    """
    blocks = tl.cdiv(D, BLOCK)
    chunk = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first = chunk * ROWS
    total = tl.zeros((BLOCK,), tl.float32)
    at = theta + tl.cast(first, tl.int64) * row_stride + column
    for _ in tl.range(first, tl.minimum(first + ROWS, N), loop_unroll_factor=8):
        x = tl.load(at, column < D, 0.0)
        total += tl.where(tl.abs(x) < INFINITY, x, 0.0)
        at += row_stride
    tl.store(sums + tl.cast(chunk, tl.int64) * D + column, total, column < D)


@triton.jit
def mean_kernel(sums, mean, N, D, CHUNKS, BLOCK: tl.constexpr):
    """mean = sum of the chunks in order / N; 0 where it overflows (any value would serve): BLOCK columns a program."""
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    at = sums + column
    for _ in tl.range(0, CHUNKS, loop_unroll_factor=8):
        total += tl.load(at, column < D, 0.0)
        at += D
    total = total / N
    tl.store(mean + column, tl.where(tl.abs(total) < INFINITY, total, 0.0), column < D)


@triton.jit
def center_kernel(theta, mean, rounded, low, scale, D, row_stride, WIDTH, shrink, BLOCK: tl.constexpr):
    """One row: v = theta - mean; rounded = v / scale in float16, scale a power of two; low = |v|^2 * shrink.

    rounded [N,WIDTH], columns beyond D zero. The largest |v| comes to 2^14 .. 2^15: what is smaller than float16's
    normal numbers is then 2^-28 of it. low is infinite for a row that is not finite, as its distances are, and -inf
    where float32 can't hold |v|^2. Reads theta's row twice, the second time from L2, and writes half as much.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    at = theta + row * row_stride
    largest = tl.zeros((BLOCK,), tl.float32)
    broken = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, D, BLOCK):
        k = tl.cast(start, tl.int64) + column
        x = tl.load(at + k, k < D, 0.0)
        v = tl.abs(x - tl.load(mean + k, k < D, 0.0))
        finite = tl.abs(x) < INFINITY
        broken |= (~finite).to(tl.int32)
        largest = tl.maximum(largest, tl.where(finite, v, 0.0))
    top = tl.max(largest, 0)
    # Powers of two by their exponent.
    exponent = tl.minimum(tl.maximum(top.to(tl.int32, bitcast=True) >> 23, 15), 254)
    up = ((268 - exponent) << 23).to(tl.float32, bitcast=True)
    down = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
    is_broken = tl.max(broken, 0) != 0
    usable = (top < INFINITY) & (~is_broken)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, WIDTH, BLOCK):
        k = tl.cast(start, tl.int64) + column
        v = (tl.load(at + k, k < D, 0.0) - tl.load(mean + k, k < D, 0.0)) * up
        v = tl.where(usable, v, 0.0)
        squares += v * v
        tl.store(rounded + row * WIDTH + k, v.to(tl.float16), k < WIDTH)
    square = (tl.sum(squares, 0) * down) * down * shrink
    square = tl.where(usable & (tl.abs(square) < HUGE), square, -INFINITY)
    tl.store(low + row, tl.where(is_broken, INFINITY, square))
    tl.store(scale + row, down)


# ---- screening --------------------------------------------------------------------------------------


@triton.jit
def _products(x_at, y_at, WIDTH, FOLD: tl.constexpr, FOLDED: tl.constexpr, BK: tl.constexpr):
    """x y^T over WIDTH features; x_at [M,BK], y_at [BN,BK] pointers to the first ones. WIDTH is a multiple of BK."""
    acc = tl.zeros((x_at.shape[0], y_at.shape[0]), tl.float32)
    if FOLDED:
        for start in range(0, WIDTH, FOLD):
            part = tl.zeros((x_at.shape[0], y_at.shape[0]), tl.float32)
            for _ in range(0, tl.minimum(WIDTH - start, FOLD), BK):
                part = tl.dot(tl.load(x_at), tl.trans(tl.load(y_at)), part)
                x_at += BK
                y_at += BK
            acc += part
    else:
        for _ in range(0, WIDTH, BK):
            acc = tl.dot(tl.load(x_at), tl.trans(tl.load(y_at)), acc)
            x_at += BK
            y_at += BK
    return acc


@triton.jit
def _keep(
    keys, dots, low, scale, low_x, scale_x, i, m, slot, tile_m, N, COUNT, SLOTS, above,
    SYMMETRIC: tl.constexpr, SLOT: tl.constexpr,
):  # fmt: skip
    """Keeps the lowest KEYS bounds of rows m = START + i [BM] in one slot, dots [BM,SLOT]; `above`: of its columns, too."""
    n = slot * SLOT + tl.arange(0, SLOT)
    y = tl.minimum(n, N - 1)
    bound = low_x[:, None] + tl.load(low + y)[None, :] - 2.0 * (dots * scale_x[:, None]) * tl.load(scale + y)[None, :]
    bound = bound - TINY
    bound = tl.where(bound > 0, bound, 0.0)  # also where it is NaN
    counts = (i[:, None] < COUNT) & (n[None, :] < N) & (m[:, None] != n[None, :])
    base = tl.where(counts, bound.to(tl.int32, bitcast=True) & ~IN_SLOT, NO_KEY)
    at = keys + (i.to(tl.int64) * SLOTS + slot) * KEYS
    last = tl.full(i.shape, -1, tl.int32)
    for rank in tl.static_range(KEYS):
        key = base | tl.arange(0, SLOT)[None, :]
        last = tl.min(tl.where(key > last[:, None], key, NO_KEY), 1)
        tl.store(at + rank, last, (i < COUNT) & (slot < SLOTS))
    if SYMMETRIC:
        at = keys + (n.to(tl.int64) * SLOTS + tile_m) * KEYS
        last = tl.full((SLOT,), -1, tl.int32)
        for rank in tl.static_range(KEYS):
            key = base | tl.arange(0, SLOT)[:, None]
            last = tl.min(tl.where(key > last[None, :], key, NO_KEY), 0)
            tl.store(at + rank, last, (n < N) & above)


@triton.jit
def screen_kernel(
    rounded, low, scale, keys, N, WIDTH, START, COUNT, SLOTS,
    SYMMETRIC: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SLOT: tl.constexpr,
    FOLD: tl.constexpr, FOLDED: tl.constexpr, TALL: tl.constexpr,
):  # fmt: skip
    """keys[i, slot] = the KEYS lowest bounds of row START + i among a slot's columns: BM rows x BN columns a program.

    BN is one or two slots. SYMMETRIC (BM = SLOT, all rows): tiles below the diagonal are left out, and tiles above it
    also serve their columns. Neighbouring programs take TALL row tiles of the same columns, which L2 then holds.
    FLOPs: 2*BM*BN*WIDTH. Reads (BM+BN)*WIDTH float16, mostly from L2; writes KEYS*BM*BN/SLOT keys, and as many for the
    columns.
    """
    tiles_m, tiles_n = tl.cdiv(COUNT, BM), tl.cdiv(N, BN)
    band = tl.program_id(0) // (TALL * tiles_n)
    inside_band = tl.program_id(0) % (TALL * tiles_n)
    height = tl.minimum(tiles_m - band * TALL, TALL)
    tile_m, tile_n = band * TALL + inside_band % height, inside_band // height
    WIDE: tl.constexpr = BN // SLOT
    if SYMMETRIC:  # noqa: SIM102 - a constant: where it is false the test inside is not compiled
        if tile_n < tile_m // WIDE:
            return
    i = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    m = START + i
    x = tl.minimum(m, N - 1)
    k = tl.arange(0, BK)
    x_at = rounded + x.to(tl.int64)[:, None] * WIDTH + k[None, :]
    y_at = rounded + tl.minimum(n, N - 1).to(tl.int64)[:, None] * WIDTH + k[None, :]
    dots = _products(x_at, y_at, WIDTH, FOLD, FOLDED, BK)
    low_x, scale_x = tl.load(low + x), tl.load(scale + x)
    above = tile_n > tile_m // WIDE
    if WIDE == 1:
        _keep(keys, dots, low, scale, low_x, scale_x, i, m, tile_n, tile_m, N, COUNT, SLOTS, above, SYMMETRIC, SLOT)
    else:
        left, right = tl.split(tl.permute(tl.reshape(dots, (BM, 2, SLOT)), (0, 2, 1)))
        slot = tile_n * 2
        _keep(keys, left, low, scale, low_x, scale_x, i, m, slot, tile_m, N, COUNT, SLOTS, above, SYMMETRIC, SLOT)
        slot += 1
        _keep(keys, right, low, scale, low_x, scale_x, i, m, slot, tile_m, N, COUNT, SLOTS, above, SYMMETRIC, SLOT)


# ---- settling from differences ----------------------------------------------------------------------


@triton.jit
def _bound_of(key):
    return (key & ~IN_SLOT).to(tl.float32, bitcast=True)


@triton.jit
def _next(keys_at, count, last, BLOCK: tl.constexpr):
    """The lowest (key << 32 | place) above `last`; NOTHING where there is none."""
    found = tl.full((), NOTHING, tl.int64)
    for first in range(0, count, BLOCK):
        place = first + tl.arange(0, BLOCK)
        key = tl.load(keys_at + place, (place < count) & (place % KEYS < RANKS), NO_KEY)
        entry = (key.to(tl.int64) << 32) | place.to(tl.int64)
        found = tl.minimum(found, tl.min(tl.where((key != NO_KEY) & (entry > last), entry, NOTHING), 0))
    return found


@triton.jit
def settle_kernel(
    theta, keys, best, flags, D, row_stride, START, SLOTS, slack,
    SLOT: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """best[i] = the packed nearest of row START + i among its kept pairs; flags[i, slot]: others there may be nearer.

    One row a program, one warp. Pairs in order of their bound, at most MOST, until the next bound is above the best
    distance times slack (what `slack` is for: a distance, too, is rounded). 3*D FLOPs and D values read a pair, the
    row itself from L1 or L2; usually 1 to 3 pairs.
    """
    i = tl.program_id(0).to(tl.int64)
    row = START + i
    count = SLOTS * KEYS
    keys_at = keys + i * count
    found = tl.full((), NOTHING, tl.int64)
    last = tl.full((), -1, tl.int64)
    entry = _next(keys_at, count, last, BLOCK)
    limit = tl.full((), float("inf"), tl.float32)
    if (entry >> 32).to(tl.int32) >= 0x7F800000:
        # Every distance is infinite: the lowest other row.
        found = pack(tl.full((), float("inf"), tl.float32), (row == 0).to(tl.int64))
        limit = tl.full((), -1.0, tl.float32)
        entry = tl.full((), NOTHING, tl.int64)
    pairs = 0
    while (entry != NOTHING) & (pairs < MOST):
        place = (entry & 0x7FFFFFFF).to(tl.int32)
        column = (place // KEYS) * SLOT + ((entry >> 32).to(tl.int32) & IN_SLOT)
        other = column.to(tl.int64)
        total = pair_sum(theta + row * row_stride, theta + other * row_stride, D, 2, PAIR)
        found = tl.minimum(found, pack(total, other))
        limit = (found >> 32).to(tl.int32).to(tl.float32, bitcast=True) * slack
        last = entry
        pairs += 1
        entry = _next(keys_at, count, last, BLOCK)
        if _bound_of((entry >> 32).to(tl.int32)) > limit:
            entry = tl.full((), NOTHING, tl.int64)
    tl.store(best + i, found)
    for first in range(0, count, BLOCK):
        place = first + tl.arange(0, BLOCK)
        key = tl.load(keys_at + place, place < count, NO_KEY)
        below = (key != NO_KEY) & (_bound_of(key) <= limit)
        unseen = ((key.to(tl.int64) << 32) | place.to(tl.int64)) > last
        flagged = below & (unseen | (place % KEYS == RANKS))
        flagged = tl.max(tl.reshape(flagged.to(tl.int32), (BLOCK // KEYS, KEYS)), 1)
        slot = first // KEYS + tl.arange(0, BLOCK // KEYS)
        tl.store(flags + i * SLOTS + slot, flagged.to(tl.int8), slot < SLOTS)


@triton.jit
def list_kernel(flags, lists, tiles, COUNT, SLOTS, BLOCK: tl.constexpr, BR: tl.constexpr):
    """lists[slot] = the rows that flag a slot, in order, the rest of the last BR filled up: one slot a program.

    tiles[slot]: how many times BR. Reads COUNT flags.
    """
    slot = tl.program_id(0).to(tl.int64)
    rows = tl.arange(0, BLOCK)
    listed = tl.full((), 0, tl.int32)
    for first in range(0, COUNT, BLOCK):
        i = first + rows
        flagged = tl.load(flags + i.to(tl.int64) * SLOTS + slot, i < COUNT, 0).to(tl.int32)
        place = listed + tl.cumsum(flagged, 0) - flagged
        tl.store(lists + slot * COUNT + place, i, flagged != 0)
        listed += tl.sum(flagged, 0)
    tl.store(tiles + slot, listed)


@triton.jit
def slots_kernel(
    theta, lists, listed, parts, N, D, row_stride, START, COUNT, SLOTS,
    SLOT: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """parts[i, slot] = packed nearest of row START + i in a slot, for all rows that flag it.

    The programs deal the tiles of BR listed rows x SLOT columns among themselves; how many there are the device alone
    knows, mostly none. 3*BR*SLOT*D FLOPs a tile.
    """
    before = tl.full((), 0, tl.int64)
    for slot in range(0, SLOTS):
        count = tl.load(listed + slot)
        tiles = tl.cdiv(count, BR)
        turn = (tl.program_id(0) - before) % tl.num_programs(0)
        turn = tl.where(turn < 0, turn + tl.num_programs(0), turn).to(tl.int32)
        for tile in range(turn, tiles, tl.num_programs(0)):
            place = tile * BR + tl.arange(0, BR)
            i = tl.load(lists + tl.cast(slot, tl.int64) * COUNT + place, place < count, 0).to(tl.int64)
            first = slot * SLOT
            found = nearest_of_columns(theta, START + i, first, tl.minimum(first + SLOT, N), D, row_stride, 2, BC)
            tl.store(parts + i * SLOTS + slot, found, place < count)
        before += tiles


# ---- launchers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Screen:
    """Centred rows in float16 [N,WIDTH], and of each its scale and its term of the bounds, [N] float32."""

    rounded: Tensor
    low: Tensor
    scale: Tensor


def centered(theta: Tensor, config: ScreenConfig) -> Screen:
    """theta [N,D] -> its centred rows."""
    n, features = theta.shape
    chunks = triton.cdiv(n, SUM_ROWS)
    sums, mean = theta.new_empty(chunks, features), theta.new_empty(features)
    block = min(512, max(16, triton.next_power_of_2(features)))
    blocks = triton.cdiv(features, block)
    column_sums_kernel[(chunks * blocks,)](
        theta, sums, n, features, theta.stride(0), ROWS=SUM_ROWS, BLOCK=block, num_warps=4
    )
    mean_kernel[(triton.cdiv(features, 128),)](sums, mean, n, features, chunks, BLOCK=128, num_warps=4)
    width = triton.cdiv(features, 64) * 64
    screen = Screen(theta.new_empty(n, width, dtype=torch.float16), theta.new_empty(n), theta.new_empty(n))
    block = min(4096, triton.next_power_of_2(features))
    # |v|^2: additions one after the other in each place of a block, a tree over the block, and some 30 other roundings.
    shrink = 1 - 2 * config.rho(width) - (triton.cdiv(width, block) + 50) * U
    center_kernel[(n,)](
        theta, mean, screen.rounded, screen.low, screen.scale, features, theta.stride(0), width, shrink, BLOCK=block,
        num_warps=8,
    )  # fmt: skip
    return screen


def nearest_by_screening(
    theta: Tensor, start: int, stop: int, config: ScreenConfig | None = None, most: int = MOST_PAIRS
) -> tuple[Tensor, Tensor]:
    """theta [N,D] -> Euclidean distance and index of rows start..stop-1; with D*N/2 bytes of float16 beside theta."""
    n, features = theta.shape
    config = config or ScreenConfig.for_shape(n, features)
    screen = centered(theta, config)
    slots = triton.cdiv(n, config.slot)
    bytes_a_row = slots * (4 * KEYS.value + 1 + 4 + 8)
    turn = max(config.m, MOST_BYTES // bytes_a_row)
    distance = theta.new_empty(stop - start)
    index = theta.new_empty(stop - start, dtype=torch.int64)
    for first in range(start, stop, turn):
        some = slice(first - start, min(first + turn, stop) - start)
        _turn(theta, screen, first, config, most, distance[some], index[some])
    return distance, index


def _turn(
    theta: Tensor, screen: Screen, start: int, config: ScreenConfig, most: int, distance: Tensor, index: Tensor
) -> None:
    """The nearest of distance.shape[0] rows from `start` on, in place."""
    (n, features), count = theta.shape, distance.shape[0]
    slots = triton.cdiv(n, config.slot)
    new = lambda *shape, dtype: theta.new_empty(shape, dtype=dtype)
    keys = new(count, slots, KEYS.value, dtype=torch.int32)
    tiles = triton.cdiv(count, config.m) * triton.cdiv(n, config.n)
    screen_kernel[(tiles,)](
        screen.rounded, screen.low, screen.scale, keys, n, screen.rounded.shape[1], start, count, slots, SYMMETRIC=count == n, BM=config.m, BN=config.n, BK=config.k, SLOT=config.slot, FOLD=config.fold,
        FOLDED=screen.rounded.shape[1] > config.fold, TALL=16, num_warps=config.num_warps,
        num_stages=config.num_stages,
    )  # fmt: skip
    best, flags = new(count, dtype=torch.int64), new(count, slots, dtype=torch.int8)
    settle_kernel[(count,)](
        theta, keys, best, flags, features, theta.stride(0), start, slots, slack(features), SLOT=config.slot, MOST=most,
        BLOCK=min(512, triton.next_power_of_2(slots * KEYS.value)), PAIR=pair_groups(features), num_warps=1,
    )  # fmt: skip
    lists, listed = new(slots, count, dtype=torch.int32), new(slots, dtype=torch.int32)
    list_kernel[(slots,)](flags, lists, listed, count, slots, BLOCK=1024, BR=ROWS, num_warps=4)
    parts = new(count, slots, dtype=torch.int64)
    slots_kernel[(min(PROGRAMS, slots * triton.cdiv(count, ROWS)),)](
        theta, lists, listed, parts, n, features, theta.stride(0), start, count, slots, SLOT=config.slot, BR=ROWS,
        BC=COLUMNS, num_warps=4,
    )  # fmt: skip
    merge(theta, parts, start, 2, distance, index, best, flags)
