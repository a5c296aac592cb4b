// Forward of the batched MLP, and the packed weights that backward shares. See target_net.cpp.
#pragma once

#include "../target_net.h"
#include "common/activation.h"
#include "common/arena.h"
#include "common/product.h"

namespace hyperfast {
namespace HF_ISA {

// ---- scratch ------------------------------------------------------------------------------------

template <class T>
static int64_t padded(int64_t features) {
  return round_up(features, kPanel<T>);
}

static int64_t widest(const MlpProblem& p) {
  int64_t width = p.layers[0].in;
  for (int64_t l = 0; l < p.num_layers; ++l) width = max64(width, p.layers[l].out);
  return width;
}

// Where the gradient of layer l starts in a padded gradient: weights [out][padded in], biases [padded out].
template <class T>
static int64_t gradient_offset(const MlpProblem& p, int64_t layer) {
  int64_t offset = 0;
  for (int64_t l = 0; l < layer; ++l)
    offset += p.layers[l].out * padded<T>(p.layers[l].in) + padded<T>(p.layers[l].out);
  return offset;
}

template <class T>
static int64_t gradient_size(const MlpProblem& p) {
  return gradient_offset<T>(p, p.num_layers);
}

template <class T>
static int64_t workspace(const MlpProblem& p, bool backward) {
  int64_t packed = 0, transposed = 0, hidden = padded<T>(p.layers[0].in), largest = 0;
  for (int64_t l = 0; l < p.num_layers; ++l) {
    const Layer& layer = p.layers[l];
    packed += padded<T>(layer.out) * (layer.in + 1);  // a narrow layer takes less
    transposed += padded<T>(layer.in) * layer.out;
    hidden += 2 * padded<T>(layer.out);
    largest = max64(largest, layer.in * layer.out);
  }
  const int64_t width = padded<T>(widest(p));
  int64_t values = packed + largest;
  values += backward ? transposed + (hidden + 2 * width) * kBlock : 3 * width * kBlock;
  return values * int64_t(sizeof(T)) + 64 * (8 + 6 * p.num_layers);  // rounding of every piece
}

// ---- weights ------------------------------------------------------------------------------------

template <class T>
struct PackedLayer {
  const T* weight;      // [out panel][in][lanes]; narrow: [in panel][out][lanes]
  const T* transposed;  // [in panel][out][lanes], backward only
  const T* bias;        // [padded out], zero where the layer has none
};

// A layer with a few outputs, in whose product most lanes would idle: lanes are inputs instead, and are summed. The
// first layer's input may lie in rows.
constexpr int64_t kNarrow = 4;
static bool is_narrow(const MlpProblem& p, int64_t l) {
  return l > 0 && p.layers[l].out <= kNarrow && p.layers[l].in >= 32;
}

template <class T>
static void pack_layer(PackedLayer<T>* packed, const MlpProblem& p, int64_t l, int64_t network, bool transposed,
                       T* scratch, Arena& arena) {
  const Strided& theta = p.theta;
  const Layer& layer = p.layers[l];
  const int64_t row = network * theta.network_stride;
  const T* w =
      row_in_place(element(theta.data, theta.type, row + layer.weight), theta.type, scratch, layer.in * layer.out);
  T* weight = arena.take<T>(padded<T>(layer.out) * layer.in);
  const bool narrow = is_narrow(p, l);
  narrow ? pack_rows(weight, w, layer.out, layer.in) : pack_transposed(weight, w, layer.out, layer.in);
  T* other = nullptr;
  if (transposed) {
    other = arena.take<T>(padded<T>(layer.in) * layer.out);
    pack_rows(other, w, layer.out, layer.in);
  }
  T* bias = arena.take<T>(padded<T>(layer.out));
  for (int64_t i = 0; i < padded<T>(layer.out); ++i) bias[i] = T(0);
  if (layer.bias >= 0) {
    const Strided& from = p.bias.data ? p.bias : theta;
    load_row(bias, element(from.data, from.type, network * from.network_stride + layer.bias), from.type, layer.out);
  }
  const T scale = argument_scale<T>(layer.activation);
  if (scale != T(1)) {
    const int64_t size = narrow ? layer.out * padded<T>(layer.in) : padded<T>(layer.out) * layer.in;
    for (int64_t i = 0; i < size; ++i) weight[i] *= scale;
    for (int64_t i = 0; i < padded<T>(layer.out); ++i) bias[i] *= scale;
  }
  *packed = {weight, other, bias};
}

// Fetches the next network's weights while this one computes, a few cache lines with every tile: with few rows a
// network, reading theta takes a third as long as the products, and more at once would fill the line buffers.
struct Ahead {
  const char* at = nullptr;
  const char* end = nullptr;
  int64_t lines = 0;

