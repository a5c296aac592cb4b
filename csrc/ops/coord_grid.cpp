// Registers the native coordinate grids: schemas, a problem from the arguments of a call, and the split over threads.
// Arguments were checked in hyperfast/ops/coord_grid.py. Results do not depend on the number of threads.
#include "../coord_grid.h"

#include "../cpu/common/isa.h"
#include "networks.h"

namespace hyperfast {
namespace {

using Floats = std::vector<double>;

#ifdef HYPERFAST_X86
const GridKernels& grid_kernels() { return for_isa(generic::grid_kernels, avx2::grid_kernels, avx512::grid_kernels); }
#else
const GridKernels& grid_kernels() { return generic::grid_kernels; }
#endif

// Points that justify packing a network's weights once more for another thread.
constexpr int64_t kPointsPerTask = 192;
// Points after which sums over a network are taken in parts, so that one large grid can use every thread. It depends
// on nothing but the points: the same sums in the same order, alone or within a batch.
constexpr int64_t kPointsPerPart = 2048;

// steps: (kind, inputs, outputs, activation, has a bias) of each; geometry: step of u, of v, window.
class Call {
 public:
  Call(GridKind kind, const Tensor& theta, const OptionalTensor& extra, const OptionalTensor& rects,
       const OptionalTensor& starts, const Ints& sizes, const Floats& geometry, const Ints& ints,
       const Floats& parameters)
      : theta(dense_rows(theta, 1)), sizes_(sizes) {
    p.kind = kind;
    p.mlp.networks = theta.size(0);
    p.mlp.rows = 0;
    p.mlp.x = {nullptr, compute_type(theta) == ScalarType::Double ? DType::f64 : DType::f32, 0, 0};
    p.mlp.theta = {this->theta.const_data_ptr(), dtype_of(theta), this->theta.stride(0), 0};
    p.mlp.bias = {nullptr, DType::f32, 0, 0};
    p.mlp.saved = nullptr;
    set_steps(ints, parameters);
    p.axes = int64_t(sizes_.size());
    p.sizes = sizes_.data();
    p.extras = 0;
    p.extra = nullptr;
    if (extra) {
      extra_ = torch::stable::contiguous(*extra);
      p.extras = extra_->size(1);
      p.extra = extra_->const_data_ptr();
    }
    if (kind != GridKind::render) return;
    rects_ = torch::stable::contiguous(*rects);
    starts_ = torch::stable::contiguous(*starts);
    p.rects = static_cast<const int32_t*>(rects_->const_data_ptr());
    p.starts = static_cast<const double*>(starts_->const_data_ptr());
    p.step[0] = geometry[0];
    p.step[1] = geometry[1];
    p.window = Window(int(geometry[2]));
  }
  Call(const Call&) = delete;

  int64_t outputs() const { return p.steps[p.num_steps - 1].outputs; }
  // Points of a network.
  int64_t points(int64_t network) const {
    if (p.kind == GridKind::render) {
      const int32_t* rect = p.rects + 4 * network;
      return int64_t(rect[1] - rect[0]) * (rect[3] - rect[2]);
    }
    int64_t n = 1;
    for (int64_t size : sizes_) n *= size;
    return n;
  }
  bool has_extra() const { return extra_.has_value(); }
  int64_t bytes() const { return p.mlp.x.type == DType::f64 ? 8 : 4; }

  Tensor theta;
  GridProblem p;

 private:
  void set_steps(const Ints& ints, const Floats& parameters) {
    int64_t offset = 0;
    for (size_t s = 0; s < parameters.size(); ++s) {
      const int64_t* i = &ints[5 * s];
      const Step step{StepKind(i[0]), i[1], i[2], int64_t(layers_.size()), Activation(i[3]), parameters[s]};
      steps_.push_back(step);
      if (step.kind != StepKind::linear) continue;
      const int64_t bias = offset + step.inputs * step.outputs;
      layers_.push_back({step.inputs, step.outputs, offset, i[4] ? bias : -1, step.activation, step.parameter});
      offset = bias + (i[4] ? step.outputs : 0);
    }
    p.num_steps = int64_t(steps_.size());
    p.steps = steps_.data();
    p.mlp.num_layers = int64_t(layers_.size());
    p.mlp.layers = layers_.data();
  }

