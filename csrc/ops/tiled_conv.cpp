// Registers the native tiled_conv and its backward: the phases of csrc/tiled_conv.h, each shared out over the threads.
// Arguments were checked in hyperfast/ops/tiled_conv.py.
#include "../tiled_conv.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "../cpu/common/isa.h"
#include "tensors.h"
#include "workspace.h"

namespace hyperfast {
namespace {

using Tensors = std::vector<Tensor>;

constexpr int64_t kFlopsPerTask = 1 << 17;

const TiledConvKernels& kernels() {
#ifdef HYPERFAST_X86
  return for_isa(generic::tiled_conv_kernels, avx2::tiled_conv_kernels, avx512::tiled_conv_kernels);
#else
  return generic::tiled_conv_kernels;
#endif
}

std::vector<const void*> pointers(const Tensors& tensors) {
  std::vector<const void*> found;
  for (const Tensor& t : tensors) found.push_back(t.numel() ? t.const_data_ptr() : nullptr);
  return found;
}

Tensors contiguous(const Tensors& tensors) {
  Tensors found;
  for (const Tensor& t : tensors) found.push_back(torch::stable::contiguous(t));
  return found;
}

// A call: the problem, and what keeps its pointers alive.
struct Call {
  Tensors zs, weights;
  std::vector<const void*> z_pointers;
  std::vector<TiledConvTile> tiles;
  std::vector<int64_t> sizes;  // elements of each kernel
  TiledConvProblem p{};
  const TiledConvKernels& kernel = kernels();

  Call(const Tensors& zs_in, const Tensors& weights_in)
      : zs(contiguous(zs_in)), weights(contiguous(weights_in)), z_pointers(pointers(zs)) {
    const Tensor &in = weights[0], &out = weights[2];
    p.data = dtype_of(zs.empty() ? in : zs[0]);
    p.weights = dtype_of(in);
    p.n_in = in.size(0);
    p.hidden = in.size(1);
    p.embedding = in.size(2);
    p.n_out = out.size(0);
    p.taps = out.size(1) * out.size(2);
    const int64_t slice = p.n_in * p.taps;
    for (size_t l = 0; l < zs.size(); ++l) {
      const int64_t rows = zs[l].size(0), cols = zs[l].size(1), stride = rows * slice;
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c)
          tiles.push_back({int64_t(l), r * cols + c, c * p.n_out * stride + r * slice, stride});
      sizes.push_back(rows * cols * p.n_out * slice);
    }
    p.count = int64_t(tiles.size());
    p.tiles = tiles.data();
    p.zs = z_pointers.data();
    p.weight_in = in.const_data_ptr();
    p.bias_in = weights[1].const_data_ptr();
    p.weight_out = out.const_data_ptr();
    p.bias_out = weights[3].const_data_ptr();
  }

  bool empty() const { return p.count * p.n_in * p.n_out * p.taps == 0; }

  void fold() {
    p.shared = thread_workspace<Use::shared>(kernel.shared_bytes(p));
    kernel.load(p);
    share(p.n_in, p.hidden + 1, [&](int64_t begin, int64_t end, void*) { kernel.fold(p, begin, end); });
  }

