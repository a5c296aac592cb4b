// Registers the native gauge and its backward; networks are shared out over the threads. Arguments were checked in
// hyperfast/ops/gauge.py.
#include "../gauge.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "../cpu/common/isa.h"
#include "tensors.h"
#include "workspace.h"

namespace hyperfast {
namespace {

using Ints = std::vector<int64_t>;

// Weights that justify a task for another thread.
constexpr int64_t kWeightsPerTask = 16384;
constexpr size_t kInts = 5;  // of a layer: hyperfast/plan.py, GaugeRow

const GaugeKernels& kernels() {
#ifdef HYPERFAST_X86
  return for_isa(generic::gauge_kernels, avx2::gauge_kernels, avx512::gauge_kernels);
#else
  return generic::gauge_kernels;
#endif
}

// A problem and what keeps its pointers alive.
struct Call {
  Tensor theta;
  std::vector<GaugeLayer> layers;
  GaugeProblem p;
  int64_t networks;

  Call(const Tensor& theta_in, const Ints& rows) : theta(dense_rows(theta_in, 1)), networks(theta.size(0)) {
    int64_t filters = 0;
    for (size_t at = 0; at + kInts <= rows.size(); at += kInts) {
      layers.push_back({rows[at], rows[at + 1], rows[at + 2], rows[at + 3], GaugeTreatment(rows[at + 4])});
      filters += rows[at + 2];
    }
    p = {layers.data(),   int64_t(layers.size()), theta.size(1),  filters,
         dtype_of(theta), theta.const_data_ptr(), theta.stride(0)};
  }

  template <class Work>
  void run(const GaugeKernels& kernel, const Work& work) const {
    if (networks == 0 || p.weights == 0) return;
    const int64_t networks_per_task = std::max<int64_t>(1, kWeightsPerTask / p.weights);
    torch::stable::parallel_for(0, networks, networks_per_task, [&](int64_t begin, int64_t end) {
      work(begin, end, thread_workspace(kernel.workspace(p)));
    });
  }
};

std::tuple<Tensor, Tensor> gauge(const Tensor& theta, Ints rows) {
  const Call call(theta, rows);
  Tensor fixed = torch::stable::new_empty(theta, sizes(theta));
  Tensor scales = torch::stable::new_empty(theta, {call.networks, call.p.filters}, compute_type(theta));
  const GaugeKernels& kernel = kernels();
  void *to = fixed.mutable_data_ptr(), *s = scales.mutable_data_ptr();
  call.run(kernel,
           [&](int64_t begin, int64_t end, void* memory) { kernel.forward(call.p, begin, end, to, s, memory); });
  return {fixed, scales};
}

Tensor gauge_backward(const Tensor& gy_in, const Tensor& theta, const Tensor& scales_in, Ints rows) {
  const Call call(theta, rows);
  const Tensor gy = dense_rows(gy_in, 1), scales = torch::stable::contiguous(scales_in);
  Tensor gtheta = torch::stable::new_empty(theta, sizes(theta));
  const GaugeKernels& kernel = kernels();
  const void *g = gy.const_data_ptr(), *s = scales.const_data_ptr();
  void* to = gtheta.mutable_data_ptr();
  call.run(kernel, [&](int64_t begin, int64_t end, void* memory) {
    kernel.backward(call.p, begin, end, g, gy.stride(0), s, to, memory);
  });
  return gtheta;
}

}  // namespace
}  // namespace hyperfast

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def("gauge_cpp(Tensor theta, int[] rows) -> (Tensor, Tensor)");
  m.def("gauge_backward_cpp(Tensor gy, Tensor theta, Tensor scales, int[] rows) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) {
  m.impl("gauge_cpp", TORCH_BOX(&hyperfast::gauge));
  m.impl("gauge_backward_cpp", TORCH_BOX(&hyperfast::gauge_backward));
}
