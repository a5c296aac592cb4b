// The contract of the native dropout: masks that are a function of a seed and a place.
//
// x [S, B, N, H], any strides but 1 in the last dimension; y the same shape, contiguous; seed [S] or [1] int64.
//     y[s, b, n, h] = scale * x[s, b, n, h]  where word > last, else 0
// word is number h mod 4 of the four words of Philox4x32-10 with key seed[s] and counter (h div 4, n, b, layer).
// The caller owns every tensor; kernels need no workspace.
#pragma once

#include "target_net.h"

namespace hyperfast {

struct DropoutProblem {
  int64_t networks;
  int64_t rows;
  int64_t features;
  const void* x;
  int64_t sample_stride;
  int64_t network_stride;
  int64_t row_stride;
  void* y;
  DType type;  // of x and y
  const int64_t* seed;
  int64_t seed_stride;  // 0: one seed for all samples
  uint32_t layer;
  uint32_t last;
  double scale;
};

struct DropoutKernels {
  // Rows [begin, end) of the S * B * N, counted in this order.
  void (*dropout)(const DropoutProblem&, int64_t begin, int64_t end);
};

namespace generic {
extern const DropoutKernels dropout_kernels;
}
namespace avx2 {
extern const DropoutKernels dropout_kernels;
}
namespace avx512 {
extern const DropoutKernels dropout_kernels;
}

}  // namespace hyperfast
