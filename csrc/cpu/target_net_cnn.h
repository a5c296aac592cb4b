// What the batched CNN keeps of a layer: its geometry, packed weights, images. See target_net_cnn.cpp.
#pragma once

#include "../target_net.h"
#include "common/activation.h"
#include "common/arena.h"
#include "common/panels.h"

namespace hyperfast {
namespace HF_ISA {

// ---- geometry -----------------------------------------------------------------------------------

template <class T>
using Index = typename VecOf<T>::integer;
template <class T>
using IndexValue = typename VecOf<T>::integer_value;

// What follows from a layer: sizes of its image in memory, of its patches and windows.
template <class T>
struct Shape {
  int64_t pixel;                 // values per pixel = input channels
  int64_t row;                   // values per padded image row
  int64_t size;                  // values per padded image, with slack for a vector that reads past the last run
  int64_t run;                   // values per kernel row of a patch
  int64_t patch;                 // values per patch
  int64_t rows_at_once;          // kernel rows whose products are summed apart from the others'
  int64_t run_vectors, vectors;  // vectors that cover a run, and all runs of a patch
  int64_t windows, window;       // windows per image, pixels per window
  int64_t block;                 // windows per block: their pixels fill a panel
  int64_t channels;              // output channels, padded to whole panels

  explicit Shape(const ConvLayer& l)
      : pixel(l.in),
        row((l.width + 2 * l.pad_x) * l.in),
        size((l.height + 2 * l.pad_y) * row + kPanel<T>),
        run(l.kernel_x * l.in),
        patch(l.kernel_y * run),
        rows_at_once(max64(1, 128 / run)),
        run_vectors((run + kLanes<T> - 1) / kLanes<T>),
        vectors(l.kernel_y * run_vectors),
        windows(l.out_height * l.out_width),
        window(l.pool * l.pool),
        block(kBlock / window),
        channels(round_up(l.out, kPanel<T>)) {}

  // Where pixel (y, x) of the image, without its padding, lies.
  int64_t at(const ConvLayer& l, int64_t y, int64_t x) const { return (y + l.pad_y) * row + (x + l.pad_x) * pixel; }
};

// Everything that one layer keeps in the workspace while its network runs.
template <class T>
struct Stage {
  const ConvLayer* layer;
  Shape<T> shape;
  T* image;               // padded input, pixel-major
  T* weight;              // [out panel][patch][lanes]
  T* rows;                // [out][kernel row][run in whole vectors], backward only
  T* bias;                // [padded out]
  int64_t* patches;       // [window][pixel of the window]: where a patch begins in the image
  T* slope;               // [window][padded out], of the window's winner; backward only
  IndexValue<T>* winner;  // [window][padded out], pixel of the window; backward only
  T* gradient;            // padded, of the image; backward only
};

template <class T>
static int64_t last_size(const ConvProblem& p) {
  const ConvLayer& last = p.layers[p.num_layers - 1];
  return last.out_height * last.out_width * last.out;
}

template <class T>
static int64_t gradient_size(const ConvProblem& p) {
  int64_t values = 0;
  for (int64_t l = 0; l < p.num_layers; ++l) {
    const Shape<T> s(p.layers[l]);
    values += p.layers[l].out * s.vectors * kLanes<T> + s.channels;
  }
  return values;
}

template <class T>
static int64_t widest_output(const ConvProblem& p) {
  int64_t channels = 0;
  for (int64_t l = 0; l < p.num_layers; ++l) channels = max64(channels, Shape<T>(p.layers[l]).channels);
  return channels;
}

template <class T>
static int64_t longest_lists(const ConvProblem& p) {
  int64_t most = 0;
  for (int64_t l = 0; l < p.num_layers; ++l) most = max64(most, p.layers[l].out * Shape<T>(p.layers[l]).windows);
  return most;
}

// The same pieces are taken by prepare() and by the functions that use it.
template <class T>
static int64_t workspace(const ConvProblem& p, bool backward) {
  constexpr int64_t index = 8 / int64_t(sizeof(T));  // an int64 in values of T
  int64_t values = last_size<T>(p) + kPanel<T>, weights = 0, windows = 0;
  for (int64_t l = 0; l < p.num_layers; ++l) {
    const ConvLayer& layer = p.layers[l];
    const Shape<T> s(layer);
    values += s.size + s.channels * (s.patch + 1) + s.windows * s.window * index;
    if (backward || p.saved) values += layer.out * s.vectors * kLanes<T> + 2 * s.windows * s.channels + s.size;
    weights = max64(weights, layer.out * s.patch);
    windows = max64(windows, s.windows);
  }
  values += weights + windows + widest_output<T>(p) * kBlock;
  if (backward || p.saved) values += widest_output<T>(p) * (kBlock + index) + 2 * longest_lists<T>(p);
  return values * int64_t(sizeof(T)) + int64_t(sizeof(Stage<T>)) * p.num_layers + 64 * (16 + 10 * p.num_layers);
}

// ---- weights and images -------------------------------------------------------------------------

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
    Stage<T> stage{&l, s, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
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