  // parallel_for over `tasks` that have `steps` products for each value of V together.
  template <class Work>
  void share(int64_t tasks, int64_t steps, const Work& work) const {
    const int64_t flops = 2 * steps * p.n_in * p.n_out * p.taps * (p.embedding + 1);
    const int64_t grain = std::max<int64_t>(1, kFlopsPerTask * tasks / std::max<int64_t>(1, flops));
    torch::stable::parallel_for(0, tasks, grain, [&](int64_t begin, int64_t end) {
      work(begin, end, thread_workspace(kernel.scratch_bytes(p)));
    });
  }
};

std::tuple<Tensor, Tensor> tiled_conv(Tensors zs, Tensors weights, bool penalty) {
  Call call(zs, weights);
  const TiledConvProblem& p = call.p;
  int64_t total = 0;
  for (int64_t size : call.sizes) total += size;
  Tensor result = torch::stable::new_empty(zs.empty() ? weights[0] : zs[0], {total});
  std::vector<void*> starts;
  char* at = total ? static_cast<char*>(result.mutable_data_ptr()) : nullptr;
  for (int64_t size : call.sizes) {
    starts.push_back(at);
    at += size * (p.data == DType::f64 ? 8 : p.data == DType::f32 ? 4 : 2);
  }
  std::vector<double> squares(penalty ? p.count : 0);
  if (!call.empty()) {
    call.fold();
    call.share(p.n_out, 1, [&](int64_t begin, int64_t end, void*) { call.kernel.pack(p, begin, end); });
    call.share(p.count, p.count, [&](int64_t begin, int64_t end, void* scratch) {
      call.kernel.assemble(p, begin, end, starts.data(), penalty ? squares.data() : nullptr, scratch);
    });
  }
  const std::vector<int64_t> shape(penalty ? 0 : 1, 0);
  Tensor sum = torch::stable::new_empty(weights[0], shape, compute_type(weights[0]));
  if (penalty) {
    double every = 0;
    for (double square : squares) every += square;
    torch::stable::fill_(sum, every);
  }
  return {result, sum};
}

double value_of(const Tensor& scalar) {
  if (scalar.numel() == 0) return 0;
  return scalar.scalar_type() == ScalarType::Double ? *static_cast<const double*>(scalar.const_data_ptr())
                                                    : *static_cast<const float*>(scalar.const_data_ptr());
}

Tensors tiled_conv_backward(Tensors grads_in, Tensor gpenalty, Tensors kernels_in, Tensors zs, Tensors weights,
                            bool want_zs, bool want_weights) {
  Call call(zs, weights);
  TiledConvProblem& p = call.p;
  p.backward = true;
  p.want_zs = want_zs;
  p.want_weights = want_weights;
  const Tensors grads = contiguous(grads_in), values = contiguous(kernels_in);
  Tensors found;
  std::vector<void*> to;
  for (const Tensors* of : {&zs, &weights})
    for (const Tensor& t : *of) {
      const bool wanted = of == &zs ? want_zs : want_weights;
      found.push_back(torch::stable::new_empty(t, wanted ? sizes(t) : std::vector<int64_t>{0}));
      if (call.empty() && wanted) torch::stable::fill_(found.back(), 0.0);
      to.push_back(found.back().mutable_data_ptr());
    }
  if (call.empty()) return found;
  const std::vector<const void*> grad_pointers = pointers(grads), value_pointers = pointers(values);
  void* const* own = to.data() + zs.size();
  const TiledConvGradients g{
      grad_pointers.data(), value_pointers.data(), 2 * value_of(gpenalty), to.data(), own[0], own[1], own[2], own[3]};
  call.fold();
  using Phase = void (*)(const TiledConvProblem&, const TiledConvGradients&, int64_t, int64_t, void*);
  const auto run = [&](int64_t tasks, int64_t steps, Phase phase) {
    call.share(tasks, steps, [&](int64_t begin, int64_t end, void* scratch) { phase(p, g, begin, end, scratch); });
  };
  if (want_zs) run(p.count, p.count, call.kernel.embeddings);
  if (want_weights) {
    run(p.n_out, p.count + p.hidden, call.kernel.outputs);
    run(p.n_in, p.hidden, call.kernel.inputs);
  }
  return found;
}

}  // namespace
}  // namespace hyperfast

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def("tiled_conv_cpp(Tensor[] zs, Tensor[] weights, bool penalty) -> (Tensor, Tensor)");
  m.def(
      "tiled_conv_backward_cpp(Tensor[] grads, Tensor gpenalty, Tensor[] kernels, Tensor[] zs, Tensor[] weights, "
      "bool want_zs, bool want_weights) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) {
  m.impl("tiled_conv_cpp", TORCH_BOX(&hyperfast::tiled_conv));
  m.impl("tiled_conv_backward_cpp", TORCH_BOX(&hyperfast::tiled_conv_backward));
}
