// The contract of the native ensemble reduction: sums over members of what their logits say.
//
// logits [M, N, C], any strides but 1 in the last dimension, float32. For every input n
//     prob[n, c]  = sum over m of softmax(logits[m, n])[c]                       float64
//     entropy[n]  = sum over m of the entropy of softmax(logits[m, n]), nats     float64
//     votes[n, c] = how many m have their largest logit at c (ties: smallest)    int64
//     choice[m, n] = that c                                                      int64
// Outputs are contiguous and owned by the caller; a null pointer is not wanted.
#pragma once

#include <stdint.h>

namespace hyperfast {

struct EnsembleProblem {
  int64_t members;
  int64_t rows;
  int64_t classes;
  const float* logits;
  int64_t member_stride;
  int64_t row_stride;
  double* prob;
  double* entropy;
  int64_t* votes;
  int64_t* choice;
};

struct EnsembleKernels {
  int64_t (*workspace)(const EnsembleProblem&);
  // All members for rows [begin, end), in the order of the members.
  void (*sums)(const EnsembleProblem&, int64_t begin, int64_t end, void* workspace);
};

namespace generic {
extern const EnsembleKernels ensemble_kernels;
}
namespace avx2 {
extern const EnsembleKernels ensemble_kernels;
}
namespace avx512 {
extern const EnsembleKernels ensemble_kernels;
}

}  // namespace hyperfast
