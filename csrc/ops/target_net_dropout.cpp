// Registers the native dropout; rows are shared out over the threads. Arguments were checked in
// hyperfast/ops/target_net_dropout.py.
#include "../target_net_dropout.h"

#include <algorithm>

#include "../cpu/common/isa.h"
#include "tensors.h"

namespace hyperfast {
namespace {

// Values that justify a task for another thread.
constexpr int64_t kValuesPerTask = 16384;

const DropoutKernels& kernels() {
#ifdef HYPERFAST_X86
  return for_isa(generic::dropout_kernels, avx2::dropout_kernels, avx512::dropout_kernels);
#else
  return generic::dropout_kernels;
#endif
}

Tensor dropout(const Tensor& x_in, const Tensor& seed, int64_t layer, int64_t last, double scale) {
  const Tensor x = dense_rows(x_in, 1);
  Tensor y = torch::stable::new_empty(x, sizes(x));
  if (y.numel() == 0) return y;
  const DropoutProblem p{
      x.size(1),
      x.size(2),
      x.size(3),
      x.const_data_ptr(),
      x.stride(0),
      x.stride(1),
      x.stride(2),
      y.mutable_data_ptr(),
      dtype_of(x),
      static_cast<const int64_t*>(seed.const_data_ptr()),
      seed.size(0) > 1 ? seed.stride(0) : 0,
      uint32_t(layer),
      uint32_t(last),
      scale,
  };
  const int64_t rows_per_task = std::max<int64_t>(1, kValuesPerTask / p.features);
  const DropoutKernels& kernel = kernels();
  torch::stable::parallel_for(0, x.size(0) * p.networks * p.rows, rows_per_task,
                              [&](int64_t begin, int64_t end) { kernel.dropout(p, begin, end); });
  return y;
}

}  // namespace
}  // namespace hyperfast

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def("dropout_cpp(Tensor x, Tensor seed, int layer, int last, float scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) { m.impl("dropout_cpp", TORCH_BOX(&hyperfast::dropout)); }
