// The products of the batched MLP's backward, and gradients of theta as they are summed. See target_net.cpp.
#pragma once

#include "target_net_forward.h"

namespace hyperfast {
namespace HF_ISA {

// ---- products -----------------------------------------------------------------------------------

// gh = gz W, then gz of the layer below = gh * slope below (slope null: 1).
template <class T>
struct InputGradient {
  const Layer& layer;
  const PackedLayer<T>& packed;
  const T* gz;  // panels
  T* output;    // panels
  const T* slope;

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t row, int64_t panel) const {
    Tile<T, MR, NP> c = {};
    const T* a[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) a[i] = gz + (row + i) * kPanel<T>;
    const int64_t panel_size = layer.out * kPanel<T>;
    multiply_long(c, a, packed.transposed + panel * panel_size, panel_size, layer.out, kPanel<T>, kPanelStride<T>);
    HF_UNROLL for (int p = 0; p < NP; ++p) {
      const int64_t at = (panel + p) * kPanelStride<T> + row * kPanel<T>;
      HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < kRegs; ++j) {
        const int64_t k = at + i * kPanel<T> + j * kLanes<T>;
        Vec<T> g = c.v[i][p * kRegs + j];
        if (slope) g *= load(slope + k);
        store(output + k, g);
      }
    }
  }
  void finish(int64_t, int64_t) const {}
};

// gW[o] (+)= sum over rows of gz[row][o] * h[row].
template <class T>
struct WeightGradient {
  const T* gz;  // panels
  const T* h;   // panels
  T* gradient;  // [out][stride]
  int64_t stride;
  int64_t rows;
  bool add;

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t o, int64_t panel) const {
    Tile<T, MR, NP> c = {};
    T* to = gradient + o * stride + panel * kPanel<T>;
    if (add)
      HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) c.v[i][j] =
          load(to + i * stride + j * kLanes<T>);
    const T* a[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) a[i] = gz + (o + i) / kPanel<T> * kPanelStride<T> + (o + i) % kPanel<T>;
    multiply<kPanel<T>>(c, a, h + panel * kPanelStride<T>, kPanelStride<T>, rows, rows, 0);
    HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < NP * kRegs; ++j)
        store(to + i * stride + j * kLanes<T>, c.v[i][j]);
  }
  void finish(int64_t, int64_t) const {}
};

template <class T>
static void bias_gradient(const T* gz, T* gradient, int64_t width, int64_t rows, bool add) {
  for (int64_t o = 0; o < width; o += kPanel<T>) {
    const T* from = gz + o / kPanel<T> * kPanelStride<T>;
    HF_UNROLL for (int j = 0; j < kRegs; ++j) {
      Vec<T> sum = add ? load(gradient + o + j * kLanes<T>) : Vec<T>{};
      for (int64_t r = 0; r < rows; ++r) sum += load(from + r * kPanel<T> + j * kLanes<T>);
      store(gradient + o + j * kLanes<T>, sum);
    }
  }
}

template <class T>
static void multiply_panels(T* to, const T* by, int64_t panels, int64_t rows) {
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t i = 0; i < rows * kPanel<T>; i += kLanes<T>) {
      T* at = to + p * kPanelStride<T> + i;
      store(at, load(at) * load(by + p * kPanelStride<T> + i));
    }
}

// ---- gradients of theta -------------------------------------------------------------------------

template <class T>
static void add(const MlpProblem& p, void* total, const void* part) {
  T* to = static_cast<T*>(total);
  const T* from = static_cast<const T*>(part);
  for (int64_t i = 0; i < gradient_size<T>(p); ++i) to[i] += from[i];
}

template <class T>
static void emit(const MlpProblem& p, const void* gradient, void* gtheta, void* gbias) {
  const DType type = p.theta.type;
  const T* from = static_cast<const T*>(gradient);
  for (int64_t l = 0; l < p.num_layers; ++l) {
    const Layer& layer = p.layers[l];
    const int64_t stride = padded<T>(layer.in);
    for (int64_t o = 0; o < layer.out; ++o)
      store_row(element(gtheta, type, layer.weight + o * layer.in), type, from + o * stride, layer.in);
    from += layer.out * stride;
    if (layer.bias >= 0) {
      const DType bias_type = gbias ? p.bias.type : type;
      store_row(element(gbias ? gbias : gtheta, bias_type, layer.bias), bias_type, from, layer.out);
    }
    from += padded<T>(layer.out);
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
