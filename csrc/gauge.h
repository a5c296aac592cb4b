// The contract of the native gauge: B weight vectors to equivalent ones whose filters have a fixed norm.
//
// theta, gy [B, P], row stride free; fixed, gtheta [B, P] and scales [B, F], contiguous; F counts the filters of all
// layers. theta, gy, fixed and gtheta have one type; scales the compute type, float (double for f64).
//
// For the layers in order, filter f of `filters`, with weights w [fan_in] and bias b of n elements together,
//     w'[i] = r[i] w[i]                            r: the scale of the previous layer's filter that column i reads,
//                                                  a block of fan_in / filters columns each; 1 where it has none
//     s = sqrt((sum w'^2 + b^2) / n)  for scale, 1 otherwise and for a dead filter (mean square <= kDead), whose place
//                                     in scales holds 0
//     w, b <- w' / s, b / s                        shift: b <- b - mean b
// and backward, given gw, gb of the results and gs of the scales from the layer behind,
//     k = (gs - (sum gw w' + gb b) / s^2) / (n s)  (0 for a dead filter and a layer that is not scaled)
//     gw' = gw / s + k w'      gb <- gb / s + k b      gw <- r gw'      gr[i] = sum over filters of gw'[i] w[i]
// The caller owns every tensor and the workspace.
#pragma once

#include "target_net.h"

namespace hyperfast {

// The order is shared with hyperfast/plan.py: LEAVE, SCALE, SHIFT.
enum class GaugeTreatment : int64_t { leave, scale, shift };

struct GaugeLayer {
  int64_t weight;  // offset of [filters, fan_in] in a row of theta
  int64_t bias;    // offset of [filters]; -1: none
  int64_t filters;
  int64_t fan_in;
  GaugeTreatment treatment;
};

struct GaugeProblem {
  const GaugeLayer* layers;
  int64_t count;
  int64_t weights;  // P
  int64_t filters;  // F
  DType type;
  const void* theta;
  int64_t theta_stride;
};

struct GaugeKernels {
  int64_t (*workspace)(const GaugeProblem&);
  // Networks [begin, end), each by itself.
  void (*forward)(const GaugeProblem&, int64_t begin, int64_t end, void* fixed, void* scales, void* workspace);
  void (*backward)(const GaugeProblem&, int64_t begin, int64_t end, const void* gy, int64_t gy_stride,
                   const void* scales, void* gtheta, void* workspace);
};

namespace generic {
extern const GaugeKernels gauge_kernels;
}
namespace avx2 {
extern const GaugeKernels gauge_kernels;
}
namespace avx512 {
extern const GaugeKernels gauge_kernels;
}

}  // namespace hyperfast
