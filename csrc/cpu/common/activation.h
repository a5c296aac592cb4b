// Activations over contiguous values, in place: h = act(z), and for backward also d = act'(z).
// Each functor has value(x, parameter) and both(x, parameter); both() shares the expensive part.
#pragma once

#include "../../target_net.h"
#include "functions.h"

namespace hyperfast {
namespace HF_ISA {

template <class T>
struct ValueAndSlope {
  Vec<T> value;
  Vec<T> slope;
};

struct Relu {
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T) {
    return x <= T(0) ? splat(T(0)) : x;  // a NaN passes
  }
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T) {
    return {x <= T(0) ? splat(T(0)) : x, x <= T(0) ? splat(T(0)) : splat(T(1))};
  }
};

struct LeakyRelu {
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T slope) {
    return x > T(0) ? x : x * slope;
  }
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T slope) {
    return {x > T(0) ? x : x * slope, x > T(0) ? splat(T(1)) : splat(slope)};
  }
};

struct Elu {
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T alpha) {
    return x > T(0) ? x : alpha * vexpm1(x);
  }
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T alpha) {
    const Vec<T> negative = alpha * vexpm1(x);
    return {x > T(0) ? x : negative, x > T(0) ? splat(T(1)) : negative + alpha};
  }
};

struct Tanh {
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T) {
    return vtanh(x);
  }
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T) {
    const Vec<T> t = vtanh(x);
    return {t, T(1) - t * t};
  }
};

struct Sigmoid {
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T) {
    return vsigmoid(x);
  }
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T) {
    const Vec<T> s = vsigmoid(x);
    return {s, s * (T(1) - s)};
  }
};

struct Silu {
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T) {
    return x * vsigmoid(x);
  }
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T) {
    const Vec<T> s = vsigmoid(x);
    return {x * s, s * (T(1) + x * (T(1) - s))};
  }
};

struct Gelu {
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T) {
    return x * vnormal_cdf(x);
  }
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T) {
    const Vec<T> cdf = vnormal_cdf(x);
    const Vec<T> pdf = T(0.39894228040143267794) * vexp(T(-0.5) * x * x);
    return {x * cdf, cdf + x * pdf};
  }
};

struct GeluTanh {
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T) {
    constexpr T a = T(0.79788456080286535588), b = T(0.044715);
    const Vec<T> t = vtanh(a * (x + b * x * x * x));
    const Vec<T> half = T(0.5) * (T(1) + t);
    return {x * half, half + T(0.5) * x * (T(1) - t * t) * (a * (T(1) + T(3) * b * x * x))};
  }
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T parameter) {
    return both<T>(x, parameter).value;
  }
};

// The factor by which weights and biases before an activation are multiplied when they are packed: cos and sin
// take half-turns in float, which saves their reduction by multiples of pi.
template <class T>
HF_INLINE T argument_scale(Activation activation) {
  const bool turns = activation == Activation::cos || activation == Activation::sin;
  return turns && sizeof(T) == 4 ? T(0.31830988618379067154) : T(1);
}
HF_INLINE F vcos(F u) { return cos_half_turns(u); }
HF_INLINE F vsin(F u) { return sin_half_turns(u); }
HF_INLINE D vcos(D x) {
  return lane_by_lane(x, [](double v) { return __builtin_cos(v); });
}
HF_INLINE D vsin(D x) {
  return lane_by_lane(x, [](double v) { return __builtin_sin(v); });
}

struct Cos {
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T) {
    return vcos(x);
  }
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T) {
    return {vcos(x), -vsin(x)};
  }
};

struct Sin {
  template <class T>
  HF_INLINE Vec<T> value(Vec<T> x, T) {
    return vsin(x);
  }
  template <class T>
  HF_INLINE ValueAndSlope<T> both(Vec<T> x, T) {
    return {vsin(x), vcos(x)};
  }
};

template <class Function, class T>
static void apply(T* z, T* slope, int64_t n, T parameter) {
  constexpr int64_t lanes = kLanes<T>;
  if (slope) {
    for (int64_t i = 0; i < n; i += lanes) {
      const ValueAndSlope<T> a = Function::template both<T>(load(z + i), parameter);
      store(z + i, a.value);
      store(slope + i, a.slope);
    }
  } else {
    for (int64_t i = 0; i < n; i += lanes) store(z + i, Function::template value<T>(load(z + i), parameter));
  }
}

// cos and sin of values too large (or not finite) for the reduction: the C library, lane by lane, so that no
// other value is touched. `z` still holds the arguments, in half-turns.
template <class Function>
static void apply_with_large(bool cosine, float* z, float* slope, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes<float>) {
    const F x = load(z + i);
    const ValueAndSlope<float> a = Function::template both<float>(x, 0.0f);
    store(z + i, a.value);
    if (slope) store(slope + i, a.slope);
    for (int64_t lane = 0; lane < kLanes<float>; ++lane) {
      if (__builtin_fabsf(x[lane]) < kReducible) continue;
      const double radians = 3.14159265358979323846 * double(x[lane]);
      const double c = __builtin_cos(radians), s = __builtin_sin(radians);
      z[i + lane] = float(cosine ? c : s);
      if (slope) slope[i + lane] = float(cosine ? -s : c);
    }
  }
}

HF_INLINE bool any_beyond_reduction(const float* z, int64_t n) {
  I largest = {};
  for (int64_t i = 0; i < n; i += kLanes<float>) {
    const I magnitude = (I)load(z + i) & 0x7FFFFFFF;
    largest = magnitude > largest ? magnitude : largest;
  }
  const F bits = (F)largest;
  for (int i = 0; i < kLanes<float>; ++i)
    if (!(bits[i] < kReducible)) return true;
  return false;
}

template <class Function>
static void apply_trigonometric(bool cosine, float* z, float* slope, int64_t n) {
  if (any_beyond_reduction(z, n)) return apply_with_large<Function>(cosine, z, slope, n);
  apply<Function>(z, slope, n, 0.0f);
}
template <class Function>
static void apply_trigonometric(bool, double* z, double* slope, int64_t n) {
  apply<Function>(z, slope, n, 0.0);
}

// n is a multiple of kLanes<T>; slope may be null; identity leaves both alone.
template <class T>
static void activate(Activation activation, T parameter, T* z, T* slope, int64_t n) {
  switch (activation) {
    case Activation::identity: return;
    case Activation::relu: return apply<Relu>(z, slope, n, parameter);
    case Activation::leaky_relu: return apply<LeakyRelu>(z, slope, n, parameter);
    case Activation::elu: return apply<Elu>(z, slope, n, parameter);
    case Activation::tanh: return apply<Tanh>(z, slope, n, parameter);
    case Activation::sigmoid: return apply<Sigmoid>(z, slope, n, parameter);
    case Activation::gelu: return apply<Gelu>(z, slope, n, parameter);
    case Activation::gelu_tanh: return apply<GeluTanh>(z, slope, n, parameter);
    case Activation::silu: return apply<Silu>(z, slope, n, parameter);
    case Activation::cos: return apply_trigonometric<Cos>(true, z, slope, n);
    case Activation::sin: return apply_trigonometric<Sin>(false, z, slope, n);
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
