// Vectorised elementary functions. float: our polynomials, each with its relative error (minimax fits,
// before rounding). double: the C library lane by lane, exact enough to check gradients against.
//
// All of them are pure bit-for-bit functions of their lane, and let NaN through.
#pragma once

#include "vec.h"

namespace hyperfast {
namespace HF_ISA {

typedef Vec<float> F;
typedef VecOf<float>::integer I;
typedef uint32_t U __attribute__((vector_size(HF_VECTOR_BYTES)));
typedef Vec<double> D;

template <class V, class Function>
HF_INLINE V lane_by_lane(V v, Function f) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(v[0]); ++i) v[i] = f(v[i]);
  return v;
}

// Adding and subtracting 1.5 * 2^23 rounds a float to the nearest integer and leaves that integer in
// the low bits of the sum. Reassociation would break it: never compile with -ffast-math.
constexpr float kRound = 12582912.0f;

// sin(pi u) for |u| < kReducible half-turns: with n the nearest integer, u - n is exact, and no part of pi is
// subtracted. Polynomial on [-1/2, 1/2], relative error 5.3e-9.
constexpr float kReducible = 2097152.0f;  // 2^21: n + kRound is still an exact integer

HF_INLINE F sin_half_turns(F u) {
  const F t = u + kRound;
  const F r = u - (t - kRound);
  const F s = r * r;
  F p = 0.0775609090924263f * s - 0.5982424020767212f;
  p = p * s + 2.550069808959961f;
  p = p * s - 5.167709827423096f;
  p = p * s + 3.1415927410125732f;
  return (F)((I)(r * p) ^ ((I)t << 31));
}
HF_INLINE F cos_half_turns(F u) { return sin_half_turns(u + 0.5f); }

// x = r + n * ln 2; expm1(r) with relative error 3.1e-9; scale = 2^n. x must lie in [-87, 88].
struct Exponential {
  F expm1;
  F scale;
};
HF_INLINE Exponential exponential(F x) {
  const F t = x * 1.44269504f + kRound;
  const F n = t - kRound;
  const F r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  F p = 0.001381459878757596f * r + 0.008368715643882751f;
  p = p * r + 0.04166838899254799f;
  p = p * r + 0.1666652113199234f;
  p = p * r + 0.4999999403953552f;
  return {p * (r * r) + r, (F)(((I)t << 23) + 0x3F800000)};
}
HF_INLINE F clamp(F x, float low, float high) {
  x = x > high ? splat(high) : x;
  return x < low ? splat(low) : x;
}

// log of a normal positive number: x = 2^n (1 + t), |t| < 0.42, relative error 3.3e-8 before rounding.
HF_INLINE F vlog(F x) {
  const I shifted = (I)x - 0x3F3504F3;  // sqrt(1/2)
  const I n = shifted >> 23;
  const F t = (F)((I)x - (n << 23)) - 1.0f;
  F p = 0.08917734771966934f * t - 0.14350180327892303f;
  p = p * t + 0.14876994490623474f;
  p = p * t - 0.16565637290477753f;
  p = p * t + 0.19965395331382751f;
  p = p * t - 0.2500174641609192f;
  p = p * t + 0.33333858847618103f;
  const F log1p = t - (t * t) * (0.5f - t * p);
  return __builtin_convertvector(n, F) * 0.693147181f + log1p;
}

// 2^x for x in [-126, 127], relative error 1e-8 before rounding; other numbers give garbage, NaN gives NaN. Bits are
// added as unsigned integers, for which an overflow is defined.
HF_INLINE F exp2_normal(F x) {
  const F t = x + kRound;
  const F r = x - (t - kRound);
  F p = 0.0001532113864536953f * r + 0.001339017079783632f;
  p = p * r + 0.009618526680893084f;
  p = p * r + 0.05550362399847888f;
  p = p * r + 0.24022647832186947f;
  p = p * r + 0.6931471805599453f;
  const F scale = (F)(((U)t << 23) + 0x3F800000u);
  return p * r * scale + scale;
}

HF_INLINE F vexp(F x) {
  const Exponential e = exponential(clamp(x, -87.0f, 88.0f));
  return e.expm1 * e.scale + e.scale;
}
HF_INLINE F vexpm1(F x) {
  const Exponential e = exponential(clamp(x, -87.0f, 88.0f));
  return e.expm1 * e.scale + (e.scale - 1.0f);
}
HF_INLINE F vsigmoid(F x) { return 1.0f / (1.0f + vexp(-x)); }
HF_INLINE F vtanh(F x) {
  const F e = vexpm1(2.0f * clamp(x, -20.0f, 20.0f));
  return e / (e + 2.0f);
}
// The normal distribution function, erfc(-x / sqrt 2) / 2, with erfc(u) = t exp(P(t) - u^2),
// t = 1 / (1 + u/2), relative error 2.7e-8. Unlike (1 + erf)/2 it keeps its digits for x << 0.
HF_INLINE F vnormal_cdf(F x) {
  const F u = clamp((F)((I)x & 0x7FFFFFFF) * 0.707106781f, 0.0f, 9.3f);
  const F t = 1.0f / (1.0f + 0.5f * u);
  F p = 0.10552161931991577f * t - 0.4606184959411621f;
  p = p * t + 0.623238205909729f;
  p = p * t + 0.03767407685518265f;
  p = p * t - 0.710670530796051f;
  p = p * t + 0.35102739930152893f;
  p = p * t - 0.09045302867889404f;
  p = p * t + 0.41436341404914856f;
  p = p * t + 0.9951818585395813f;
  p = p * t - 1.2652645111083984f;
  const F tail = 0.5f * t * vexp(p - u * u);
  return x > 0.0f ? 1.0f - tail : tail;
}

HF_INLINE D exp2_normal(D x) {
  return lane_by_lane(x, [](double v) { return __builtin_exp2(v); });
}
HF_INLINE D vlog(D x) {
  return lane_by_lane(x, [](double v) { return __builtin_log(v); });
}
HF_INLINE D vexp(D x) {
  return lane_by_lane(x, [](double v) { return __builtin_exp(v); });
}
HF_INLINE D vexpm1(D x) {
  return lane_by_lane(x, [](double v) { return __builtin_expm1(v); });
}
HF_INLINE D vsigmoid(D x) { return 1.0 / (1.0 + vexp(-x)); }
HF_INLINE D vtanh(D x) {
  return lane_by_lane(x, [](double v) { return __builtin_tanh(v); });
}
HF_INLINE D vnormal_cdf(D x) {
  return lane_by_lane(x, [](double v) { return 0.5 * __builtin_erfc(-0.70710678118654752440 * v); });
}

}  // namespace HF_ISA
}  // namespace hyperfast
