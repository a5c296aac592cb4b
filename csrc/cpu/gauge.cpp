// Gauge fixing, one network after the other: a filter is summed and scaled while it is in L1, and a network's row
// (80 KB of the largest target so far) while it is in L2.
//
// Bytes: forward theta once and the result once; backward gy and theta once, and the gradient once. The scales of a
// layer are spread over the next one's columns, so that every loop runs over whole filters.
#include "../gauge.h"

#include "common/convert.h"

namespace hyperfast {
namespace HF_ISA {

constexpr double kDead = 1e-30;  // as in hyperfast/reference/gauge.py

template <class T>
struct Workspace {
  T *columns, *gcolumns;   // [largest fan_in]: the previous layer's scale, and its gradient
  T *weight, *grad, *out;  // [largest fan_in]: a filter's values where they need conversion
  T *bias, *gbias, *gs;    // [largest number of filters]
};

static int64_t largest(const GaugeProblem& p, bool filters) {
  int64_t most = 0;
  for (int64_t l = 0; l < p.count; ++l) most = max64(most, filters ? p.layers[l].filters : p.layers[l].fan_in);
  return round_up(most, 16);
}

static int64_t workspace(const GaugeProblem& p) {
  return (5 * largest(p, false) + 3 * largest(p, true)) * (p.type == DType::f64 ? 8 : 4);
}

template <class T>
static Workspace<T> divide(const GaugeProblem& p, void* memory) {
  const int64_t n = largest(p, false), f = largest(p, true);
  T* at = static_cast<T*>(memory);
  T* filters = at + 5 * n;
  return {at, at + n, at + 2 * n, at + 3 * n, at + 4 * n, filters, filters + f, filters + 2 * f};
}

template <class T>
HF_INLINE T sqrt_of(T x) {
  return sizeof(T) == 8 ? T(__builtin_sqrt(double(x))) : T(__builtin_sqrtf(float(x)));
}

// sum of a[i] b[i] c[i], in several sums whose number the instruction set fixes.
template <class T>
static T dot(const T* a, const T* b, const T* c, int64_t n) {
  constexpr int64_t lanes = kLanes<T>, step = 4 * lanes;
  Vec<T> sums[4] = {};
  int64_t i = 0;
  for (; i + step <= n; i += step)
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t at = i + k * lanes;
      sums[k] += load(a + at) * load(b + at) * load(c + at);
    }
  const Vec<T> together = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  T total = 0;
  for (int64_t k = 0; k < lanes; ++k) total += together[k];
  for (; i < n; ++i) total += a[i] * b[i] * c[i];
  return total;
}

template <class T>
static T squares(const T* a, const T* c, int64_t n) {
  constexpr int64_t lanes = kLanes<T>, step = 4 * lanes;
  Vec<T> sums[4] = {};
  int64_t i = 0;
  for (; i + step <= n; i += step)
    for (int64_t k = 0; k < 4; ++k) {
      const Vec<T> value = load(a + i + k * lanes) * load(c + i + k * lanes);
      sums[k] += value * value;
    }
  const Vec<T> together = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  T total = 0;
  for (int64_t k = 0; k < lanes; ++k) total += together[k];
  for (; i < n; ++i) total += (a[i] * c[i]) * (a[i] * c[i]);
  return total;
}

// The previous layer's scales, each over its block of columns; ones where it has none.
template <class T>
static void spread(T* columns, const GaugeLayer& layer, const GaugeLayer* previous, const T* scales) {
  const bool scaled = previous && previous->treatment == GaugeTreatment::scale;
  const int64_t block = scaled ? layer.fan_in / previous->filters : layer.fan_in;
  for (int64_t i = 0, f = 0; i < layer.fan_in; i += block, ++f) {
    const T s = scaled && scales[f] != T(0) ? scales[f] : T(1);
    for (int64_t k = i; k < i + block; ++k) columns[k] = s;
  }
}

template <class T>
HF_INLINE T mean_of(const T* values, int64_t n) {
  T total = 0;
  for (int64_t i = 0; i < n; ++i) total += values[i];
  return total / T(n);
}

template <class T>
HF_INLINE bool in_place(DType type) {
  return type == (sizeof(T) == 8 ? DType::f64 : DType::f32);
}

// Where `n` results at `to` are computed: there, or in `scratch`, from which finish() converts them.
template <class T>
HF_INLINE T* target(void* to, DType type, T* scratch) {
  return in_place<T>(type) ? static_cast<T*>(to) : scratch;
}
template <class T>
HF_INLINE void finish(void* to, DType type, const T* values, int64_t n) {
  if (!in_place<T>(type)) store_row(to, type, values, n);
}

template <class T>
static void forward_row(const GaugeProblem& p, int64_t row, void* fixed, T* scales, const Workspace<T>& w) {
  const void* theta = element(p.theta, p.type, row * p.theta_stride);
  void* result = element(fixed, p.type, row * p.weights);
  for (int64_t l = 0; l < p.count; ++l) {
    const GaugeLayer& layer = p.layers[l];
    const int64_t n = layer.fan_in;
    const bool scaled = layer.treatment == GaugeTreatment::scale, biased = layer.bias >= 0;
    const GaugeLayer* previous = l ? &p.layers[l - 1] : nullptr;
    spread(w.columns, layer, previous, previous ? scales - previous->filters : scales);
    if (biased) load_row(w.bias, element(theta, p.type, layer.bias), p.type, layer.filters);
    for (int64_t f = 0; f < layer.filters; ++f) {
      const int64_t at = layer.weight + f * n;
      const T* weight = row_in_place(element(theta, p.type, at), p.type, w.weight, n);
      T s = 1;
      if (scaled) {
        const T b = biased ? w.bias[f] : T(0);
        const T mean = (squares(weight, w.columns, n) + b * b) / T(n + biased);
        s = mean <= T(kDead) ? T(0) : sqrt_of(mean);
      }
      scales[f] = s;
      if (s == T(0)) s = T(1);
      void* to = element(result, p.type, at);
      T* out = target(to, p.type, w.out);
      for (int64_t i = 0; i < n; ++i) out[i] = weight[i] * w.columns[i] / s;
      finish(to, p.type, out, n);
      if (biased) w.bias[f] /= s;
    }
    if (biased && layer.treatment == GaugeTreatment::shift) {
      const T mean = mean_of(w.bias, layer.filters);
      for (int64_t f = 0; f < layer.filters; ++f) w.bias[f] -= mean;
    }
    if (biased) store_row(element(result, p.type, layer.bias), p.type, w.bias, layer.filters);
    scales += layer.filters;
  }
}

template <class T>
static void backward_row(const GaugeProblem& p, int64_t row, const void* gy, const T* scales, void* gtheta,
                         const Workspace<T>& w) {
  const void* theta = element(p.theta, p.type, row * p.theta_stride);
  void* result = element(gtheta, p.type, row * p.weights);
  const T* s = scales + p.filters;
  for (int64_t l = p.count - 1; l >= 0; --l) {
    const GaugeLayer& layer = p.layers[l];
    const int64_t n = layer.fan_in;
    const bool scaled = layer.treatment == GaugeTreatment::scale, biased = layer.bias >= 0;
    const GaugeLayer* previous = l ? &p.layers[l - 1] : nullptr;
    const bool reads_scales = previous && previous->treatment == GaugeTreatment::scale;
    s -= layer.filters;
    spread(w.columns, layer, previous, previous ? s - previous->filters : s);
    for (int64_t i = 0; reads_scales && i < n; ++i) w.gcolumns[i] = 0;
    if (biased) {
      load_row(w.bias, element(theta, p.type, layer.bias), p.type, layer.filters);
      load_row(w.gbias, element(gy, p.type, layer.bias), p.type, layer.filters);
    }
    for (int64_t f = 0; f < layer.filters; ++f) {
      const int64_t at = layer.weight + f * n;
      const T* weight = row_in_place(element(theta, p.type, at), p.type, w.weight, n);
      const T* grad = row_in_place(element(gy, p.type, at), p.type, w.grad, n);
      void* to = element(result, p.type, at);
      T* out = target(to, p.type, w.out);
      if (scaled && s[f] != T(0)) {
        const T inverse = T(1) / s[f];
        T along = dot(grad, weight, w.columns, n);
        if (biased) along += w.gbias[f] * w.bias[f];
        const T k = (w.gs[f] - along * inverse * inverse) * inverse / T(n + biased);
        if (biased) w.gbias[f] = w.gbias[f] * inverse + k * w.bias[f];
        for (int64_t i = 0; i < n; ++i) out[i] = grad[i] * inverse + k * (weight[i] * w.columns[i]);
      } else {
        for (int64_t i = 0; i < n; ++i) out[i] = grad[i];
      }
      if (reads_scales)
        for (int64_t i = 0; i < n; ++i) {
          w.gcolumns[i] += out[i] * weight[i];
          out[i] *= w.columns[i];
        }
      finish(to, p.type, out, n);
    }
    if (biased && layer.treatment == GaugeTreatment::shift) {
      const T mean = mean_of(w.gbias, layer.filters);
      for (int64_t f = 0; f < layer.filters; ++f) w.gbias[f] -= mean;
    }
    if (biased) store_row(element(result, p.type, layer.bias), p.type, w.gbias, layer.filters);
    if (reads_scales) {
      const int64_t block = n / previous->filters;
      for (int64_t f = 0; f < previous->filters; ++f) {
        T total = 0;
        for (int64_t i = f * block; i < (f + 1) * block; ++i) total += w.gcolumns[i];
        w.gs[f] = total;
      }
    }
  }
}

template <class T>
static void forward_rows(const GaugeProblem& p, int64_t begin, int64_t end, void* fixed, void* scales, void* memory) {
  const Workspace<T> w = divide<T>(p, memory);
  for (int64_t b = begin; b < end; ++b) forward_row<T>(p, b, fixed, static_cast<T*>(scales) + b * p.filters, w);
}

template <class T>
static void backward_rows(const GaugeProblem& p, int64_t begin, int64_t end, const void* gy, int64_t gy_stride,
                          const void* scales, void* gtheta, void* memory) {
  const Workspace<T> w = divide<T>(p, memory);
  for (int64_t b = begin; b < end; ++b)
    backward_row<T>(p, b, element(gy, p.type, b * gy_stride), static_cast<const T*>(scales) + b * p.filters, gtheta, w);
}

static void forward(const GaugeProblem& p, int64_t begin, int64_t end, void* fixed, void* scales, void* memory) {
  p.type == DType::f64 ? forward_rows<double>(p, begin, end, fixed, scales, memory)
                       : forward_rows<float>(p, begin, end, fixed, scales, memory);
}

static void backward(const GaugeProblem& p, int64_t begin, int64_t end, const void* gy, int64_t gy_stride,
                     const void* scales, void* gtheta, void* memory) {
  p.type == DType::f64 ? backward_rows<double>(p, begin, end, gy, gy_stride, scales, gtheta, memory)
                       : backward_rows<float>(p, begin, end, gy, gy_stride, scales, gtheta, memory);
}

extern const GaugeKernels gauge_kernels = {workspace, forward, backward};

}  // namespace HF_ISA
}  // namespace hyperfast
