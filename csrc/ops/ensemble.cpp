// Registers the native ensemble reduction; inputs are shared out over the threads, members stay in order.
#include "../ensemble.h"

#include <tuple>

#include "../cpu/common/isa.h"
#include "tensors.h"
#include "workspace.h"

namespace hyperfast {
namespace {

const EnsembleKernels& kernels() {
#ifdef HYPERFAST_X86
  return for_isa(generic::ensemble_kernels, avx2::ensemble_kernels, avx512::ensemble_kernels);
#else
  return generic::ensemble_kernels;
#endif
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ensemble_sums(const Tensor& logits_in, bool want_prob, bool want_entropy,
                                                         bool want_votes, bool want_choice) {
  const Tensor logits = dense_rows(logits_in, 1);
  const int64_t members = logits.size(0), rows = logits.size(1), classes = logits.size(2);
  auto zeros = [&](bool wanted, std::initializer_list<int64_t> shape, ScalarType type) {
    return wanted ? torch::stable::new_zeros(logits, {shape.begin(), shape.size()}, type)
                  : torch::stable::new_empty(logits, {0}, type);
  };
  Tensor prob = zeros(want_prob, {rows, classes}, ScalarType::Double);
  Tensor entropy = zeros(want_entropy, {rows}, ScalarType::Double);
  Tensor votes = zeros(want_votes, {rows, classes}, ScalarType::Long);
  Tensor choice = zeros(want_choice, {members, rows}, ScalarType::Long);
  if (rows > 0 && classes > 0 && members > 0) {
    const EnsembleProblem p{
        members,
        rows,
        classes,
        static_cast<const float*>(logits.const_data_ptr()),
        logits.stride(0),
        logits.stride(1),
        want_prob ? static_cast<double*>(prob.mutable_data_ptr()) : nullptr,
        want_entropy ? static_cast<double*>(entropy.mutable_data_ptr()) : nullptr,
        want_votes ? static_cast<int64_t*>(votes.mutable_data_ptr()) : nullptr,
        want_choice ? static_cast<int64_t*>(choice.mutable_data_ptr()) : nullptr,
    };
    const EnsembleKernels& kernel = kernels();
    torch::stable::parallel_for(0, rows, 16, [&](int64_t begin, int64_t end) {
      kernel.sums(p, begin, end, thread_workspace(kernel.workspace(p)));
    });
  }
  return {prob, entropy, votes, choice};
}

}  // namespace
}  // namespace hyperfast

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def(
      "ensemble_sums_cpp(Tensor logits, bool want_prob, bool want_entropy, bool want_votes, bool want_choice) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) { m.impl("ensemble_sums_cpp", TORCH_BOX(&hyperfast::ensemble_sums)); }