  Ints sizes_;
  std::vector<Step> steps_;
  std::vector<Layer> layers_;
  OptionalTensor extra_, rects_, starts_;
};

char* at(const Tensor& t, int64_t bytes) { return static_cast<char*>(t.mutable_data_ptr()) + bytes; }

Tensor none(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

int64_t parts_of(int64_t points) { return std::max<int64_t>(1, (points + kPointsPerPart - 1) / kPointsPerPart); }

// ---- forward ------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> eval(Call& call) {
  const GridKernels& kernels = grid_kernels();
  const GridProblem& p = call.p;
  const int64_t points = call.points(0);
  Tensor y = torch::stable::new_empty(call.theta, {p.mlp.networks, points, call.outputs()});
  if (y.numel() == 0) return {y, none(call.theta)};
  void* data = y.mutable_data_ptr();
  const int64_t bytes = kernels.workspace(p, false);
  // Whole networks where there are enough of them, otherwise parts of one, too.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = p.mlp.networks >= 2 * threads ? 1 : 4 * threads;
  const int64_t parts = std::max<int64_t>(1, std::min(wanted, points / kPointsPerTask));
  parallel_for(0, p.mlp.networks * parts, 1, [&](int64_t begin, int64_t end) {
    char* scratch = thread_workspace(bytes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts;
      kernels.eval(p, task / parts, points * part / parts, points * (part + 1) / parts, data, scratch);
    }
  });
  return {y, none(call.theta)};
}

std::tuple<Tensor, Tensor> moments(Call& call) {
  const GridKernels& kernels = grid_kernels();
  const GridProblem& p = call.p;
  const int64_t points = call.points(0), networks = p.mlp.networks, parts = parts_of(points);
  const ScalarType wide = compute_type(call.theta);
  const int64_t size = 2 * call.outputs(), bytes = size * call.bytes();
  Tensor sums = torch::stable::new_empty(call.theta, {networks * parts, size}, wide);
  Tensor y = torch::stable::new_empty(call.theta, {networks, 2, call.outputs()}, wide);
  if (points == 0) return {torch::stable::fill_(y, std::numeric_limits<double>::quiet_NaN()), none(call.theta)};
  const int64_t scratch_bytes = kernels.workspace(p, false);
  const auto first = [&](int64_t part) { return points * part / parts; };
  parallel_for(0, networks * parts, 1, [&](int64_t begin, int64_t end) {
    char* scratch = thread_workspace(scratch_bytes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts;
      kernels.moments(p, task / parts, first(part), first(part + 1), at(sums, task * bytes), scratch);
    }
  });
  for (int64_t b = 0; b < networks; ++b) {
    char* total = at(sums, b * parts * bytes);
    for (int64_t s = 1; s < parts; ++s) kernels.merge(p, total, first(s), total + s * bytes, first(s + 1) - first(s));
    for (int64_t i = 0; i < size; ++i) {
      const double by = i < call.outputs() ? 1.0 : double(points);
      if (call.bytes() == 8)
        reinterpret_cast<double*>(at(y, b * bytes))[i] = reinterpret_cast<double*>(total)[i] / by;
      else
        reinterpret_cast<float*>(at(y, b * bytes))[i] = float(double(reinterpret_cast<float*>(total)[i]) / by);
    }
  }
  return {y, none(call.theta)};
}

// Rows of the image for each thread, with about as many points each: the first row of each, and the end.
Ints rows_of_tasks(const Call& call, int64_t height) {
  std::vector<int64_t> points(size_t(height) + 1, 0);
  for (int64_t b = 0; b < call.p.mlp.networks; ++b) {
    const int32_t* rect = call.p.rects + 4 * b;
    points[size_t(rect[0])] += rect[3] - rect[2];
    points[size_t(rect[1])] -= rect[3] - rect[2];
  }
  std::vector<int64_t> before(size_t(height) + 1, 0);  // of all rows before a row
  int64_t in_row = 0;
  for (int64_t i = 0; i < height; ++i) {
    in_row += points[size_t(i)];
    before[size_t(i) + 1] = before[size_t(i)] + in_row;
  }
  const int64_t total = before.back();
  const int64_t tasks = std::max<int64_t>(
      1, std::min<int64_t>({int64_t(torch::stable::get_num_threads()), height, total / kPointsPerTask}));
  Ints rows = {0};
  for (int64_t t = 1; t < tasks; ++t) {
    const auto found = std::lower_bound(before.begin(), before.end(), total / tasks * t);
    rows.push_back(std::max<int64_t>(rows.back(), found - before.begin()));
  }
  rows.push_back(height);
  return rows;
}

std::tuple<Tensor, Tensor> render(Call& call) {
  const GridKernels& kernels = grid_kernels();
  const GridProblem& p = call.p;
  const int64_t height = p.sizes[0], width = p.sizes[1];
  const ScalarType wide = compute_type(call.theta);
  Tensor image = torch::stable::new_zeros(call.theta, {call.outputs(), height, width}, wide);
  Tensor weight = torch::stable::new_zeros(call.theta, {height, width}, wide);
  if (weight.numel() == 0 || p.mlp.networks == 0) return {image, weight};
  void *to = image.mutable_data_ptr(), *total = weight.mutable_data_ptr();
  const int64_t bytes = kernels.workspace(p, false);
  const Ints rows = rows_of_tasks(call, height);
  parallel_for(0, int64_t(rows.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    char* scratch = thread_workspace(bytes);
    for (int64_t t = begin; t < end; ++t) kernels.render(p, rows[size_t(t)], rows[size_t(t) + 1], to, total, scratch);
  });
  return {image, weight};
}

std::tuple<Tensor, Tensor> forward(GridKind kind, const Tensor& theta, const OptionalTensor& extra,
                                   const OptionalTensor& rects, const OptionalTensor& starts, const Ints& sizes,
                                   const Floats& geometry, const Ints& steps, const Floats& parameters) {
  Call call(kind, theta, extra, rects, starts, sizes, geometry, steps, parameters);
  return kind == GridKind::eval ? eval(call) : kind == GridKind::moments ? moments(call) : render(call);
}

// ---- backward -----------------------------------------------------------------------------------

class Backward {
 public:
  Backward(Call& call, const Tensor& gy, const Tensor& kept, bool want_theta, bool want_extra)
      : call_(call), p_(call.p), kernels_(grid_kernels()), kept_(torch::stable::contiguous(kept)) {
    const bool extra = want_extra && call.has_extra();
    gy_ = p_.kind == GridKind::eval ? dense_rows(gy, 1) : torch::stable::contiguous(gy);
    gtheta_ = torch::stable::new_empty(call.theta, want_theta ? sizes(call.theta) : Ints{0});
    const Ints extra_size = {p_.mlp.networks, p_.extras};
    gextra_ = torch::stable::new_empty(call.theta, extra ? extra_size : Ints{0}, compute_type(call.theta));
    g_.gy = {gy_->const_data_ptr(), dtype_of(*gy_), gy_->stride(0), gy_->stride(1)};
    g_.kept = kept_.const_data_ptr();
    g_.want_theta = want_theta;
    g_.want_extra = extra;
    gradient_bytes_ = aligned64(kernels_.gradient_size(p_) * call.bytes());
    scratch_bytes_ = aligned64(kernels_.workspace(p_, true));
  }

