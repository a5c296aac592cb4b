// Convolutions by Winograd's minimal filtering along image rows. See target_net_cnn.cpp.
//
// Two neighbouring outputs of a filter of K taps, y0 and y1, read K + 1 pixels d. Both are products of polynomials,
// and these are determined by their values at K + 1 points, one of them infinity:
//     y = A^T [(G g) * (B^T d)]      K + 1 multiplications where the definition takes 2 K
// In each of these "frequencies" the layer is a convolution of K_y x 1 taps over the transformed image. The transforms
// are few and run over channels in vector lanes. Only rows are transformed: columns, too, would save more, but
// its error is 1.6 times that of plain sums, where this has theirs.
//
// The filters are transformed once per network. B^T d has (K + 1) / 2 times the values of the image.
#pragma once

#include "target_net_cnn.h"

namespace hyperfast {
namespace HF_ISA {

// Points 0, 1, -1, infinity.
struct Taps3 {
  static constexpr int taps = 3, frequencies = 4;
  template <class V>
  HF_INLINE void filter(const V (&g)[3], V (&u)[4]) {
    const V even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    u[0] = g[0];
    u[1] = even + odd;
    u[2] = even - odd;
    u[3] = g[2];
  }
  template <class V>
  HF_INLINE void input(const V (&d)[4], V (&v)[4]) {
    v[0] = d[0] - d[2];
    v[1] = d[2] + d[1];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  }
  template <class V>
  HF_INLINE void outputs(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = m[3] + (m[1] - m[2]);
  }
};

// Points 0, a, -a, b, -b, infinity with a = 3/4, b = 3/2: of small fractions these give the smallest error,
// two thirds of that of 0, 1, -1, 2, -2.
struct Taps5 {
  static constexpr int taps = 5, frequencies = 6;
  static constexpr float a = 0.75f, b = 1.5f, aa = a * a, bb = b * b;
  template <class V>
  HF_INLINE void filter(const V (&g)[5], V (&u)[6]) {
    constexpr float at_a = 1 / (2 * aa * (aa - bb)), at_b = 1 / (2 * bb * (bb - aa));
    const V even_a = (g[0] + aa * g[2] + aa * aa * g[4]) * at_a, odd_a = (g[1] + aa * g[3]) * (a * at_a);
    const V even_b = (g[0] + bb * g[2] + bb * bb * g[4]) * at_b, odd_b = (g[1] + bb * g[3]) * (b * at_b);
    u[0] = g[0] * (1 / (aa * bb));
    u[1] = even_a + odd_a;
    u[2] = even_a - odd_a;
    u[3] = even_b + odd_b;
    u[4] = even_b - odd_b;
    u[5] = g[4];
  }
  template <class V>
  HF_INLINE void input(const V (&d)[6], V (&v)[6]) {
    const V even_a = d[4] - bb * d[2], odd_a = a * (d[3] - bb * d[1]);
    const V even_b = d[4] - aa * d[2], odd_b = b * (d[3] - aa * d[1]);
    v[0] = d[4] - (aa + bb) * d[2] + (aa * bb) * d[0];
    v[1] = even_a + odd_a;
    v[2] = even_a - odd_a;
    v[3] = even_b + odd_b;
    v[4] = even_b - odd_b;
    v[5] = d[5] - (aa + bb) * d[3] + (aa * bb) * d[1];
  }
  template <class V>
  HF_INLINE void outputs(const V (&m)[6], V (&y)[2]) {
    y[0] = m[0] + ((m[1] + m[2]) + (m[3] + m[4]));
    y[1] = m[5] + (a * (m[1] - m[2]) + b * (m[3] - m[4]));
  }
};

// work(Taps3{}) or work(Taps5{}), whichever the layer has.
template <class T, class Work>
static auto with_taps(const Stage<T>& stage, Work work) {
  return stage.layer->kernel_x == Taps3::taps ? work(Taps3{}) : work(Taps5{});
}

template <class T, class Taps>
static void transform_filters(const Stage<T>& stage) {
  const ConvLayer& l = *stage.layer;
  const Shape<T>& s = stage.shape;
  for (int64_t o = 0; o < s.channels; o += kPanel<T>)
    for (int64_t y = 0; y < l.kernel_y; ++y)
      for (int64_t c = 0; c < l.in; ++c)
        for (int64_t j = 0; j < kPanel<T>; j += kLanes<T>) {
          Vec<T> g[Taps::taps], u[Taps::frequencies];
          for (int k = 0; k < Taps::taps; ++k) {
            g[k] = load(stage.weight + o * s.patch + (y * s.run + k * l.in + c) * kPanel<T> + j);
          }
          Taps::filter(g, u);
          T* to = stage.filters + o * s.pairs.patch + (y * l.in + c) * kPanel<T> + j;
          for (int f = 0; f < Taps::frequencies; ++f) store(to + f * s.channels * s.pairs.patch, u[f]);
        }
}

// Channels past the last whole vector are read and written, too: the next pixel's, which are then overwritten.
template <class T, class Taps>
static void transform_image(const Stage<T>& stage) {
  const ConvLayer& l = *stage.layer;
  const Pairs& pairs = stage.shape.pairs;
  for (int64_t y = 0; y < pairs.rows; ++y)
    for (int64_t x = 0; x < pairs.per_row; ++x) {
      const T* from = stage.image + y * stage.shape.row + 2 * x * l.in;
      T* to = stage.planes + y * pairs.row + x * l.in;
      for (int64_t c = 0; c < l.in; c += kLanes<T>) {
        Vec<T> d[Taps::frequencies], v[Taps::frequencies];
        for (int k = 0; k < Taps::frequencies; ++k) d[k] = load(from + k * l.in + c);
        Taps::input(d, v);
        for (int f = 0; f < Taps::frequencies; ++f) store(to + f * pairs.plane + c, v[f]);
      }
    }
}

// One frequency's products for the pairs of a block.
template <class T>
struct PairProducts {
  const Stage<T>& stage;
  const int64_t* pairs;
  int64_t frequency;
  T* output;  // panels of kBlock / 2 rows

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t pair, int64_t panel) const {
    const Shape<T>& s = stage.shape;
    const int64_t panel_size = s.pairs.patch * kPanel<T>;
    const T* a[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) a[i] = stage.planes + frequency * s.pairs.plane + pairs[pair + i];
    multiply_patch<MR, NP>(output + pair * kPanel<T>, kPanelStride<T> / 2, static_cast<const T*>(nullptr), a,
                           stage.filters + (frequency * s.channels / kPanel<T> + panel) * panel_size, panel_size,
                           stage.layer->kernel_y, s.pairs.rows_at_once, stage.layer->in, s.pairs.row);
  }
};

// The products of every frequency [panels][pair][lanes] -> outputs before activation, panels of pixels. Whether all
// of them are finite.
template <class T, class Taps>
static bool combine(const T* products, int64_t stride, const T* bias, int64_t panels, int64_t pairs, T* output) {
  Vec<T> check = {};
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t i = 0; i < pairs; ++i) HF_UNROLL for (int j = 0; j < kPanel<T>; j += kLanes<T>) {
        Vec<T> m[Taps::frequencies], y[2];
        for (int f = 0; f < Taps::frequencies; ++f) {
          m[f] = load(products + f * stride + p * kPanelStride<T> / 2 + i * kPanel<T> + j);
        }
        Taps::outputs(m, y);
        T* to = output + p * kPanelStride<T> + 2 * i * kPanel<T> + j;
        for (int k = 0; k < 2; ++k) {
          y[k] += load(bias + p * kPanel<T> + j);
          check += y[k] - y[k];
          store(to + k * kPanel<T>, y[k]);
        }
      }
  bool finite = true;
  for (int lane = 0; lane < kLanes<T>; ++lane) finite &= check[lane] == T(0);
  return finite;
}

