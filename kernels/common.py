"""What several kernel families share: activations, and types of products."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hyperfast.backends import INTERPRETING

# Indices of hyperfast.plan.ACTIVATIONS.
RELU = tl.constexpr(1)
LEAKY_RELU = tl.constexpr(2)
ELU = tl.constexpr(3)
TANH = tl.constexpr(4)
SIGMOID = tl.constexpr(5)
GELU = tl.constexpr(6)
GELU_TANH = tl.constexpr(7)
SILU = tl.constexpr(8)
COS = tl.constexpr(9)
SIN = tl.constexpr(10)

TRITON_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def dot_type(*dtypes: torch.dtype) -> torch.dtype:
    """The operand type of a product: 16 bits only where every operand is stored so."""
    return dtypes[0] if len(set(dtypes)) == 1 else torch.float32


def dot_precision(dtype: torch.dtype) -> str:
    """float32 means float32 unless torch.set_float32_matmul_precision allows less."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


def power_of_two(n: int, at_least: int = 16) -> int:
    """The next power of two; products need at least 16."""
    return max(at_least, triton.next_power_of_2(n))


def unit_columns(t: Tensor) -> Tensor:
    """t, or a copy where neighbours in its last dimension are not neighbours in memory."""
    return t if t.shape[-1] <= 1 or t.stride(-1) == 1 else t.contiguous()


def is_amd() -> bool:
    """Whether launches go to an AMD GPU."""
    return not INTERPRETING and triton.runtime.driver.active.get_current_target().backend == "hip"


def is_blackwell() -> bool:
    """Whether launches go to an NVIDIA GPU of sm_100 or later."""
    if INTERPRETING:
        return False
    target = triton.runtime.driver.active.get_current_target()
    return target.backend == "cuda" and target.arch >= 100


# tl.cos and tl.sin take libdevice's slow path (a stack frame and five times the code). This reduction by
# n * pi in three parts (exact while n < 2^15) and a polynomial of relative error 6.1e-9 on [-pi/2, pi/2] need neither.


@triton.jit
def _minus_n_pi(x, n):
    return ((x - n * 3.140625) - n * 9.67502593994140625e-4) - n * 1.509957990978376432e-7


@triton.jit
def _sin_reduced(r):
    s = r * r
    p = ((2.605781219244818e-06 * s - 0.00019809603691101074) * s + 0.00833306647837162) * s - 0.16666659712791443
    return r + (r * s) * p


@triton.jit
def _sign(n):
    """(-1)^n for a float that holds an integer; infinities and NaN give NaN."""
    half = n * 0.5
    return 1.0 - 4.0 * (half - tl.floor(half))


@triton.jit
def _cos(z):
    n = tl.floor(z * 0.318309886 + 1.0)
    return _sin_reduced(_minus_n_pi(z, n - 0.5)) * _sign(n)


@triton.jit
def _sin(z):
    n = tl.floor(z * 0.318309886 + 0.5)
    return _sin_reduced(_minus_n_pi(z, n)) * _sign(n)


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _tanh(z):
    # Odd polynomial below 0.5, where the quotient of exponentials cancels.
    a = tl.minimum(tl.abs(z), 20.0)
    e = tl.exp(2.0 * a)
    large = (e - 1.0) / (e + 1.0)
    s = a * a
    small = a + a * s * (-0.33333331 + s * (0.13333197 + s * (-0.05394208 + s * (0.02134453 - 0.00718884 * s))))
    t = tl.where(a < 0.5, small, large)
    t = tl.where(z < 0, -t, t)
    return tl.where(z != z, z, t)


@triton.jit
def _expm1(z):
    # A Taylor polynomial near zero, where exp(z) - 1 cancels.
    small = z * (1.0 + z * (0.5 + z * (0.16666667 + z * (0.041666668 + z * (0.008333334 + z * 0.0013888889)))))
    return tl.where(tl.abs(z) < 0.3, small, tl.exp(z) - 1.0)


@triton.jit
def activate(z, ACT: tl.constexpr, PARAM: tl.constexpr):
    """act(z), float32."""
    if ACT == RELU:
        z = tl.where(z <= 0, 0.0, z)
    elif ACT == LEAKY_RELU:
        z = tl.where(z > 0, z, z * PARAM)
    elif ACT == ELU:
        z = tl.where(z > 0, z, PARAM * _expm1(z))
    elif ACT == TANH:
        z = _tanh(z)
    elif ACT == SIGMOID:
        z = _sigmoid(z)
    elif ACT == GELU:
        z = 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACT == GELU_TANH:
        z = 0.5 * z * (1.0 + _tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))
    elif ACT == SILU:
        z = z * _sigmoid(z)
    elif ACT == COS:
        z = _cos(z)
    elif ACT == SIN:
        z = _sin(z)
    return z


@triton.jit
def slope(z, ACT: tl.constexpr, PARAM: tl.constexpr):
    """act'(z), float32."""
    d = tl.full(z.shape, 1.0, tl.float32)
    if ACT == RELU:
        d = tl.where(z <= 0, 0.0, d)
    elif ACT == LEAKY_RELU:
        d = tl.where(z > 0, d, PARAM)
    elif ACT == ELU:
        d = tl.where(z > 0, d, PARAM * tl.exp(z))
    elif ACT == TANH:
        t = _tanh(z)
        d = 1.0 - t * t
    elif ACT == SIGMOID:
        s = _sigmoid(z)
        d = s * (1.0 - s)
    elif ACT == GELU:
        pdf = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        d = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476)) + z * pdf
    elif ACT == GELU_TANH:
        t = _tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))
        d = 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * z * z)
    elif ACT == SILU:
        s = _sigmoid(z)
        d = s * (1.0 + z * (1.0 - s))
    elif ACT == COS:
        d = -_sin(z)
    elif ACT == SIN:
        d = _cos(z)
    return d


# ---- random words -----------------------------------------------------------------------------------


@triton.jit
def philox_words(key, first, c1, c2, c3, COUNTERS: tl.constexpr):
    """[R, 4 * COUNTERS] uint32: in row r the words of the counters (first + i, c1[r], c2[r], c3) by key[r], in order."""
    c0 = (first + tl.arange(0, COUNTERS)).to(tl.uint32)[None, :] + tl.zeros_like(key).to(tl.uint32)[:, None]
    like = tl.zeros_like(c0)
    w0, w1, w2, w3 = tl.philox(
        key[:, None], c0, like + c1.to(tl.uint32)[:, None], like + c2.to(tl.uint32)[:, None], like + c3.to(tl.uint32)
    )
    return tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(c0.shape[0], 4 * COUNTERS)