  Ahead(const MlpProblem& p, int64_t network, int64_t rows) {
    if (network + 1 >= p.networks || p.num_layers == 0) return;
    const Layer& last = p.layers[p.num_layers - 1];
    const int64_t row = (network + 1) * p.theta.network_stride;
    at = static_cast<const char*>(element(p.theta.data, p.theta.type, row));
    end = static_cast<const char*>(element(p.theta.data, p.theta.type, row + last.weight + last.in * last.out));
    int64_t panels = 0;
    for (int64_t l = 0; l < p.num_layers; ++l)
      panels += round_up(p.layers[l].out, 16 * kPanelsAtOnce) / (16 * kPanelsAtOnce);
    const int64_t tiles = panels * ((rows + kRows - 1) / kRows);
    lines = ((end - at) / 64 + tiles - 1) / max64(tiles, 1);
  }
  void step() {
    for (int64_t i = 0; i < lines && at < end; ++i, at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// ---- forward ------------------------------------------------------------------------------------

// Rows of a layer's input: in panels (jump = one panel), or row-major (chunk = all of k).
template <class T>
struct Rows {
  const T* data;
  int64_t row_stride;
  int64_t chunk;
  int64_t jump;
};
template <class T>
static Rows<T> in_panels(const T* panels) {
  return {panels, kPanel<T>, kPanel<T>, kPanelStride<T>};
}

template <class T>
struct LayerForward {
  const Layer& layer;
  const PackedLayer<T>& packed;
  Rows<T> input;
  T* output;  // panels
  T* slope;   // panels, or null
  int64_t rows;
  Ahead& ahead;

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t row, int64_t panel) const {
    ahead.step();
    Tile<T, MR, NP> c;
    const T* bias = packed.bias + panel * kPanel<T>;
    HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) {
      const Vec<T> start = load(bias + j * kLanes<T>);
      HF_UNROLL for (int i = 0; i < MR; ++i) c.v[i][j] = start;
    }
    const T* a[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) a[i] = input.data + (row + i) * input.row_stride;
    const int64_t panel_size = layer.in * kPanel<T>;
    multiply_long(c, a, packed.weight + panel * panel_size, panel_size, layer.in, input.chunk, input.jump);
    HF_UNROLL for (int p = 0; p < NP; ++p) {
      T* to = output + (panel + p) * kPanelStride<T> + row * kPanel<T>;
      HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < kRegs; ++j)
          store(to + i * kPanel<T> + j * kLanes<T>, c.v[i][p * kRegs + j]);
    }
  }
  void finish(int64_t panel, int64_t panels) const {
    for (int64_t p = panel; p < panel + panels; ++p)
      activate(layer.activation, T(layer.parameter), output + p * kPanelStride<T>,
               slope ? slope + p * kPanelStride<T> : nullptr, rows * kPanel<T>);
  }
};

// A narrow layer before activation. Lanes past its inputs hold what an activation made of nothing: they are left out.
template <class T, int OUT>
static void narrow_products(const Layer& layer, const PackedLayer<T>& packed, const T* input, T* output, int64_t rows) {
  typedef typename VecOf<T>::integer Mask;
  Mask mask[kRegs];  // of the last panel
  for (int j = 0; j < kRegs; ++j)
    for (int i = 0; i < kLanes<T>; ++i) mask[j][i] = -((layer.in - 1) % kPanel<T> >= j * kLanes<T> + i);
  const int64_t last = (layer.in - 1) / kPanel<T>;
  for (int64_t r = 0; r < rows; ++r) {
    Vec<T> sum[OUT] = {};
    const T* h = input + r * kPanel<T>;
    const T* w = packed.weight;
    for (int64_t p = 0; p < last; ++p, h += kPanelStride<T>)
      HF_UNROLL for (int o = 0; o < OUT; ++o, w += kPanel<T>) HF_UNROLL for (int j = 0; j < kPanel<T>; j += kLanes<T>)
          sum[o] += load(h + j) * load(w + j);
    HF_UNROLL for (int o = 0; o < OUT; ++o, w += kPanel<T>) HF_UNROLL for (int j = 0; j < kRegs; ++j) sum[o] +=
        (Vec<T>)((Mask)load(h + j * kLanes<T>) & mask[j]) * load(w + j * kLanes<T>);
    T* to = output + r * kPanel<T>;
    HF_UNROLL for (int j = 0; j < kPanel<T>; j += kLanes<T>) store(to + j, Vec<T>{});
    HF_UNROLL for (int o = 0; o < OUT; ++o) to[o] = packed.bias[o] + sum_of_lanes<T>(sum[o]);
  }
}

template <class T>
static void forward_layer(const MlpProblem& p, int64_t l, const PackedLayer<T>& packed, Rows<T> input, T* output,
                          T* slope, int64_t rows, Ahead& ahead) {
  const Layer& layer = p.layers[l];
  if (is_narrow(p, l)) {
    switch (layer.out) {
      case 1: narrow_products<T, 1>(layer, packed, input.data, output, rows); break;
      case 2: narrow_products<T, 2>(layer, packed, input.data, output, rows); break;
      case 3: narrow_products<T, 3>(layer, packed, input.data, output, rows); break;
      case 4: narrow_products<T, 4>(layer, packed, input.data, output, rows); break;
    }
    return activate(layer.activation, T(layer.parameter), output, slope, rows * kPanel<T>);
  }
  for_tiles(LayerForward<T>{layer, packed, input, output, slope, rows, ahead}, padded<T>(layer.out) / kPanel<T>, rows);
}

template <class T>
static void forward(const MlpProblem& p, int64_t network, int64_t begin, int64_t end, void* y, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  int64_t largest = 0;
  for (int64_t l = 0; l < p.num_layers; ++l) largest = max64(largest, p.layers[l].in * p.layers[l].out);
  T* converted = arena.take<T>(largest);
  PackedLayer<T>* packed = arena.take<PackedLayer<T>>(p.num_layers);
  for (int64_t l = 0; l < p.num_layers; ++l) pack_layer(packed + l, p, l, network, false, converted, arena);

  const int64_t in = p.layers[0].in, out = p.layers[p.num_layers - 1].out;
  const int64_t width = padded<T>(widest(p));
  T* ping = arena.take<T>(width * kBlock);
  T* pong = arena.take<T>(width * kBlock);
  T* x_rows = arena.take<T>(in * kBlock);
  const bool in_place = p.x.type == (sizeof(T) == 8 ? DType::f64 : DType::f32);
  Ahead ahead(p, network, end - begin);
  for (int64_t r = begin; r < end; r += kBlock) {
    const int64_t rows = min64(kBlock, end - r);
    const void* x = element(p.x.data, p.x.type, network * p.x.network_stride + r * p.x.row_stride);
    Rows<T> input{static_cast<const T*>(x), p.x.row_stride, in, 0};
    if (!in_place) {
      for (int64_t i = 0; i < rows; ++i)
        load_row(x_rows + i * in, element(x, p.x.type, i * p.x.row_stride), p.x.type, in);
      input = {x_rows, in, in, 0};
    }
    T* from = pong;
    T* to = ping;
    for (int64_t l = 0; l < p.num_layers; ++l) {
      forward_layer<T>(p, l, packed[l], input, to, nullptr, rows, ahead);
      input = in_panels<T>(to);
      T* swap = from;
      from = to;
      to = swap;
    }
    panels_to_rows(element(y, p.x.type, (network * p.rows + r) * out), p.x.type, from, rows, out, false);
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
