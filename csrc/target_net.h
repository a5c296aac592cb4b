// The contract of the native batched networks: B MLPs or CNNs with B different flat weight vectors.
//
// For network b and row n, layer by layer,
//     MLP  h_0 = x[b, n]    h_l = act_l(W_l h_{l-1} + c_l)             y[b, n] = h_L
//     CNN  h_0 = x[b, n]    h_l = maxpool_l(act_l(W_l * h_{l-1} + c_l))   y[b, n] = h_L
// where W_l [out, in] or [out, in, kernel_y, kernel_x] and c_l [out] lie in row b of theta, at the layer's `weight`
// and `bias`. * is a cross-correlation with zero padding; maxpool has windows of pool x pool, side by side.
//
// Shapes and layout (strides count elements; a row is contiguous):
//     x      [B, N, I] or [B, N, C, H, W]   network and row strides free; network stride 0 = shared by all networks
//     theta  [B, P]                         row stride free
//     y, gy  [B, N, O] or [B, N, O, H', W'] gy: network and row strides free; y contiguous
// The caller owns every tensor; kernels own nothing but the workspace that is handed to them, which
// holds no state between calls. Kernels never allocate, throw or spawn threads.
#pragma once

#include <stdint.h>

namespace hyperfast {

enum class DType : int { f32, f64, bf16, f16 };

struct Strided {
  const void* data;
  DType type;
  int64_t network_stride;
  int64_t row_stride;
};

// The order is shared with hyperfast/plan.py: ACTIVATIONS.
enum class Activation : int {
  identity,
  relu,
  leaky_relu,  // parameter: negative slope
  elu,         // parameter: alpha
  tanh,
  sigmoid,
  gelu,
  gelu_tanh,
  silu,
  cos,
  sin,
};

struct Layer {
  int64_t in;
  int64_t out;
  int64_t weight;  // offset of W in a row of theta
  int64_t bias;    // offset of c in a row of theta (or of MlpProblem::bias); -1: no bias
  Activation activation;
  double parameter;
};

struct ConvLayer {
  int64_t in, height, width;           // channels and size of its input
  int64_t out, out_height, out_width;  // channels and size of its output, after pooling
  int64_t kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, pool;
  int64_t weight, bias;  // as in Layer
  Activation activation;
  double parameter;
};

// The largest pooling window that a kernel takes in its epilogue.
constexpr int64_t kLargestPool = 9;

template <class L>
struct Problem {
  using LayerType = L;
  int64_t networks;
  int64_t rows;
  int64_t num_layers;
  const L* layers;
  Strided x;
  Strided theta;  // row_stride unused
  Strided bias;   // data null: biases lie in theta
  void* saved;    // null, or [B, N, saved_bytes]: what forward writes and backward then need not recompute
};
using MlpProblem = Problem<Layer>;
using ConvProblem = Problem<ConvLayer>;

struct Gradients {
  Strided gy;
  void* gx;  // null: not wanted; else contiguous rows
  DType gx_type;
  int64_t gx_network_stride;
  bool add_to_gx;  // gx is summed over the networks of one task
  bool want_theta;
};

// One table per kind of network and instruction set; `Compute` (float, or double for float64) is chosen by the
// type of x.
template <class P>
struct Kernels {
  // Bytes per network and row that forward can save for backward; 0: nothing.
  int64_t (*saved_bytes)(const P&);
  // Bytes of 64-byte aligned scratch that one forward or backward call needs.
  int64_t (*workspace)(const P&, bool backward);
  // Rows [begin, end) of one network.
  void (*forward)(const P&, int64_t network, int64_t begin, int64_t end, void* y, void* workspace);
  // Length in Compute of one padded gradient of a theta row.
  int64_t (*gradient_size)(const P&);
  // Rows [begin, end) of one network; overwrites `gradient` (padded, Compute) when want_theta.
  void (*backward)(const P&, const Gradients&, int64_t network, int64_t begin, int64_t end, void* gradient,
                   void* workspace);
  // total += part, both padded gradients.
  void (*add)(const P&, void* total, const void* part);
  // Writes a padded gradient to one row of gtheta (type of theta) and, where biases are apart, of gbias.
  void (*emit)(const P&, const void* gradient, void* gtheta, void* gbias);
};

namespace generic {
extern const Kernels<MlpProblem> mlp_kernels;
extern const Kernels<ConvProblem> conv_kernels;
}  // namespace generic
namespace avx2 {
extern const Kernels<MlpProblem> mlp_kernels;
extern const Kernels<ConvProblem> conv_kernels;
}  // namespace avx2
namespace avx512 {
extern const Kernels<MlpProblem> mlp_kernels;
extern const Kernels<ConvProblem> conv_kernels;
}  // namespace avx512

}  // namespace hyperfast
