// Between torch's stable tensors and the plain pointers of the kernels.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../target_net.h"

namespace hyperfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: throw std::invalid_argument("hyperfast: expected float32, float64, bfloat16 or float16");
  }
}

inline ScalarType compute_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::vector<int64_t> sizes(const Tensor& t) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < t.dim(); ++d) shape.push_back(t.size(d));
  return shape;
}

// The same tensor where its last `row_dims` dimensions are contiguous, otherwise a copy with that property.
inline Tensor dense_rows(const Tensor& t, int64_t row_dims) {
  int64_t stride = 1;
  for (int64_t d = t.dim() - 1; d >= t.dim() - row_dims; --d) {
    if (t.size(d) > 1 && t.stride(d) != stride) return torch::stable::contiguous(t);
    stride *= t.size(d);
  }
  return t;
}

}  // namespace hyperfast
