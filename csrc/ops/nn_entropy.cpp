// Registers the native nearest neighbours: which screens run on which rows, the split over threads, what decides a row.
// Arguments were checked in hyperfast/ops/nn_entropy.py.
//
// Results do not depend on the number of threads, although a screen's rounding may: it only excludes rows that its
// error bound excludes, and all others are decided by distances that are always summed in the same order.
#include "../nn_entropy.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../cpu/common/isa.h"
#include "tensors.h"
#include "workspace.h"

namespace hyperfast {
namespace {

using torch::stable::parallel_for;
using Indices = std::vector<int64_t>;

const NeighborKernels& kernels() {
#ifdef HYPERFAST_X86
  return for_isa(generic::neighbor_kernels, avx2::neighbor_kernels, avx512::neighbor_kernels);
#else
  return generic::neighbor_kernels;
#endif
}

// Rows of a block: its sums (4 MB) and a packed slab (1 MB) stay in L2 and L3.
constexpr int64_t kBlockRows = 1024;
// The last screen has a fixed split, so that its rounding is always the same.
constexpr int64_t kLastBlockRows = 512;
constexpr int64_t kLastParts = 8;
constexpr int64_t kPieceOfGradient = 4096;

Rows rows_of(const Tensor& theta) { return {theta.const_data_ptr(), dtype_of(theta), theta.stride(0), theta.size(1)}; }

// Runs tasks [0, count) on all threads, each taking the next one.
template <class Work>
void share(int64_t count, const Work& work) {
  std::atomic<int64_t> next{0};
  const int64_t takers = std::min<int64_t>(count, torch::stable::get_num_threads());
  parallel_for(0, takers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t taker = begin; taker < end; ++taker)
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) work(task, taker);
  });
}

class Search {
 public:
  Search(const Tensor& theta, int64_t start, int64_t stop, int64_t p, void* distance, int64_t* index)
      : theta_(rows_of(theta)), count_(theta.size(0)), start_(start), p_(p), distance_(distance), index_(index) {
    for (int64_t i = start; i < stop; ++i) open_.push_back(i);
  }

  void run() {
    struct Pass {
      Measure measure;
      DType compute;
    };
    const Measure differences = p_ == 2 ? Measure::square : Measure::absolute;
    std::vector<Pass> passes;
    if (p_ == 2 && count_ > kDirectRows) passes.push_back({Measure::gram, theta_.type});
    if (theta_.type == DType::f32) passes.push_back({differences, DType::f32});
    passes.push_back({differences, DType::f64});
    for (size_t i = 0; i < passes.size() && !open_.empty(); ++i) {
      const bool last = i + 1 == passes.size();
      candidates_.assign(size_t(count_), nothing());
      if (screen(passes[i].measure, passes[i].compute, last)) decide(last);
    }
  }

 private:
  static Candidates nothing() {
    constexpr double far = std::numeric_limits<double>::infinity();
    return {far, far, far, -1, 0, {}, {}};
  }

  // Candidates of all open rows among all rows. False where the screen does not serve these values.
  bool screen(Measure measure, DType compute, bool last) {
    // Open rows first, so that a pair of two of them is taken once.
    Indices order = open_;
    std::vector<bool> is_open(size_t(count_), false);
    for (int64_t i : open_) is_open[size_t(i)] = true;
    for (int64_t i = 0; i < count_; ++i)
      if (!is_open[size_t(i)]) order.push_back(i);
    const int64_t open = int64_t(open_.size());
    const int64_t most = last ? kLastBlockRows : kBlockRows;
    const int64_t blocks = (count_ + most - 1) / most;
    // Equal blocks, of whole panels.
    const int64_t block = ((count_ + blocks - 1) / blocks + 31) / 32 * 32;
    for (int64_t a = 0; a < open; a += block)
      for (int64_t b = a; b < count_; b += block) {
        const bool triangle = a == b;
        const int64_t a_end = std::min(a + block, open), b_end = std::min(b + block, count_);
        const Screen s{theta_, measure, compute, &order[size_t(a)], &order[size_t(b)], a_end - a, b_end - b, triangle};
        if (!pairs(s, last, std::max<int64_t>(0, std::min(b_end, open) - b))) return false;
      }
    return true;
  }

