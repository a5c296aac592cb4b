// Dropout: a row in pieces of 64 features, whose random words are made, used and forgotten in L1.
//
// Bytes: x once, y once. Per feature ten rounds of Philox for every fourth, a comparison and a product.
#include "../target_net_dropout.h"

#include "common/convert.h"
#include "common/philox.h"

namespace hyperfast {
namespace HF_ISA {

template <class T>
static void rows(const DropoutProblem& p, int64_t begin, int64_t end) {
  const T scale = T(p.scale);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row % p.rows, b = row / p.rows % p.networks, s = row / p.rows / p.networks;
    const int64_t from = s * p.sample_stride + b * p.network_stride + n * p.row_stride;
    const uint64_t seed = uint64_t(p.seed[s * p.seed_stride]);
    for (int64_t h = 0; h < p.features; h += kPhiloxWords) {
      const int64_t count = min64(kPhiloxWords, p.features - h);
      uint32_t words[kPhiloxWords];
      T values[kPhiloxWords];
      philox(words, seed, uint32_t(h / 4), uint32_t(n), uint32_t(b), p.layer);
      load_row(values, element(p.x, p.type, from + h), p.type, count);
      for (int64_t i = 0; i < count; ++i) values[i] = words[i] > p.last ? values[i] * scale : T(0);
      store_row(element(p.y, p.type, row * p.features + h), p.type, values, count);
    }
  }
}

static void dropout(const DropoutProblem& p, int64_t begin, int64_t end) {
  p.type == DType::f64 ? rows<double>(p, begin, end) : rows<float>(p, begin, end);
}

extern const DropoutKernels dropout_kernels = {dropout};

}  // namespace HF_ISA
}  // namespace hyperfast
