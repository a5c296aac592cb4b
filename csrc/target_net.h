// The contract of the native batched MLP: B networks with B different flat weight vectors.
//
// For network b and row n, layer by layer,
//     h_0 = x[b, n]         h_l = act_l(W_l h_{l-1} + c_l)         y[b, n] = h_L
// where W_l [out, in] and c_l [out] lie in row b of theta, at Layer::weight and Layer::bias.
//
// Shapes and layout (strides count elements; the innermost dimension always has stride 1):
//     x      [B, N, I]   network and row strides free; network stride 0 = one input shared by all networks
//     theta  [B, P]      row stride free
//     y, gy  [B, N, O]   gy: network and row strides free; y contiguous
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

struct MlpProblem {
  int64_t networks;
  int64_t rows;
  int64_t num_layers;
  const Layer* layers;
  Strided x;
  Strided theta;  // row_stride unused
  Strided bias;   // data null: biases lie in theta
};

struct MlpGradients {
  Strided gy;
  void* gx;  // null: not wanted; else rows of `in` contiguous values
  DType gx_type;
  int64_t gx_network_stride;
  bool add_to_gx;  // gx is summed over the networks of one task
  bool want_theta;
};

// One table per instruction set; `Compute` (float, or double for float64) is chosen by the type of x.
struct MlpKernels {
  // Bytes of 64-byte aligned scratch that one forward or backward call needs.
  int64_t (*workspace)(const MlpProblem&, bool backward);
  // Rows [begin, end) of one network.
  void (*forward)(const MlpProblem&, int64_t network, int64_t begin, int64_t end, void* y, void* workspace);
  // Length in Compute of one padded gradient of a theta row.
  int64_t (*gradient_size)(const MlpProblem&);
  // Rows [begin, end) of one network; overwrites `gradient` (padded, Compute) when want_theta.
  void (*backward)(const MlpProblem&, const MlpGradients&, int64_t network, int64_t begin, int64_t end, void* gradient,
                   void* workspace);
  // total += part, both padded gradients.
  void (*add)(const MlpProblem&, void* total, const void* part);
  // Writes a padded gradient to one row of gtheta (type of theta) and, where biases are apart, of gbias.
  void (*emit)(const MlpProblem&, const void* gradient, void* gtheta, void* gbias);
};

namespace generic {
extern const MlpKernels mlp_kernels;
}
namespace avx2 {
extern const MlpKernels mlp_kernels;
}
namespace avx512 {
extern const MlpKernels mlp_kernels;
}

}  // namespace hyperfast