  // One block against another; the first `open_right` right rows are open.
  bool pairs(const Screen& s, bool last, int64_t open_right) {
    const NeighborKernels& kernel = kernels();
    const int64_t slabs = kernel.slabs(s), threads = torch::stable::get_num_threads();
    const int64_t parts = std::max<int64_t>(1, std::min(slabs, last ? kLastParts : threads));
    const int64_t bytes = kernel.workspace(s);
    char* space = thread_workspace(parts * bytes);
    std::atomic<int64_t> next{0};
    share(parts, [&](int64_t part, int64_t) {
      char* mine = space + part * bytes;
      kernel.clear(s, mine);
      if (last)
        for (int64_t slab = part * slabs / parts; slab < (part + 1) * slabs / parts; ++slab)
          kernel.accumulate(s, slab, mine);
      else
        for (int64_t slab; (slab = next.fetch_add(1, std::memory_order_relaxed)) < slabs;)
          kernel.accumulate(s, slab, mine);
    });
    if (!kernel.combine_norms(s, space, parts, bytes)) return false;
    const int64_t grain = std::max<int64_t>(1, 16384 / s.right);
    parallel_for(0, s.left, grain, [&](int64_t begin, int64_t end) {
      kernel.combine(s, space, parts, bytes, begin, end);
      kernel.offer_left(s, space, parts, candidates_.data(), begin, end);
    });
    parallel_for(0, open_right, grain, [&](int64_t begin, int64_t end) {
      kernel.offer_right(s, space, parts, candidates_.data(), begin, end);
    });
    return true;
  }

  // Decides the open rows that this screen separates, all of them after the last one.
  void decide(bool last) {
    std::vector<char> decided(open_.size());
    parallel_for(0, int64_t(open_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) decided[size_t(i)] = decide_row(open_[size_t(i)], last);
    });
    size_t left = 0;
    for (size_t i = 0; i < open_.size(); ++i)
      if (!decided[i]) open_[left++] = open_[i];
    open_.resize(left);
  }

  bool decide_row(int64_t row, bool last) {
    const Candidates& c = candidates_[size_t(row)];
    if (c.count == 0) {
      // No row at a finite distance: this one is not finite, or all others are not, or numbers are too large.
      if (!last && kernels().is_finite(theta_, row)) return false;
      return emit(row, row == 0 ? 1 : 0);
    }
    if (c.dropped <= c.upper) return last && emit(row, c.best_row);
    int64_t nearest = -1;
    double least = 0.0;
    for (int64_t i = 0; i < c.count; ++i) {
      if (c.lower[i] > c.upper) continue;
      const double d = kernels().distance(theta_, row, c.row[i], p_);
      if (nearest < 0 || d < least || (d == least && c.row[i] < nearest)) {
        nearest = c.row[i];
        least = d;
      }
    }
    return emit(row, nearest, least);
  }

  bool emit(int64_t row, int64_t nearest) { return emit(row, nearest, kernels().distance(theta_, row, nearest, p_)); }
  bool emit(int64_t row, int64_t nearest, double sum) {
    const double d = p_ == 2 ? std::sqrt(sum) : sum;
    if (theta_.type == DType::f64)
      static_cast<double*>(distance_)[row - start_] = d;
    else
      static_cast<float*>(distance_)[row - start_] = float(d);
    index_[row - start_] = nearest;
    return true;
  }

  const Rows theta_;
  const int64_t count_, start_, p_;
  void* distance_;
  int64_t* index_;
  Indices open_;  // rows whose neighbour is not yet known, ascending
  std::vector<Candidates> candidates_;
};

// A negative `stop`: up to the last row. So a graph of all rows holds no number of them.
int64_t end_of(const Tensor& theta, int64_t stop) { return stop < 0 ? theta.size(0) : stop; }

std::tuple<Tensor, Tensor> nearest_neighbor(const Tensor& theta_in, int64_t start, int64_t stop_in, int64_t p) {
  const Tensor theta = dense_rows(theta_in, 1);
  const int64_t stop = end_of(theta, stop_in);
  Tensor distance = torch::stable::new_empty(theta, {stop - start});
  Tensor index = torch::stable::new_empty(theta, {stop - start}, ScalarType::Long);
  if (start < stop)
    Search(theta, start, stop, p, distance.mutable_data_ptr(), static_cast<int64_t*>(index.mutable_data_ptr())).run();
  return {distance, index};
}

