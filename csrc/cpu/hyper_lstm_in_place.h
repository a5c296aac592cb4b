// Products with weights where they lie, in their own type, for a few rows or steps: packing would cost more.
#pragma once

#include "hyper_lstm.h"

namespace hyperfast {
namespace HF_ISA {

HF_INLINE Vec<float> load_as(const float* p, float) { return load(p); }
HF_INLINE Vec<double> load_as(const double* p, double) { return load(p); }

typedef uint32_t Pairs __attribute__((vector_size(HF_VECTOR_BYTES)));
typedef uint32_t PairsAt __attribute__((vector_size(HF_VECTOR_BYTES), aligned(2), may_alias));
struct BFloat16 {
  uint16_t bits;
};
typedef _Float16 Float16s __attribute__((vector_size(HF_VECTOR_BYTES / 2)));
typedef _Float16 Float16sAt __attribute__((vector_size(HF_VECTOR_BYTES / 2), aligned(2), may_alias));
HF_INLINE Vec<float> load_as(const _Float16* p, float) {
  return __builtin_convertvector(Float16s(*reinterpret_cast<const Float16sAt*>(p)), Vec<float>);
}
HF_INLINE float value_of(float v) { return v; }
HF_INLINE double value_of(double v) { return v; }
HF_INLINE float value_of(BFloat16 v) { return from_bf16(v.bits); }
HF_INLINE float value_of(_Float16 v) { return float(v); }

// Outputs and rows at once: as many sums as hide the latency of an addition.
constexpr int kDirectOutputs = 4, kDirectRows = 3;
constexpr int kSingleOutputs = HF_VECTOR_BYTES == 64 ? 8 : 4;

// sum[out][row] += w[out][k] a[row][k], k in the lanes; returns the first k that fills no vector.
template <class W, class T, int NO, int NR>
HF_INLINE int64_t accumulate(const W* const (&w)[NO], const T* a, int64_t a_row, int64_t length,
                             Vec<T> (&sum)[NO][NR]) {
  int64_t k = 0;
  for (; k + kLanes<T> <= length; k += kLanes<T>) {
    Vec<T> x[NR];
    HF_UNROLL for (int r = 0; r < NR; ++r) x[r] = load(a + r * a_row + k);
    HF_UNROLL for (int o = 0; o < NO; ++o) {
      const Vec<T> weights = load_as(w[o] + k, T(0));
      HF_UNROLL for (int r = 0; r < NR; ++r) sum[o][r] += weights * x[r];
    }
  }
  return k;
}

// A vector of bfloat16 holds the even elements in the lower and the odd ones in the upper halves of its pairs: a shift
// and a mask make floats of them. a is sorted in the same way, once for all outputs.
template <int NO, int NR>
HF_INLINE int64_t accumulate(const BFloat16* const (&w)[NO], const float* a, int64_t a_row, int64_t length,
                             Vec<float> (&sum)[NO][NR]) {
  VecOf<float>::integer even, odd;
  HF_UNROLL for (int i = 0; i < kLanes<float>; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
  int64_t k = 0;
  for (; k + 2 * kLanes<float> <= length; k += 2 * kLanes<float>) {
    Vec<float> x[NR][2];
    HF_UNROLL for (int r = 0; r < NR; ++r) {
      const Vec<float> low = load(a + r * a_row + k), high = load(a + r * a_row + k + kLanes<float>);
      x[r][0] = __builtin_shuffle(low, high, even);
      x[r][1] = __builtin_shuffle(low, high, odd);
    }
    HF_UNROLL for (int o = 0; o < NO; ++o) {
      const Pairs pairs = *reinterpret_cast<const PairsAt*>(w[o] + k);
      const Vec<float> first = (Vec<float>)(pairs << 16), second = (Vec<float>)(pairs & 0xFFFF0000u);
      HF_UNROLL for (int r = 0; r < NR; ++r) sum[o][r] = (sum[o][r] + first * x[r][0]) + second * x[r][1];
    }
  }
  return k;
}

// c[row][out] (+)= sum over k of w[out][k] a[row][k].
template <class W, class T, int NO, int NR>
static void multiply_in_place(const W* const (&w)[NO], const T* a, int64_t a_row, int64_t length, T* c, int64_t c_row,
                              int64_t outputs, bool add) {
  Vec<T> sum[NO][NR] = {};
  const int64_t k = accumulate(w, a, a_row, length, sum);
  HF_UNROLL for (int o = 0; o < NO; ++o) HF_UNROLL for (int r = 0; r < NR; ++r) {
    T total = sum_of_lanes<T>(sum[o][r]);
    for (int64_t i = k; i < length; ++i) total += T(value_of(w[o][i])) * a[r * a_row + i];
    if (o < outputs) c[r * c_row + o] = add ? c[r * c_row + o] + total : total;
  }
}

// One panel of outputs for all rows.
template <class W, class T>
static void panel_in_place(const Stored& m, int64_t panel, const T* a, int64_t a_row, int64_t rows, T* c, int64_t c_row,
                           bool add) {
  constexpr int64_t lanes = kPanel<T>;
  const int64_t panels = padded<T>(m.units) / lanes, gate = panel / panels, first = panel % panels * lanes;
  const int64_t height = min64(lanes, m.units - first);
  const auto outputs_from = [&]<int NO, int NR>(int64_t o, int64_t row) {
    const W* w[NO];
    for (int i = 0; i < NO; ++i)  // past the last output, the last one again
      w[i] =
          static_cast<const W*>(m.data) + (gate * m.units + first + min64(o + i, height - 1)) * m.row_stride + m.column;
    multiply_in_place<W, T, NO, NR>(w, a + row * a_row, a_row, m.in, c + row * c_row + o, c_row, min64(NO, height - o),
                                    add);
  };
  int64_t row = 0;
  for (; row + kDirectRows <= rows; row += kDirectRows)
    for (int64_t o = 0; o < height; o += kDirectOutputs)
      outputs_from.template operator()<kDirectOutputs, kDirectRows>(o, row);
  for (; row < rows; ++row)
    for (int64_t o = 0; o < height; o += kSingleOutputs) outputs_from.template operator()<kSingleOutputs, 1>(o, row);
  if (!add)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t o = height; o < lanes; ++o) c[row * c_row + o] = T(0);
}

static void in_place(DType type, const Stored& m, int64_t panel, const float* a, int64_t a_row, int64_t rows, float* c,
                     int64_t c_row, bool add) {
  if (type == DType::bf16) return panel_in_place<BFloat16>(m, panel, a, a_row, rows, c, c_row, add);
  if (type == DType::f16) return panel_in_place<_Float16>(m, panel, a, a_row, rows, c, c_row, add);
  panel_in_place<float>(m, panel, a, a_row, rows, c, c_row, add);
}
static void in_place(DType, const Stored& m, int64_t panel, const double* a, int64_t a_row, int64_t rows, double* c,
                     int64_t c_row, bool add) {
  panel_in_place<double>(m, panel, a, a_row, rows, c, c_row, add);
}

}  // namespace HF_ISA
}  // namespace hyperfast
