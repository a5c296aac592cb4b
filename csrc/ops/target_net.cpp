// Registers the native batched MLP: schemas, tensors to pointers, and the split of the work over threads.
// Arguments were checked in hyperfast/ops/target_net.py. Results do not depend on the number of threads.
#include "../target_net.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../cpu/common/isa.h"
#include "tensors.h"
#include "workspace.h"

namespace hyperfast {
namespace {

using torch::stable::parallel_for;
using Ints = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;

// Rows after which a network's gradient is summed in parts, so that one large network can use every
// thread. It depends on nothing but N: the same sums in the same order, alone or within a batch.
constexpr int64_t kRowsPerPart = 2048;
// Networks that share one input add their gradients to it in this many groups.
constexpr int64_t kInputGradientGroups = 16;
// Rows that justify packing a network's weights once more for another thread.
constexpr int64_t kRowsPerTask = 192;

const MlpKernels& kernels() {
#ifdef HYPERFAST_X86
  return for_isa(generic::mlp_kernels, avx2::mlp_kernels, avx512::mlp_kernels);
#else
  return generic::mlp_kernels;
#endif
}

// A problem and the tensors that keep its pointers alive.
struct Problem {
  Tensor x, theta;
  OptionalTensor bias;
  std::vector<Layer> layers;
  MlpProblem p;

  Problem(const Tensor& x_in, const Tensor& theta_in, const OptionalTensor& bias_in, const Ints& widths,
          const Ints& activations, const std::vector<double>& parameters, const Ints& biases)
      : x(dense_rows(x_in)), theta(dense_rows(theta_in)) {
    if (bias_in) bias = dense_rows(*bias_in);
    int64_t offset = 0;
    for (size_t l = 0; l + 1 < widths.size(); ++l) {
      Layer layer{widths[l], widths[l + 1], offset, -1, Activation(activations[l]), parameters[l]};
      offset += layer.in * layer.out;
      if (biases[l]) {
        layer.bias = bias ? 0 : offset;
        offset += bias ? 0 : layer.out;
      }
      layers.push_back(layer);
    }
    const bool shared = x.dim() == 2;
    p.networks = theta.size(0);
    p.rows = x.size(shared ? 0 : 1);
    p.num_layers = int64_t(layers.size());
    p.layers = layers.data();
    p.x = {x.const_data_ptr(), dtype_of(x), shared ? 0 : x.stride(0), x.stride(shared ? 0 : 1)};
    p.theta = {theta.const_data_ptr(), dtype_of(theta), theta.stride(0), 0};
    p.bias = bias ? Strided{bias->const_data_ptr(), dtype_of(*bias), bias->stride(0), 0}
                  : Strided{nullptr, DType::f32, 0, 0};
  }
};

Tensor mlp(const Tensor& x, const Tensor& theta, const OptionalTensor& bias, const Ints& widths,
           const Ints& activations, const std::vector<double>& parameters, const Ints& biases) {
  const Problem problem(x, theta, bias, widths, activations, parameters, biases);
  const MlpProblem& p = problem.p;
  const MlpKernels& kernel = kernels();
  Tensor y = torch::stable::new_empty(problem.x, {p.networks, p.rows, widths.back()});
  if (p.networks == 0 || p.rows == 0 || widths.back() == 0) return y;
  void* out = y.mutable_data_ptr();
  const int64_t bytes = kernel.workspace(p, false);

  // Whole networks where there are enough of them, otherwise parts of one, too.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = p.networks >= 2 * threads ? 1 : 4 * threads;
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, p.rows / kRowsPerTask));
  parallel_for(0, p.networks * parts, 1, [&](int64_t begin, int64_t end) {
    char* scratch = thread_workspace(bytes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts;
      kernel.forward(p, task / parts, p.rows * part / parts, p.rows * (part + 1) / parts, out, scratch);
    }
  });
  return y;
}

class Backward {
 public:
  Backward(const Problem& problem, const Tensor& gy_in, bool want_x, bool want_theta, bool want_bias)
      : problem_(problem), p_(problem.p), kernel_(kernels()), gy_(dense_rows(gy_in)) {
    const bool want_weights = want_theta || want_bias;
    shared_x_ = want_x && problem.x.dim() == 2;
    groups_ = std::min(p_.networks, kInputGradientGroups);
    const int64_t in = p_.layers[0].in;
    if (shared_x_)
      gx_ = torch::stable::new_empty(problem.x, {groups_, p_.rows, in}, compute_type(problem.x));
    else if (want_x)
      gx_ = torch::stable::new_empty(problem.x, {p_.networks, p_.rows, in});
    else
      gx_ = torch::stable::new_empty(problem.x, {0});
    const Tensor& theta = problem.theta;
    gtheta_ = torch::stable::new_empty(theta, {want_weights ? p_.networks : 0, theta.size(1)});
    const Tensor& bias_like = problem.bias ? *problem.bias : theta;
    gbias_ = torch::stable::new_empty(
        bias_like, {want_weights && problem.bias ? p_.networks : 0, problem.bias ? bias_like.size(1) : 0});

    g_.gy = {gy_.const_data_ptr(), dtype_of(gy_), gy_.stride(0), gy_.stride(1)};
    g_.gx = want_x ? gx_.mutable_data_ptr() : nullptr;
    g_.gx_type = dtype_of(gx_);
    g_.gx_network_stride = shared_x_ ? 0 : p_.rows * in;
    g_.add_to_gx = false;
    g_.want_theta = want_weights;
    value_ = compute_type(problem.x) == ScalarType::Double ? 8 : 4;
    gradient_bytes_ = aligned64(kernel_.gradient_size(p_) * value_);
    scratch_bytes_ = aligned64(kernel_.workspace(p_, true));
    parts_ = std::max<int64_t>(1, (p_.rows + kRowsPerPart - 1) / kRowsPerPart);
  }