// ---- backward -----------------------------------------------------------------------------------

// The pairs that a row takes part in: the other row and the weight of the difference, in the order of the row whose
// distance it is.
struct Pairs {
  Indices first;  // [N + 1]
  Indices other;
  std::vector<double> weight;

  template <class T>
  Pairs(const T* grad, const T* distance, const int64_t* index, int64_t count, int64_t p) : first(size_t(count + 1)) {
    const auto meets_itself = [&](int64_t i) { return !(distance[i] == T(0)); };
    const auto meets_neighbor = [&](int64_t i) { return meets_itself(i) && std::isfinite(distance[i]); };
    for (int64_t i = 0; i < count; ++i) {
      first[size_t(i + 1)] += meets_itself(i);
      first[size_t(index[i] + 1)] += meets_neighbor(i);
    }
    for (int64_t i = 0; i < count; ++i) first[size_t(i + 1)] += first[size_t(i)];
    other.resize(size_t(first[size_t(count)]));
    weight.resize(other.size());
    Indices next(first.begin(), first.end() - 1);
    const auto add = [&](int64_t row, int64_t against, double w) {
      const size_t at = size_t(next[size_t(row)]++);
      other[at] = against;
      weight[at] = w;
    };
    for (int64_t i = 0; i < count; ++i) {
      const double w = p == 2 ? double(grad[i]) / double(distance[i]) : double(grad[i]);
      if (meets_itself(i)) add(i, index[i], w);
      if (meets_neighbor(i)) add(index[i], i, w);
    }
  }
};

Pairs pairs_of(const Tensor& grad, const Tensor& distance, const int64_t* index, int64_t p) {
  const int64_t count = grad.size(0);
  if (dtype_of(grad) == DType::f64)
    return {static_cast<const double*>(grad.const_data_ptr()), static_cast<const double*>(distance.const_data_ptr()),
            index, count, p};
  return {static_cast<const float*>(grad.const_data_ptr()), static_cast<const float*>(distance.const_data_ptr()), index,
          count, p};
}

Tensor nearest_neighbor_backward(const Tensor& grad, const Tensor& theta_in, const Tensor& distance,
                                 const Tensor& index_in, int64_t start, int64_t stop_in, int64_t p) {
  const Tensor theta = dense_rows(theta_in, 1), index = torch::stable::contiguous(index_in);
  const int64_t features = theta.size(1), stop = end_of(theta, stop_in);
  Tensor gradient = torch::stable::new_empty(theta, {stop - start, features});
  if (gradient.numel() == 0) return gradient;
  const Rows rows = rows_of(theta);
  const Pairs pairs = pairs_of(torch::stable::contiguous(grad), torch::stable::contiguous(distance),
                               static_cast<const int64_t*>(index.const_data_ptr()), p);
  char* data = static_cast<char*>(gradient.mutable_data_ptr());
  const int64_t row_bytes = features * (rows.type == DType::f64 ? 8 : 4);
  // A row that is the neighbour of many others is shared out, too.
  const int64_t pieces = (features + kPieceOfGradient - 1) / kPieceOfGradient;
  const NeighborKernels& kernel = kernels();
  share((stop - start) * pieces, [&](int64_t task, int64_t) {
    const int64_t row = start + task / pieces, begin = task % pieces * kPieceOfGradient;
    const int64_t first = pairs.first[size_t(row)], count = pairs.first[size_t(row + 1)] - first;
    kernel.gradient(rows, row, pairs.other.data() + first, pairs.weight.data() + first, count, p, begin,
                    std::min(begin + kPieceOfGradient, features), data + (row - start) * row_bytes);
  });
  return gradient;
}

}  // namespace
}  // namespace hyperfast

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def("nearest_neighbor_cpp(Tensor theta, int start, int stop, int p) -> (Tensor, Tensor)");
  m.def(
      "nearest_neighbor_backward_cpp(Tensor grad, Tensor theta, Tensor distance, Tensor index, int start, int stop, "
      "int p) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) {
  m.impl("nearest_neighbor_cpp", TORCH_BOX(&hyperfast::nearest_neighbor));
  m.impl("nearest_neighbor_backward_cpp", TORCH_BOX(&hyperfast::nearest_neighbor_backward));
}