  std::tuple<Tensor, Tensor> run() {
    if (!g_.want_theta && !g_.want_extra) return {gtheta_, gextra_};
    Ints first_part = {0};  // of each network, among the parts of all
    for (int64_t b = 0; b < p_.mlp.networks; ++b) first_part.push_back(first_part.back() + parts_of(call_.points(b)));
    if (p_.mlp.networks >= 2 * int64_t(torch::stable::get_num_threads()))
      parallel_for(0, p_.mlp.networks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) network(b);
      });
    else
      by_part(first_part);
    return {gtheta_, gextra_};
  }

 private:
  // Points of part s of network b; a network without any has zeros for a gradient.
  void part(int64_t b, int64_t s, char* gradient, char* scratch) const {
    const int64_t points = call_.points(b), parts = parts_of(points);
    if (points == 0)
      std::fill(gradient, gradient + gradient_bytes_, char(0));
    else
      kernels_.backward(p_, g_, b, points * s / parts, points * (s + 1) / parts, gradient, scratch);
  }

  void emit(int64_t b, const char* gradient) const {
    const int64_t row = g_.want_theta ? gtheta_.size(1) * int64_t(gtheta_.element_size()) : 0;
    kernels_.emit(p_, gradient, g_.want_theta ? at(gtheta_, b * row) : nullptr,
                  g_.want_extra ? at(gextra_, b * p_.extras * call_.bytes()) : nullptr);
  }

  // One network, its parts in order.
  void network(int64_t b) const {
    char* total = thread_workspace(2 * gradient_bytes_ + scratch_bytes_);
    char* more = total + gradient_bytes_;
    char* scratch = more + gradient_bytes_;
    part(b, 0, total, scratch);
    for (int64_t s = 1; s < parts_of(call_.points(b)); ++s) {
      part(b, s, more, scratch);
      kernels_.add(p_, g_, total, more);
    }
    emit(b, total);
  }

