// Philox4x32-10, the counter-based random numbers of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (2011). The words are those of tl.philox and of hyperfast/reference/target_net_dropout.py.
#pragma once

#include "vec.h"

namespace hyperfast {
namespace HF_ISA {

// Counters at once: the loops over them are the compiler's vectors.
constexpr int kPhiloxCounters = 16;
constexpr int kPhiloxWords = 4 * kPhiloxCounters;

// words[4 * i + w]: word w of counter (first + i, c1, c2, c3), by the key `seed`.
static void philox(uint32_t* words, uint64_t seed, uint32_t first, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t a[kPhiloxCounters], b[kPhiloxCounters], c[kPhiloxCounters], d[kPhiloxCounters];
  for (int i = 0; i < kPhiloxCounters; ++i) {
    a[i] = first + uint32_t(i);
    b[i] = c1;
    c[i] = c2;
    d[i] = c3;
  }
  uint32_t low = uint32_t(seed), high = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kPhiloxCounters; ++i) {
      const uint64_t p0 = uint64_t(0xD2511F53u) * a[i], p1 = uint64_t(0xCD9E8D57u) * c[i];
      a[i] = uint32_t(p1 >> 32) ^ b[i] ^ low;
      b[i] = uint32_t(p1);
      c[i] = uint32_t(p0 >> 32) ^ d[i] ^ high;
      d[i] = uint32_t(p0);
    }
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  for (int i = 0; i < kPhiloxCounters; ++i) {
    words[4 * i] = a[i];
    words[4 * i + 1] = b[i];
    words[4 * i + 2] = c[i];
    words[4 * i + 3] = d[i];
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
