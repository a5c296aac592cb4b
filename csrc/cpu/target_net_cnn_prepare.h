// A network's packed weights, and the images that its layers work on. See target_net_cnn.cpp.
#pragma once

#include "target_net_cnn_winograd.h"

namespace hyperfast {
namespace HF_ISA {

// The memory of Winograd's form, and where its patches begin.
template <class T>
static void take_pairs(Stage<T>& stage, Arena& arena) {
  const ConvLayer& l = *stage.layer;
  const Shape<T>& s = stage.shape;
  stage.filters = arena.take<T>(s.pairs.frequencies * s.channels * s.pairs.patch);
  stage.planes = arena.take<T>(s.pairs.frequencies * s.pairs.plane);
  stage.products = arena.take<T>(s.products());
  stage.pairs = arena.take<int64_t>(s.windows * s.window / 2);
  int64_t* to = stage.pairs;
  for (int64_t wy = 0; wy < l.out_height; ++wy)
    for (int64_t wx = 0; wx < l.out_width; ++wx)
      for (int64_t y = wy * l.pool; y < (wy + 1) * l.pool; ++y)
        for (int64_t x = wx * l.pool / 2; x < (wx + 1) * l.pool / 2; ++x)
          *to++ = y * l.stride_y * s.pairs.row + x * s.pixel;
}

// Whether all n values are whole numbers: their sums of products with whole numbers are exact, in their definition.
template <class T>
static bool whole(const T* w, int64_t n) {
  bool all = true;
  for (int64_t i = 0; i < n; ++i) all &= w[i] == __builtin_rint(w[i]);
  return all;
}

template <class T>
static void pack(Stage<T>& stage, const ConvProblem& p, int64_t network, T* scratch, bool backward, Arena& arena) {
  const ConvLayer& l = *stage.layer;
  const Shape<T>& s = stage.shape;
  const int64_t row = network * p.theta.network_stride;
  const T* w =
      row_in_place(element(p.theta.data, p.theta.type, row + l.weight), p.theta.type, scratch, l.out * s.patch);
  stage.weight = arena.take<T>(s.channels * s.patch);
  stage.bias = arena.take<T>(s.channels);
  stage.rows = backward ? arena.take<T>(l.out * s.vectors * kLanes<T>) : nullptr;
  for (int64_t i = 0; i < s.channels * s.patch; ++i) stage.weight[i] = T(0);
  if (backward)
    for (int64_t i = 0; i < l.out * s.vectors * kLanes<T>; ++i) stage.rows[i] = T(0);
  if (s.pairs.frequencies && !whole(w, l.out * s.patch)) take_pairs(stage, arena);
  const T scale = argument_scale<T>(l.activation);
  for (int64_t o = 0; o < l.out; ++o)
    for (int64_t c = 0; c < l.in; ++c)
      for (int64_t y = 0; y < l.kernel_y; ++y)
        for (int64_t x = 0; x < l.kernel_x; ++x, ++w) {
          const int64_t k = y * s.run + x * l.in + c;
          stage.weight[o / kPanel<T> * s.patch * kPanel<T> + k * kPanel<T> + o % kPanel<T>] = *w * scale;
          if (backward) stage.rows[(o * s.vectors + y * s.run_vectors) * kLanes<T> + x * l.in + c] = *w;
        }
  for (int64_t i = 0; i < s.channels; ++i) stage.bias[i] = T(0);
  if (l.bias >= 0) {
    const Strided& from = p.bias.data ? p.bias : p.theta;
    load_row(stage.bias, element(from.data, from.type, network * from.network_stride + l.bias), from.type, l.out);
    for (int64_t i = 0; i < l.out; ++i) stage.bias[i] *= scale;
  }
  if (stage.filters) with_taps(stage, [&](auto taps) { transform_filters<T, decltype(taps)>(stage); });
}

template <class T>
static Stage<T>* prepare(const ConvProblem& p, int64_t network, bool backward, Arena& arena) {
  Stage<T>* stages = arena.take<Stage<T>>(p.num_layers);
  int64_t weights = 0;
  for (int64_t l = 0; l < p.num_layers; ++l) weights = max64(weights, p.layers[l].out * Shape<T>(p.layers[l]).patch);
  T* scratch = arena.take<T>(weights);
  for (int64_t i = 0; i < p.num_layers; ++i) {
    const ConvLayer& l = p.layers[i];
    const Shape<T> s(l);
    Stage<T> stage{&l,      s,       nullptr, nullptr, nullptr, nullptr, nullptr,
                   nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    pack(stage, p, network, scratch, backward, arena);
    stage.image = arena.take<T>(s.size);
    for (int64_t k = 0; k < s.size; ++k) stage.image[k] = T(0);
    stage.patches = arena.take<int64_t>(s.windows * s.window);
    int64_t* to = stage.patches;
    for (int64_t wy = 0; wy < l.out_height; ++wy)
      for (int64_t wx = 0; wx < l.out_width; ++wx)
        for (int64_t y = wy * l.pool; y < (wy + 1) * l.pool; ++y)
          for (int64_t x = wx * l.pool; x < (wx + 1) * l.pool; ++x)
            *to++ = y * l.stride_y * s.row + x * l.stride_x * s.pixel;
    if (backward) {
      stage.slope = arena.take<T>(s.windows * s.channels);
      stage.winner = arena.take<IndexValue<T>>(s.windows * s.channels);
      stage.gradient = arena.take<T>(s.size);
    }
    stages[i] = stage;
  }
  return stages;
}

// [channels][height][width] -> the inside of a padded, pixel-major image.
template <class T>
static void load_image(const Stage<T>& stage, const void* from, DType type) {
  const ConvLayer& l = *stage.layer;
  T values[64];
  for (int64_t c = 0; c < l.in; ++c)
    for (int64_t y = 0; y < l.height; ++y)
      for (int64_t x = 0; x < l.width; x += 64) {
        const int64_t n = min64(64, l.width - x);
        load_row(values, element(from, type, (c * l.height + y) * l.width + x), type, n);
        T* to = stage.image + stage.shape.at(l, y, x) + c;
        for (int64_t i = 0; i < n; ++i) to[i * l.in] = values[i];
      }
}

}  // namespace HF_ISA
}  // namespace hyperfast
