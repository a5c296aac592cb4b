// Registers the native kernel density estimate and its backward; samples, and chunks of their points, are shared out
// over the threads. Arguments were checked in hyperfast/ops/kde.py.
#include "../kde.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "../cpu/common/isa.h"
#include "tensors.h"
#include "workspace.h"

namespace hyperfast {
namespace {

// Pairs of a point and a centre that justify a task for another thread: about 20 us.
constexpr int64_t kPairsPerTask = 65536;
// Points of one sample that are worth a chunk, and the most chunks: each has its own gradient of the centres. Chunks do
// not depend on the number of threads, and so neither do results.
constexpr int64_t kPointsPerChunk = 1024, kMostChunks = 16;

const KdeKernels& kernels() {
#ifdef HYPERFAST_X86
  return for_isa(generic::kde_kernels, avx2::kde_kernels, avx512::kde_kernels);
#else
  return generic::kde_kernels;
#endif
}

// A problem and what keeps its pointers alive.
struct Call {
  Tensor x, mu, weight, sigma;
  KdeProblem p;
  int64_t samples, chunk, chunks, itemsize;

  Call(const Tensor& x_in, const Tensor& mu_in, const Tensor& weight_in, const Tensor& sigma_in)
      : x(dense_rows(x_in, 2)),
        mu(dense_rows(mu_in, 2)),
        weight(dense_rows(weight_in, 1)),
        sigma(sigma_in),
        p{x.size(1),
          mu.size(1),
          dtype_of(x),
          x.const_data_ptr(),
          mu.const_data_ptr(),
          weight.const_data_ptr(),
          sigma.const_data_ptr(),
          x.stride(0),
          mu.stride(0),
          weight.stride(0),
          sigma.stride(0)},
        samples(x.size(0)),
        chunk(std::max(kPointsPerChunk, (p.points + kMostChunks - 1) / kMostChunks)),
        chunks((p.points + chunk - 1) / chunk),
        itemsize(p.type == DType::f64 ? 8 : 4) {}

  // work(sample, chunk, first point, last point, workspace) for every chunk.
  template <class Work>
  void run(const Work& work) const {
    const int64_t pairs = std::max<int64_t>(1, std::min(chunk, p.points) * p.centres);
    torch::stable::parallel_for(0, samples * chunks, std::max<int64_t>(1, kPairsPerTask / pairs),
                                [&](int64_t begin, int64_t end) {
                                  char* memory = thread_workspace(kernels().workspace(p, std::min(chunk, p.points)));
                                  for (int64_t task = begin; task < end; ++task) {
                                    const int64_t c = task % chunks;
                                    work(task / chunks, c, c * chunk, std::min(p.points, (c + 1) * chunk), memory);
                                  }
                                });
  }

  // to [samples] = the sums over each sample's chunks, in order.
  void sum(const Tensor& to, const std::vector<double>& parts) const {
    for (int64_t b = 0; b < samples; ++b) {
      double total = 0;
      for (int64_t c = 0; c < chunks; ++c) total += parts[size_t(b * chunks + c)];
      if (p.type == DType::f64)
        static_cast<double*>(to.mutable_data_ptr())[b] = total;
      else
        static_cast<float*>(to.mutable_data_ptr())[b] = float(total);
    }
  }
};

char* at(void* data, int64_t bytes) { return static_cast<char*>(data) + bytes; }

std::tuple<Tensor, Tensor> kde(const Tensor& x, const Tensor& mu, const Tensor& weight, const Tensor& sigma) {
  const Call call(x, mu, weight, sigma);
  const int64_t points = call.p.points, all = call.samples * points * call.itemsize;
  Tensor ce = torch::stable::new_empty(call.x, {call.samples});
  Tensor saved = torch::stable::new_empty(call.x, {2, call.samples, points});
  void* to = saved.mutable_data_ptr();
  std::vector<double> parts(size_t(call.samples * call.chunks));
  call.run([&](int64_t b, int64_t c, int64_t begin, int64_t end, void* memory) {
    const int64_t row = b * points * call.itemsize;
    kernels().forward(call.p, b, begin, end, at(to, row), at(to, all + row), &parts[size_t(b * call.chunks + c)],
                      memory);
  });
  call.sum(ce, parts);
  return {ce, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> kde_backward(const Tensor& g_in, const Tensor& x, const Tensor& mu,
                                                        const Tensor& weight, const Tensor& sigma,
                                                        const Tensor& saved_in, bool want_x, bool want_mu,
                                                        bool want_weight, bool want_sigma) {
  const Call call(x, mu, weight, sigma);
  const KdeProblem& p = call.p;
  const int64_t samples = call.samples, size = call.itemsize;
  const Tensor g = torch::stable::contiguous(g_in), saved = torch::stable::contiguous(saved_in);
  const auto result = [&](bool wanted, std::vector<int64_t> shape) {
    return torch::stable::new_empty(call.x, wanted ? shape : std::vector<int64_t>{0});
  };
  const int64_t chunks = std::max<int64_t>(1, call.chunks);
  Tensor gx = result(want_x, {samples, p.points, 2}), gmu = result(want_mu, {samples, p.centres, 2});
  Tensor gweight = result(want_weight, {samples, p.points}), gsigma = result(want_sigma, {samples});
  // A sample of one chunk writes its gradient of the centres where it belongs.
  const Tensor parts = chunks == 1 ? gmu : result(want_mu, {samples, chunks, p.centres, 2});
  if (p.points == 0) {
    torch::stable::fill_(gmu, 0.0);
    torch::stable::fill_(gsigma, 0.0);
    return {gx, gmu, gweight, gsigma};
  }
  const char* from = static_cast<const char*>(saved.const_data_ptr());
  const char* gs = static_cast<const char*>(g.const_data_ptr());
  void *to_x = gx.mutable_data_ptr(), *to_mu = parts.mutable_data_ptr(), *to_weight = gweight.mutable_data_ptr();
  std::vector<double> sigmas(size_t(want_sigma ? samples * chunks : 0));
  call.run([&](int64_t b, int64_t c, int64_t begin, int64_t end, void* memory) {
    const int64_t row = b * p.points * size, task = b * chunks + c;
    const KdeGradients grads = {gs + b * size,
                                from + row,
                                from + samples * p.points * size + row,
                                want_x ? at(to_x, 2 * row) : nullptr,
                                want_mu ? at(to_mu, 2 * task * p.centres * size) : nullptr,
                                want_weight ? at(to_weight, row) : nullptr,
                                want_sigma ? &sigmas[size_t(task)] : nullptr};
    kernels().backward(p, b, begin, end, grads, memory);
  });
  if (want_mu && chunks > 1) {
    void* to = gmu.mutable_data_ptr();
    const int64_t n = 2 * p.centres;
    for (int64_t b = 0; b < samples; ++b)
      kernels().add(p.type, at(to, b * n * size), at(to_mu, b * chunks * n * size), chunks, n);
  }
  if (want_sigma) call.sum(gsigma, sigmas);
  return {gx, gmu, gweight, gsigma};
}

}  // namespace
}  // namespace hyperfast

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def("kde_cpp(Tensor points, Tensor mu, Tensor weight, Tensor sigma) -> (Tensor, Tensor)");
  m.def(
      "kde_backward_cpp(Tensor g, Tensor points, Tensor mu, Tensor weight, Tensor sigma, Tensor saved, bool "
      "want_points, "
      "bool want_mu, bool want_weight, bool want_sigma) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) {
  m.impl("kde_cpp", TORCH_BOX(&hyperfast::kde));
  m.impl("kde_backward_cpp", TORCH_BOX(&hyperfast::kde_backward));
}
