// What the batched CNN keeps of a layer, its geometry and its products. See target_net_cnn.cpp.
#pragma once

#include "../target_net.h"
#include "common/activation.h"
#include "common/arena.h"
#include "common/product.h"

namespace hyperfast {
namespace HF_ISA {

// ---- geometry -----------------------------------------------------------------------------------

template <class T>
using Index = typename VecOf<T>::integer;
template <class T>
using IndexValue = typename VecOf<T>::integer_value;

// Winograd's form of a layer's input (target_net_cnn_winograd.h): images of one frequency each, a pixel for every two
// outputs side by side.
struct Pairs {
  int64_t frequencies = 0;   // 0: the layer does not take this form
  int64_t per_row = 0;       // pairs
  int64_t rows = 0;          // of the padded image that are read
  int64_t row = 0;           // values per row of one frequency
  int64_t plane = 0;         // values per frequency, with slack for a vector that writes past the last pixel
  int64_t patch = 0;         // values per patch, one column wide
  int64_t rows_at_once = 0;  // as Shape's; shorter sums, because the transforms have errors of their own
};

template <class T>
HF_INLINE Pairs pairs_of(const ConvLayer& l) {
  Pairs p;
  // With few channels the transforms cost what they save. float64 is for checking gradients, in plain sums.
  if (sizeof(T) != 4 || (l.kernel_x != 3 && l.kernel_x != 5) || l.stride_x != 1 || l.pool % 2 || l.in < 8) return p;
  p.frequencies = l.kernel_x + 1;
  p.per_row = l.out_width * l.pool / 2;
  p.rows = (l.out_height * l.pool - 1) * l.stride_y + l.kernel_y;
  p.row = p.per_row * l.in;
  p.plane = p.rows * p.row + kPanel<T>;
  p.patch = l.kernel_y * l.in;
  p.rows_at_once = max64(1, 32 / l.in);
  return p;
}

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
  int64_t blocks;                // of nearly as many windows each, whose pixels fit into a panel
  int64_t channels;              // output channels, padded to whole panels
  Pairs pairs;

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
        blocks((windows + kBlock / window - 1) / (kBlock / window)),
        channels(round_up(l.out, kPanel<T>)),
        pairs(pairs_of<T>(l)) {}

  // Values per block that Winograd's products take.
  int64_t products() const { return pairs.frequencies * kPanelsAtOnce * kPanelStride<T> / 2; }

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
  T* filters;             // [frequency][out panel][kernel row][in][lanes]; null: plain sums
  T* planes;              // [frequency][row][pair of the row][in]
  T* products;            // [frequency][panels at once][pair of a block][lanes]
  int64_t* pairs;         // [window][pair of the window]: where a patch begins in a plane
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
    values += s.pairs.frequencies * (s.channels * s.pairs.patch + s.pairs.plane) + s.products();
    if (s.pairs.frequencies) values += s.windows * s.window / 2 * index;
    if (backward || p.saved) values += layer.out * s.vectors * kLanes<T> + 2 * s.windows * s.channels + s.size;
    weights = max64(weights, layer.out * s.patch);
    windows = max64(windows, s.windows);
  }
  values += weights + windows + widest_output<T>(p) * kBlock;
  if (backward || p.saved) values += widest_output<T>(p) * (kBlock + index) + 2 * longest_lists<T>(p);
  return values * int64_t(sizeof(T)) + int64_t(sizeof(Stage<T>)) * p.num_layers + 64 * (16 + 14 * p.num_layers);
}

// ---- products -----------------------------------------------------------------------------------

// Outputs of MR patches and NP panels: bias (null: 0) plus the products of kernel_y runs each, a `row` apart, those of
// `rows_at_once` runs summed apart from the others'. `to`: panels `to_stride` apart.
template <int MR, int NP, class T>
HF_INLINE void multiply_patch(T* to, int64_t to_stride, const T* bias, const T* (&a)[MR], const T* weight,
                              int64_t panel_size, int64_t kernel_y, int64_t rows_at_once, int64_t run, int64_t row) {
  Tile<T, MR, NP> c = {};
  if (bias) HF_UNROLL for (int p = 0; p < NP; ++p) HF_UNROLL for (int j = 0; j < kRegs; ++j) {
      const Vec<T> start = load(bias + p * kPanel<T> + j * kLanes<T>);
      HF_UNROLL for (int i = 0; i < MR; ++i) c.v[i][p * kRegs + j] = start;
    }
  for (int64_t y = 0; y < kernel_y; y += rows_at_once) {
    const int64_t length = min64(rows_at_once, kernel_y - y) * run;
    Tile<T, MR, NP> more = {};
    multiply<1>(more, a, weight, panel_size, length, run, row);
    HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) c.v[i][j] += more.v[i][j];
    HF_UNROLL for (int i = 0; i < MR; ++i) a[i] += rows_at_once * row;
    weight += length * kPanel<T>;
  }
  HF_UNROLL for (int p = 0; p < NP; ++p) HF_UNROLL for (int i = 0; i < MR; ++i)
      HF_UNROLL for (int j = 0; j < kRegs; ++j)
          store(to + p * to_stride + i * kPanel<T> + j * kLanes<T>, c.v[i][p * kRegs + j]);
}

}  // namespace HF_ISA
}  // namespace hyperfast
