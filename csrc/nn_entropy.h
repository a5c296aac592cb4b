// The contract of the native nearest neighbours of N long vectors.
//
// theta [N, D] float32 or float64, row stride free. For a row i
//     index[i]    = the row j != i whose |theta_i - theta_j|_p is least; ties: the lowest j
//     distance[i] = that distance
//     gradient[r] = d/d theta_r of sum over i of grad_i * distance_i, index held fixed
// A screen gives approximate distances of blocks of rows against blocks of rows with a bound of their error; what the
// bound does not separate is decided by `distance`. The caller owns all memory; kernels never allocate.
#pragma once

#include "target_net.h"

namespace hyperfast {

struct Rows {
  const void* data;
  DType type;  // f32 or f64
  int64_t stride;
  int64_t features;
};

// gram: |x|^2 + |y|^2 - 2 x.y of rows less a common centre; square: sum (x - y)^2; absolute: sum |x - y|.
enum class Measure : int { gram, square, absolute };

// Two blocks of rows, each of the first against each of the second. With `triangle` they are the same rows, of which
// the first `left` meet those behind them.
struct Screen {
  Rows theta;
  Measure measure;
  DType compute;  // f32 or f64
  const int64_t* left_rows;
  const int64_t* right_rows;
  int64_t left;
  int64_t right;
  bool triangle;
};

// What is known of a row's neighbour: some that may be it, and a bound that excludes all others.
struct Candidates {
  static constexpr int64_t kMost = 8;
  double upper;    // the least distance is at most this
  double dropped;  // the lowest that any row which found no place may be at; above `upper`, none was lost
  double best;     // the least approximate distance, of best_row; ties: the lowest row
  int64_t best_row;
  int64_t count;
  int64_t row[kMost];
  double lower[kMost];  // the row is at least this far
};

struct NeighborKernels {
  // A screen's sums over features go in slabs, which may be added to several partial sums, each with its workspace.
  int64_t (*slabs)(const Screen&);
  int64_t (*workspace)(const Screen&);
  void (*clear)(const Screen&, void* workspace);
  void (*accumulate)(const Screen&, int64_t slab, void* workspace);
  // Adds partial sums [1, parts), `bytes` apart, to the first, for left rows [begin, end).
  void (*combine)(const Screen&, void* workspace, int64_t parts, int64_t bytes, int64_t begin, int64_t end);
  // Adds the norms of all partial sums to the first's. False where a finite row is too large for this screen.
  bool (*combine_norms)(const Screen&, void* workspace, int64_t parts, int64_t bytes);
  // Offers to left rows [begin, end) every right row; to right rows [begin, end) every left row. candidates[row].
  void (*offer_left)(const Screen&, const void* workspace, int64_t parts, Candidates*, int64_t begin, int64_t end);
  void (*offer_right)(const Screen&, const void* workspace, int64_t parts, Candidates*, int64_t begin, int64_t end);
  // Sum over features of (x - y)^2 (p = 2) or |x - y| (p = 1) in float64, always in the same order.
  double (*distance)(const Rows&, int64_t row, int64_t other, int64_t p);
  bool (*is_finite)(const Rows&, int64_t row);
  // to[k] = sum over n of weight[n] * (x - y)[k], or of weight[n] * sign((x - y)[k]) where p = 1, for features
  // [begin, end); x = row, y = others[n], in the order of n.
  void (*gradient)(const Rows&, int64_t row, const int64_t* others, const double* weights, int64_t count, int64_t p,
                   int64_t begin, int64_t end, void* to);
};

namespace generic {
extern const NeighborKernels neighbor_kernels;
}
namespace avx2 {
extern const NeighborKernels neighbor_kernels;
}
namespace avx512 {
extern const NeighborKernels neighbor_kernels;
}

}  // namespace hyperfast