  // Few networks: parts in parallel, then their sums in the order of network().
  void by_part(const Ints& first_part) const {
    Tensor sums = torch::stable::new_empty(call_.theta, {first_part.back(), gradient_bytes_}, ScalarType::Byte);
    parallel_for(0, first_part.back(), 1, [&](int64_t begin, int64_t end) {
      char* scratch = thread_workspace(scratch_bytes_);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = std::upper_bound(first_part.begin(), first_part.end(), task) - first_part.begin() - 1;
        part(b, task - first_part[size_t(b)], at(sums, task * gradient_bytes_), scratch);
      }
    });
    parallel_for(0, p_.mlp.networks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        char* total = at(sums, first_part[size_t(b)] * gradient_bytes_);
        for (int64_t s = 1; s < first_part[size_t(b) + 1] - first_part[size_t(b)]; ++s)
          kernels_.add(p_, g_, total, total + s * gradient_bytes_);
        emit(b, total);
      }
    });
  }

  const Call& call_;
  const GridProblem& p_;
  const GridKernels& kernels_;
  Tensor kept_;
  OptionalTensor gy_;
  Tensor gtheta_, gextra_;
  GridGradients g_;
  int64_t gradient_bytes_, scratch_bytes_;
};

std::tuple<Tensor, Tensor> backward(GridKind kind, const Tensor& gy, const Tensor& kept, const Tensor& theta,
                                    const OptionalTensor& extra, const OptionalTensor& rects,
                                    const OptionalTensor& starts, const Ints& sizes, const Floats& geometry,
                                    const Ints& steps, const Floats& parameters, bool want_theta, bool want_extra) {
  Call call(kind, theta, extra, rects, starts, sizes, geometry, steps, parameters);
  return Backward(call, gy, kept, want_theta, want_extra).run();
}

// ---- an op for each kind ------------------------------------------------------------------------

template <GridKind kind>
std::tuple<Tensor, Tensor> forward_of(const Tensor& theta, const OptionalTensor& extra, const OptionalTensor& rects,
                                      const OptionalTensor& starts, const Ints& sizes, const Floats& geometry,
                                      const Ints& steps, const Floats& parameters) {
  return forward(kind, theta, extra, rects, starts, sizes, geometry, steps, parameters);
}

template <GridKind kind>
std::tuple<Tensor, Tensor> backward_of(const Tensor& gy, const Tensor& kept, const Tensor& theta,
                                       const OptionalTensor& extra, const OptionalTensor& rects,
                                       const OptionalTensor& starts, const Ints& sizes, const Floats& geometry,
                                       const Ints& steps, const Floats& parameters, bool want_theta, bool want_extra) {
  return backward(kind, gy, kept, theta, extra, rects, starts, sizes, geometry, steps, parameters, want_theta,
                  want_extra);
}

}  // namespace
}  // namespace hyperfast

#define CALL                                                                                                 \
  "Tensor theta, Tensor? extra, Tensor? rects, Tensor? starts, int[] sizes, float[] geometry, int[] steps, " \
  "float[] parameters"
#define FORWARD "(" CALL ") -> (Tensor, Tensor)"
#define BACKWARD "(Tensor gy, Tensor kept, " CALL ", bool want_theta, bool want_extra) -> (Tensor, Tensor)"

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def("coord_grid_eval_cpp" FORWARD);
  m.def("coord_grid_eval_backward_cpp" BACKWARD);
  m.def("coord_grid_moments_cpp" FORWARD);
  m.def("coord_grid_moments_backward_cpp" BACKWARD);
  m.def("coord_grid_render_cpp" FORWARD);
  m.def("coord_grid_render_backward_cpp" BACKWARD);
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) {
  using hyperfast::GridKind;
  m.impl("coord_grid_eval_cpp", TORCH_BOX(&hyperfast::forward_of<GridKind::eval>));
  m.impl("coord_grid_eval_backward_cpp", TORCH_BOX(&hyperfast::backward_of<GridKind::eval>));
  m.impl("coord_grid_moments_cpp", TORCH_BOX(&hyperfast::forward_of<GridKind::moments>));
  m.impl("coord_grid_moments_backward_cpp", TORCH_BOX(&hyperfast::backward_of<GridKind::moments>));
  m.impl("coord_grid_render_cpp", TORCH_BOX(&hyperfast::forward_of<GridKind::render>));
  m.impl("coord_grid_render_backward_cpp", TORCH_BOX(&hyperfast::backward_of<GridKind::render>));
}
