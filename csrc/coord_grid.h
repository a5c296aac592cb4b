// The contract of coordinate networks on grids: B networks with B different flat weight vectors, whose inputs are
// the coordinates of points that nobody stores.
//
// A network is a list of steps over h, which begins as (coordinate along each axis ..., extra[b] ...):
//     linear    h = act(W h + c)     W and c in row b of theta, at the layer's `weight` and `bias`
//     activate  h = act(h)
//     open      h is kept aside
//     close     h = act(h + what was kept last)
//
// Its points are those of a rectangle, the last axis fastest. Along axis d, point i has the coordinate
//     eval, moments   (2 i + 1) / sizes[d] - 1                  the whole grid, i < sizes[d]
//     render          starts[b][d] + step[d] * (i - first)      pixels i of rects[b], first = its top or left
//
// eval      y[b][n] = h                                         [B, N, O], contiguous
// moments   y[b] = mean and biased variance of h over n         [B, 2, O], contiguous, in the type of sums
// render    y[:, i, j] = sum_b w_b h_b / sum_b w_b              [O, H, W], contiguous, in the type of sums
//           over the patches b whose rect has pixel (i, j), in order; w = window(u) * window(v);
//           kept[i, j] = sum_b w_b; where it is 0, so is y
//
// Ownership as in target_net.h: the caller owns every tensor, kernels nothing but the workspace handed to them.
#pragma once

#include "target_net.h"

namespace hyperfast {

// The order is shared with hyperfast/plan_steps.py.
enum class StepKind : int { linear, activate, open, close };

struct Step {
  StepKind kind;
  int64_t inputs, outputs;
  int64_t layer;  // linear: its place in GridProblem::mlp.layers
  Activation activation;
  double parameter;
};

enum class GridKind : int { eval, moments, render };
// The order is shared with hyperfast/reference/coord_grid.py: WINDOWS.
enum class Window : int { flat, hann };

struct GridProblem {
  GridKind kind;
  MlpProblem mlp;  // networks, theta and the linear steps' layers; x.type is the type of sums, f32 or f64
  int64_t num_steps;
  const Step* steps;
  int64_t axes;
  const int64_t* sizes;  // [axes]; render: H, W
  int64_t extras;
  const void* extra;  // [B, E], contiguous, in the type of sums
  // render:
  const int32_t* rects;  // [B][4]: top, bottom, left, right, inside the image
  const double* starts;  // [B][2]
  double step[2];
  Window window;
};

struct GridGradients {
  Strided gy;        // eval: network and row strides; else contiguous as y, in the type of sums
  const void* kept;  // moments: y; render: the sum of weights; in the type of sums
  bool want_theta, want_extra;
};

// One table per instruction set; the type of sums (float or double) is that of mlp.x.type.
struct GridKernels {
  // Bytes of 64-byte aligned scratch that one call needs.
  int64_t (*workspace)(const GridProblem&, bool backward);
  // Points [begin, end) of one network into y [B, N, O] of theta's type.
  void (*eval)(const GridProblem&, int64_t network, int64_t begin, int64_t end, void* y, void* scratch);
  // Points [begin, end) of one network: [2, O], mean and sum of squared differences from it.
  void (*moments)(const GridProblem&, int64_t network, int64_t begin, int64_t end, void* part, void* scratch);
  // total, of `before` points, takes in part, of `more`.
  void (*merge)(const GridProblem&, void* total, int64_t before, const void* part, int64_t more);
  // Rows [begin, end) of the image and of the sum of weights, both zero on entry.
  void (*render)(const GridProblem&, int64_t begin, int64_t end, void* image, void* weight, void* scratch);
  // Length, in the type of sums, of a padded gradient of one network's theta and extra.
  int64_t (*gradient_size)(const GridProblem&);
  // Points [begin, end) of one network, begin < end; overwrites `gradient`.
  void (*backward)(const GridProblem&, const GridGradients&, int64_t network, int64_t begin, int64_t end,
                   void* gradient, void* scratch);
  // total += part, both padded gradients.
  void (*add)(const GridProblem&, const GridGradients&, void* total, const void* part);
  // Writes a padded gradient to a row of gtheta (type of theta) and of gextra (type of sums); null: not wanted.
  void (*emit)(const GridProblem&, const void* gradient, void* gtheta, void* gextra);
};

namespace generic {
extern const GridKernels grid_kernels;
}
namespace avx2 {
extern const GridKernels grid_kernels;
}
namespace avx512 {
extern const GridKernels grid_kernels;
}

}  // namespace hyperfast