  std::tuple<Tensor, Tensor, Tensor> run() {
    if (shared_x_ && groups_ > 0)
      by_group();
    else if (parts_ > 1 && p_.networks < 2 * int64_t(torch::stable::get_num_threads()))
      by_part();
    else
      parallel_for(0, p_.networks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) network(b, g_);
      });
    return {shared_x_ ? summed_over_groups() : gx_, gtheta_, gbias_};
  }

 private:
  int64_t part_begin(int64_t part) const { return p_.rows * part / parts_; }

  void emit(int64_t b, const void* gradient) const {
    if (!g_.want_theta) return;
    char* bias = static_cast<char*>(gbias_.mutable_data_ptr());
    char* theta = static_cast<char*>(gtheta_.mutable_data_ptr());
    const int64_t bias_bytes = problem_.bias ? gbias_.size(1) * int64_t(problem_.bias->element_size()) : 0;
    kernel_.emit(p_, gradient, theta + b * gtheta_.size(1) * int64_t(problem_.theta.element_size()),
                 problem_.bias ? bias + b * bias_bytes : nullptr);
  }

  // One network, its parts in order.
  void network(int64_t b, const MlpGradients& g) const {
    char* total = thread_workspace(2 * gradient_bytes_ + scratch_bytes_);
    char* part = total + gradient_bytes_;
    char* scratch = part + gradient_bytes_;
    kernel_.backward(p_, g, b, 0, part_begin(1), total, scratch);
    for (int64_t s = 1; s < parts_; ++s) {
      kernel_.backward(p_, g, b, part_begin(s), part_begin(s + 1), part, scratch);
      if (g.want_theta) kernel_.add(p_, total, part);
    }
    emit(b, total);
  }

  // Few networks with many rows: parts in parallel, then their sums in the order of network().
  void by_part() {
    Tensor sums = torch::stable::new_empty(
        problem_.x, {g_.want_theta ? p_.networks * parts_ : 1, gradient_bytes_ / value_}, compute_type(problem_.x));
    char* data = static_cast<char*>(sums.mutable_data_ptr());
    parallel_for(0, p_.networks * parts_, 1, [&](int64_t begin, int64_t end) {
      char* scratch = thread_workspace(scratch_bytes_);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t s = task % parts_;
        kernel_.backward(p_, g_, task / parts_, part_begin(s), part_begin(s + 1),
                         g_.want_theta ? data + task * gradient_bytes_ : nullptr, scratch);
      }
    });
    if (!g_.want_theta) return;
    parallel_for(0, p_.networks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        char* total = data + b * parts_ * gradient_bytes_;
        for (int64_t s = 1; s < parts_; ++s) kernel_.add(p_, total, total + s * gradient_bytes_);
        emit(b, total);
      }
    });
  }

  // A shared input: each group adds up its networks' gradients to it, in order.
  void by_group() {
    parallel_for(0, groups_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        MlpGradients g = g_;
        g.gx = static_cast<char*>(g_.gx) + group * p_.rows * p_.layers[0].in * value_;
        const int64_t first = p_.networks * group / groups_, last = p_.networks * (group + 1) / groups_;
        for (int64_t b = first; b < last; ++b) {
          g.add_to_gx = b > first;
          network(b, g);
        }
      }
    });
  }

  Tensor summed_over_groups() const {
    const int64_t dims[] = {0};
    return torch::stable::to(torch::stable::sum(gx_, dims, false), problem_.x.scalar_type());
  }

  const Problem& problem_;
  const MlpProblem& p_;
  const MlpKernels& kernel_;
  Tensor gy_, gx_, gtheta_, gbias_;
  MlpGradients g_;
  bool shared_x_;
  int64_t groups_, value_, gradient_bytes_, scratch_bytes_, parts_;
};

std::tuple<Tensor, Tensor, Tensor> mlp_backward(const Tensor& gy, const Tensor& x, const Tensor& theta,
                                                const OptionalTensor& bias, const Ints& widths, const Ints& activations,
                                                const std::vector<double>& parameters, const Ints& biases, bool want_x,
                                                bool want_theta, bool want_bias) {
  const Problem problem(x, theta, bias, widths, activations, parameters, biases);
  return Backward(problem, gy, want_x, want_theta, want_bias).run();
}

std::string cpu_isa(const std::string& force) {
  if (!force.empty()) force_isa(force);
  return isa_name(current_isa());
}
std::string cpu_isas() { return available_isas(); }

}  // namespace
}  // namespace hyperfast

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def(
      "batched_mlp_cpp(Tensor x, Tensor theta, Tensor? bias, int[] widths, int[] activations, "
      "float[] parameters, int[] biases) -> Tensor");
  m.def(
      "batched_mlp_backward_cpp(Tensor gy, Tensor x, Tensor theta, Tensor? bias, int[] widths, "
      "int[] activations, float[] parameters, int[] biases, bool want_x, bool want_theta, bool want_bias) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("cpu_isa(str force) -> str");
  m.def("cpu_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) {
  m.impl("batched_mlp_cpp", TORCH_BOX(&hyperfast::mlp));
  m.impl("batched_mlp_backward_cpp", TORCH_BOX(&hyperfast::mlp_backward));
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&hyperfast::cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&hyperfast::cpu_isas));
}
