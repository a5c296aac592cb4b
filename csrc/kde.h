// The contract of the native kernel density estimate: the cross-entropy of L weighted points of the plane under n
// Gaussians, for each of B samples, and its gradients. No memory of L x n.
//
// points [B, L, 2], mu [B, n, 2], weight [B, L], dense but for the stride of B, which may be 0; sigma [B], any stride;
// saved [2, B, L], g [B] and all results contiguous. All of one type, float or double.
//
// With d_li = |x_l - mu_i|^2, m_l = min over i of d_li and S_l = sum over i of exp((m_l - d_li) / (2 sigma^2)):
//     log p_l = log(S_l) - m_l / (2 sigma^2) - log(2 pi n sigma^2)      ce = - sum_l w_l log p_l
// A summand below 2^-80 (double: 2^-900) is taken as 0, beside the 1 of the nearest centre. saved holds m and S,
// and 0, 0 for a point of weight 0, which is not looked at. Backward, with r_li = exp((m_l - d_li) / (2 sigma^2)) / S_l
// and c_l = g w_l / sigma^2:
//     gx_l = c_l sum_i r_li (x_l - mu_i)      gmu_i = - sum_l c_l r_li (x_l - mu_i)      gw_l = - g log p_l
//     gsigma = - sum_l (c_l / sigma sum_i r_li d_li - 2 g w_l / sigma)
// gw_l of a point of weight 0 is computed where it is wanted, and 0 where its coordinates are not finite.
// The caller owns every tensor and the workspace.
#pragma once

#include "target_net.h"

namespace hyperfast {

struct KdeProblem {
  int64_t points;   // L
  int64_t centres;  // n, at least 1
  DType type;
  const void *x, *mu, *weight, *sigma;
  int64_t x_stride, mu_stride, weight_stride, sigma_stride;  // from one sample to the next
};

// Of one sample. A null pointer: not wanted.
struct KdeGradients {
  const void *g, *nearest, *sum;  // [1], [L], [L]
  void *gx, *gmu, *gweight;       // [L, 2], [n, 2], [L]
  double* gsigma;                 // [1]
};

struct KdeKernels {
  int64_t (*workspace)(const KdeProblem&, int64_t most_points);
  // Points [begin, end) of one sample: writes m and S of theirs [L], and their share of ce.
  void (*forward)(const KdeProblem&, int64_t sample, int64_t begin, int64_t end, void* nearest, void* sum, double* ce,
                  void* workspace);
  // Writes gx and gweight of these points, and gmu and gsigma as far as these points make them.
  void (*backward)(const KdeProblem&, int64_t sample, int64_t begin, int64_t end, const KdeGradients&, void* workspace);
  // to [n] = sum over `count` parts [count, n], in order; to may be the first part.
  void (*add)(DType, void* to, const void* parts, int64_t count, int64_t n);
};

namespace generic {
extern const KdeKernels kde_kernels;
}
namespace avx2 {
extern const KdeKernels kde_kernels;
}
namespace avx512 {
extern const KdeKernels kde_kernels;
}

}  // namespace hyperfast
