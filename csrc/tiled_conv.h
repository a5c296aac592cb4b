// The contract of the native tiled_conv: convolution kernels assembled from tiles that a two-layer linear hypernetwork
// generates, and the gradients.
//
// For tile t with embedding z_t, input slice i < N_in, output slice o < N_out, tap q < kh * kw, hidden h < d,
//     a[t, i, h]     = sum_z weight_in[i, h, z] z_t[z] + bias_in[i, h]
//     tile[t, o, i, q] = sum_h weight_out[o, q, h] a[t, i, h] + bias_out[o, q]
// computed as tile[t, (o, i, q)] = sum_z V[(o, i, q), z] z_t[z] + c[(o, i, q)]: both layers are folded into one,
//     V[(o, i, q), z] = sum_h weight_out[o, q, h] weight_in[i, h, z]
//     c[(o, i, q)]    = sum_h weight_out[o, q, h] bias_in[i, h] + bias_out[o, q]
// which costs N_in N_out kh kw Z (d + tiles) products where one layer after the other costs
// N_in d tiles (Z + N_out kh kw): 152 to 206 million for the 966 tiles of WRN 40-2. The penalty is the sum of tile^2,
// before rounding to the kernels' type.
//
// zs [rows, cols, Z], kernels and grads [cols * N_out, rows * N_in, kh, kw], weights as in hyperfast/ops/tiled_conv.py,
// all contiguous; zs, kernels and grads have the type `data`, weights and their gradients the type `weights`. In a
// kernel, what a tile has for one o is contiguous (N_in * kh * kw elements), and the next o lies `stride` further.
// The caller owns every tensor and both kinds of memory: `shared` by all threads of a call, `scratch` of one.
#pragma once

#include "target_net.h"

namespace hyperfast {

struct TiledConvTile {
  int64_t kernel;  // to which it belongs
  int64_t index;   // of its embedding among the kernel's
  int64_t offset;  // of its first element in the kernel
  int64_t stride;  // from one o to the next
};

struct TiledConvProblem {
  DType data, weights;
  int64_t n_in, n_out, taps, hidden, embedding, count;
  const TiledConvTile* tiles;  // [count]
  const void* const* zs;       // of each kernel
  const void *weight_in, *bias_in, *weight_out, *bias_out;
  bool backward, want_zs, want_weights;
  void* shared;
};

struct TiledConvGradients {
  const void* const* grads;    // of each kernel; null: none
  const void* const* kernels;  // of each kernel; read where twice_gpenalty is not 0
  double twice_gpenalty;       // 2 * the gradient of the penalty: d penalty / d tile = 2 tile
  void* const* gzs;            // of each kernel
  void *gweight_in, *gbias_in, *gweight_out, *gbias_out;
};

// In this order, each phase after all of the one before: load; fold; then forward: pack, assemble; backward, where
// wanted: embeddings, outputs, inputs. Ranges may be split over threads as one likes: no result depends on it.
struct TiledConvKernels {
  int64_t (*shared_bytes)(const TiledConvProblem&);
  int64_t (*scratch_bytes)(const TiledConvProblem&);
  void (*load)(const TiledConvProblem&);
  void (*fold)(const TiledConvProblem&, int64_t begin, int64_t end);  // slices i
  void (*pack)(const TiledConvProblem&, int64_t begin, int64_t end);  // slices o
  // Tiles [begin, end) into the kernels; squares [count] double, null: not wanted.
  void (*assemble)(const TiledConvProblem&, int64_t begin, int64_t end, void* const* kernels, double* squares,
                   void* scratch);
  // Gradients: of zs, for tiles; of the fold, weight_out and bias_out, for slices o; of weight_in and bias_in, slices
  // i.
  void (*embeddings)(const TiledConvProblem&, const TiledConvGradients&, int64_t begin, int64_t end, void* scratch);
  void (*outputs)(const TiledConvProblem&, const TiledConvGradients&, int64_t begin, int64_t end, void* scratch);
  void (*inputs)(const TiledConvProblem&, const TiledConvGradients&, int64_t begin, int64_t end, void* scratch);
};

namespace generic {
extern const TiledConvKernels tiled_conv_kernels;
}
namespace avx2 {
extern const TiledConvKernels tiled_conv_kernels;
}
namespace avx512 {
extern const TiledConvKernels tiled_conv_kernels;
}

}  // namespace hyperfast
