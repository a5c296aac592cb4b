// Sums over the members of an ensemble. Sixteen inputs lie in the lanes and the classes one after the other,
// so that maximum, sum and argmax of a softmax need no operation across lanes.
//
// Bytes: logits once. Per logit one exponential, a few comparisons and one addition in float64.
#include "../ensemble.h"

#include "common/functions.h"

namespace hyperfast {
namespace HF_ISA {

constexpr int64_t kGroup = 16;  // inputs at once
constexpr int kVectors = kGroup / kLanes<float>;

static int64_t workspace(const EnsembleProblem& p) {
  return p.classes * kGroup * int64_t(2 * sizeof(float) + sizeof(double));
}

// logits of one member and `n` inputs -> columns [class][kGroup]; absent inputs repeat the first.
static void gather(float* columns, const float* logits, int64_t row_stride, int64_t n, int64_t classes) {
  for (int64_t i = 0; i < kGroup; ++i) {
    const float* from = logits + (i < n ? i : 0) * row_stride;
    for (int64_t c = 0; c < classes; ++c) columns[c * kGroup + i] = from[c];
  }
}

// One vector of inputs of one member: softmax into `prob`, the entropy, and the first largest class.
struct Verdict {
  F entropy;
  I choice;
};
HF_INLINE Verdict softmax(const float* columns, float* prob, int64_t classes) {
  F largest = load(columns);
  I choice = {};
  for (int64_t c = 1; c < classes; ++c) {
    const F logit = load(columns + c * kGroup);
    const I better = (logit > largest) | ((logit != logit) & (largest == largest));  // a NaN wins, as in torch
    largest = better ? logit : largest;
    choice = better ? int32_t(c) - I{} : choice;
  }
  F total = {}, weighted = {};
  for (int64_t c = 0; c < classes; ++c) {
    const F shifted = load(columns + c * kGroup) - largest;
    const F e = vexp(shifted);
    store(prob + c * kGroup, e);
    total += e;
    weighted += shifted < -87.0f ? F{} : e * shifted;  // p log p -> 0; avoids 0 * -inf
  }
  const F scale = 1.0f / total;
  for (int64_t c = 0; c < classes; ++c) store(prob + c * kGroup, load(prob + c * kGroup) * scale);
  return {vlog(total) - weighted * scale, choice};
}

static void sums(const EnsembleProblem& p, int64_t begin, int64_t end, void* scratch) {
  double* total = static_cast<double*>(scratch);  // [class][kGroup]
  float* columns = reinterpret_cast<float*>(total + p.classes * kGroup);
  float* prob = columns + p.classes * kGroup;
  for (int64_t first = begin; first < end; first += kGroup) {
    const int64_t n = min64(kGroup, end - first);
    double entropy[kGroup] = {};
    for (int64_t i = 0; i < p.classes * kGroup; ++i) total[i] = 0.0;
    for (int64_t m = 0; m < p.members; ++m) {
      gather(columns, p.logits + m * p.member_stride + first * p.row_stride, p.row_stride, n, p.classes);
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = v * kLanes<float>;
        const Verdict verdict = softmax(columns + at, prob + at, p.classes);
        for (int64_t i = 0; i < kLanes<float>; ++i) entropy[at + i] += double(verdict.entropy[i]);
        if (!p.votes && !p.choice) continue;
        for (int64_t i = 0; i < kLanes<float> && at + i < n; ++i) {
          const int64_t row = first + at + i;
          if (p.votes) ++p.votes[row * p.classes + verdict.choice[i]];
          if (p.choice) p.choice[m * p.rows + row] = verdict.choice[i];
        }
      }
      for (int64_t i = 0; i < p.classes * kGroup; ++i) total[i] += double(prob[i]);
    }
    for (int64_t i = 0; i < n; ++i) {
      if (p.prob)
        for (int64_t c = 0; c < p.classes; ++c) p.prob[(first + i) * p.classes + c] = total[c * kGroup + i];
      if (p.entropy) p.entropy[first + i] = entropy[i];
    }
  }
}

extern const EnsembleKernels ensemble_kernels = {workspace, sums};

}  // namespace HF_ISA
}  // namespace hyperfast
