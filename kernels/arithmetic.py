"""Arithmetic that the kernels share, in the subset of Triton that 3.6 to 3.9 and the interpreter have in common.

Precision of the matrix products, a constexpr everywhere: FLOAT (the dtype of the activations, fp32 accumulation),
INT8 (signed 8 bit times signed 8 bit, int32 accumulation), FP8 (e4m3, fp32 accumulation).
"""

from __future__ import annotations

import triton
import triton.language as tl

FLOAT = tl.constexpr(0)
INT8 = tl.constexpr(1)
FP8 = tl.constexpr(2)

# The largest finite e4m3 (float8_e4m3fn), and the largest 8-bit integer used: -128 is left out, as in Q/DQ graphs.
FP8_MAX = tl.constexpr(448.0)
INT8_MAX = tl.constexpr(127.0)
# 1.5 * 2^23: adding and subtracting it rounds a float32 below 2^22 to the nearest whole number, ties to even, as
# QuantizeLinear does. libdevice's rint does not run in the interpreter.
_ROUND = tl.constexpr(12582912.0)


@triton.jit
def gelu_tanh(x):
    """x * 0.5 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), by tanh(y) = 2 sigmoid(2 y) - 1; arXiv 1606.08415."""
    # Below -80 the factor is 0 beside any x; the bound keeps exp finite.
    return x * tl.sigmoid(tl.maximum(1.5957691216057308 * (x + 0.044715 * x * x * x), -80.0))


@triton.jit
def quantise(x, PRECISION: tl.constexpr):
    """float32 in units of the scale -> 8 bit, saturating."""
    if PRECISION == INT8:
        clamped = tl.minimum(tl.maximum(x, -INT8_MAX), INT8_MAX)
        return ((clamped + _ROUND) - _ROUND).to(tl.int8)
    else:
        return tl.minimum(tl.maximum(x, -FP8_MAX), FP8_MAX).to(tl.float8e4nv)


@triton.jit
def matmul(a, b, PRECISION: tl.constexpr):
    """a @ b in float32 units; int32 products are converted exactly below 2^24 and rounded beyond."""
    if PRECISION == INT8:
        return tl.dot(a, b, out_dtype=tl.int32).to(tl.float32)
    elif PRECISION == FP8:
        return tl.dot(a, b)
    else:
        return tl.dot(a, b, input_precision="ieee")
