// Runs a batch of native networks, MLPs or CNNs: tensors to pointers, and the split of the work over threads.
// Results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"
#include "workspace.h"

namespace hyperfast {

using torch::stable::parallel_for;
using Ints = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;

// Networks that share one input add their gradients to it in this many groups.
constexpr int64_t kInputGradientGroups = 16;

// A problem and the tensors that keep its pointers alive.
template <class P>
struct Call {
  Tensor x, theta;
  OptionalTensor bias;
  std::vector<typename P::LayerType> layers;
  P p;
  int64_t row_dims;       // dimensions of one row of x: 1, or 3 for an image
  int64_t rows_per_task;  // rows that justify preparing a network's weights once more for another thread
  // Rows after which a network's gradient is summed in parts, so that one large network can use every thread. It
  // depends on nothing but N: the same sums in the same order, alone or within a batch.
  int64_t rows_per_part;

  Call(const Tensor& x_in, const Tensor& theta_in, const OptionalTensor& bias_in, int64_t row_dims)
      : x(dense_rows(x_in, row_dims)), theta(dense_rows(theta_in, 1)), row_dims(row_dims) {
    if (bias_in) bias = dense_rows(*bias_in, 1);
    const int64_t row = shared() ? 0 : 1;
    p.networks = theta.size(0);
    p.rows = x.size(row);
    p.x = {x.const_data_ptr(), dtype_of(x), shared() ? 0 : x.stride(0), x.stride(row)};
    p.theta = {theta.const_data_ptr(), dtype_of(theta), theta.stride(0), 0};
    p.bias = bias ? Strided{bias->const_data_ptr(), dtype_of(*bias), bias->stride(0), 0}
                  : Strided{nullptr, DType::f32, 0, 0};
    p.saved = nullptr;
  }
  Call(const Call&) = delete;

  bool shared() const { return x.dim() == row_dims + 1; }
  int64_t row_size() const {
    int64_t size = 1;
    for (int64_t d = x.dim() - row_dims; d < x.dim(); ++d) size *= x.size(d);
    return size;
  }
  // Takes over the layers, once their number is final.
  void set_layers() {
    p.num_layers = int64_t(layers.size());
    p.layers = layers.data();
  }
  // The place of a layer's weights and bias in a row of theta, which begins with the layers before it.
  template <class L>
  void place(L& layer, int64_t weights, bool has_bias, int64_t& offset) const {
    layer.weight = offset;
    offset += weights;
    layer.bias = has_bias ? (bias ? 0 : offset) : -1;
    if (has_bias && !bias) offset += layer.out;
  }
};

// y [networks, rows, *out], and with `save` what backward takes as `saved`; empty where there is nothing to save.
template <class P>
std::tuple<Tensor, Tensor> run_forward(Call<P>& call, const Kernels<P>& kernel, const Ints& out, bool save) {
  P& p = call.p;
  const int64_t saved_bytes = save ? kernel.saved_bytes(p) : 0;
  const Ints saved_shape = saved_bytes ? Ints{p.networks, p.rows, saved_bytes} : Ints{0};
  Tensor saved = torch::stable::new_empty(call.x, saved_shape, ScalarType::Byte);
  Ints shape = {p.networks, p.rows};
  shape.insert(shape.end(), out.begin(), out.end());
  Tensor y = torch::stable::new_empty(call.x, shape);
  if (y.numel() == 0) return {y, saved};
  if (saved_bytes) p.saved = saved.mutable_data_ptr();
  void* data = y.mutable_data_ptr();
  const int64_t bytes = kernel.workspace(p, false);

  // Whole networks where there are enough of them, otherwise parts of one, too.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = p.networks >= 2 * threads ? 1 : 4 * threads;
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, p.rows / call.rows_per_task));
  parallel_for(0, p.networks * parts, 1, [&](int64_t begin, int64_t end) {
    char* scratch = thread_workspace(bytes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts;
      kernel.forward(p, task / parts, p.rows * part / parts, p.rows * (part + 1) / parts, data, scratch);
    }
  });
  return {y, saved};
}

template <class P>
class Backward {
 public:
  Backward(Call<P>& call, const Kernels<P>& kernel, const Tensor& gy_in, const Tensor& saved, bool want_x,
           bool want_theta, bool want_bias)
      : call_(call), p_(call.p), kernel_(kernel), gy_(dense_rows(gy_in, call.row_dims)) {
    if (saved.numel() > 0) call.p.saved = const_cast<void*>(saved.const_data_ptr());  // only read
    const bool want_weights = want_theta || want_bias;
    shared_x_ = want_x && call.shared();
    groups_ = std::min(p_.networks, kInputGradientGroups);
    row_size_ = call.row_size();
    Ints shape = sizes(call.x);
    if (shared_x_) shape.insert(shape.begin(), groups_);
    if (!want_x) shape = {0};
    gx_ = torch::stable::new_empty(call.x, shape, shared_x_ ? compute_type(call.x) : call.x.scalar_type());
    const Tensor& theta = call.theta;
    gtheta_ = torch::stable::new_empty(theta, {want_weights ? p_.networks : 0, theta.size(1)});
    const Tensor& bias_like = call.bias ? *call.bias : theta;
    gbias_ = torch::stable::new_empty(bias_like,
                                      {want_weights && call.bias ? p_.networks : 0, call.bias ? bias_like.size(1) : 0});

    g_.gy = {gy_.const_data_ptr(), dtype_of(gy_), gy_.stride(0), gy_.stride(1)};
    g_.gx = want_x ? gx_.mutable_data_ptr() : nullptr;
    g_.gx_type = dtype_of(gx_);
    g_.gx_network_stride = shared_x_ ? 0 : p_.rows * row_size_;
    g_.add_to_gx = false;
    g_.want_theta = want_weights;
    value_ = compute_type(call.x) == ScalarType::Double ? 8 : 4;
    gradient_bytes_ = aligned64(kernel_.gradient_size(p_) * value_);
    scratch_bytes_ = aligned64(kernel_.workspace(p_, true));
    parts_ = std::max<int64_t>(1, (p_.rows + call_.rows_per_part - 1) / call_.rows_per_part);
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
    const int64_t bias_bytes = call_.bias ? gbias_.size(1) * int64_t(call_.bias->element_size()) : 0;
    kernel_.emit(p_, gradient, theta + b * gtheta_.size(1) * int64_t(call_.theta.element_size()),
                 call_.bias ? bias + b * bias_bytes : nullptr);
  }

  // One network, its parts in order.
  void network(int64_t b, const Gradients& g) const {
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
        call_.x, {g_.want_theta ? p_.networks * parts_ : 1, gradient_bytes_ / value_}, compute_type(call_.x));
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
        Gradients g = g_;
        g.gx = static_cast<char*>(g_.gx) + group * p_.rows * row_size_ * value_;
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
    return torch::stable::to(torch::stable::sum(gx_, dims, false), call_.x.scalar_type());
  }

  const Call<P>& call_;
  const P& p_;
  const Kernels<P>& kernel_;
  Tensor gy_, gx_, gtheta_, gbias_;
  Gradients g_;
  bool shared_x_;
  int64_t groups_, row_size_, value_, gradient_bytes_, scratch_bytes_, parts_;
};

}  // namespace hyperfast