// A block of windows before activation, where all outputs are finite; else false: Inf - Inf in a transform is a
// NaN that the definition does not have, and large values overflow sooner.
template <class T, class Taps>
static bool multiply_pairs(const Stage<T>& stage, int64_t first_window, int64_t count, T* values) {
  const Shape<T>& s = stage.shape;
  const int64_t pairs = count * s.window / 2, panels = s.channels / kPanel<T>;
  const int64_t* at = stage.pairs + first_window * s.window / 2;
  constexpr int64_t stride = kPanelsAtOnce * kPanelStride<T> / 2;
  bool finite = true;
  for (int64_t p = 0; p < panels; p += kPanelsAtOnce) {
    const int64_t some = min64(kPanelsAtOnce, panels - p);
    for (int64_t f = 0; f < Taps::frequencies; ++f) {
      const PairProducts<T> work{stage, at, f, stage.products + f * stride};
      if (some == kPanelsAtOnce)
        for_rows<kPanelsAtOnce>(work, p, pairs);
      else
        for_rows<1>(work, p, pairs);
    }
    finite &=
        combine<T, Taps>(stage.products, stride, stage.bias + p * kPanel<T>, some, pairs, values + p * kPanelStride<T>);
  }
  return finite;
}

}  // namespace HF_ISA
}  // namespace hyperfast
