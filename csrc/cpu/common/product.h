// The one micro-kernel behind every product: a few scalars of A times one or two panels of B.
//
//     C[i][lane] += sum over k of A_i[k] * B[k][lane]        i < MR, lane < NP panels
//
// forward   A_i = row i of the inputs,          B = packed weights  [k][out lanes]
// dX        A_i = row i of the output gradient, B = packed weights  [out][k lanes]
// dW        A_i = output feature i of it,       B = inputs          [row][k lanes]
#pragma once

#include "panels.h"

namespace hyperfast {
namespace HF_ISA {

// Accumulators fill the register file: 6 x 32 floats with 32 registers, 6 x 16 with 16 of AVX2,
// 2 x 16 with 16 of SSE.
constexpr int kRows = HF_VECTOR_BYTES >= 32 ? 6 : 2;
constexpr int kPanelsAtOnce = HF_VECTOR_BYTES == 64 ? 2 : 1;

template <class T, int MR, int NP>
struct Tile {
  Vec<T> v[MR][NP * kRegs];
};

// `length` steps of k; A advances by STEP within a chunk of `chunk` steps and by `jump` from one chunk
// to the next; B advances by one panel row a step, its panels lie `b_stride` apart.
template <int STEP, class T, int MR, int NP>
HF_INLINE void multiply(Tile<T, MR, NP>& c, const T* const (&a_start)[MR], const T* b, int64_t b_stride, int64_t length,
                        int64_t chunk, int64_t jump) {
  const T* a[MR];
  HF_UNROLL for (int i = 0; i < MR; ++i) a[i] = a_start[i];
  for (int64_t done = 0; done < length; done += chunk) {
    const int64_t n = min64(chunk, length - done);
    for (int64_t k = 0; k < n; ++k) {
      Vec<T> row[NP * kRegs];
      HF_UNROLL for (int p = 0; p < NP; ++p) HF_UNROLL for (int j = 0; j < kRegs; ++j) row[p * kRegs + j] =
          load(b + p * b_stride + j * kLanes<T>);
      HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) c.v[i][j] +=
          a[i][k * STEP] * row[j];
      b += kPanel<T>;
    }
    HF_UNROLL for (int i = 0; i < MR; ++i) a[i] += jump;
  }
}

// As multiply, but no sum is longer than kSummed: one of 784 products has three times the error of these. kSummed is
// a multiple of `chunk`, or `chunk` is all of `length`.
constexpr int64_t kSummed = 128;

template <int STEP = 1, class T, int MR, int NP>
HF_INLINE void multiply_long(Tile<T, MR, NP>& c, const T* const (&a)[MR], const T* b, int64_t b_stride, int64_t length,
                             int64_t chunk, int64_t jump) {
  multiply<STEP>(c, a, b, b_stride, min64(kSummed, length), chunk, jump);
  for (int64_t k = kSummed; k < length; k += kSummed) {
    Tile<T, MR, NP> more = {};
    const T* from[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) from[i] = a[i] + k / chunk * jump + k % chunk * STEP;
    multiply<STEP>(more, from, b + k * kPanel<T>, b_stride, min64(kSummed, length - k), chunk, jump);
    HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) c.v[i][j] += more.v[i][j];
  }
}

// The last rows, fewer than a full tile: the tile of exactly that height.
template <int NP, int MR, class Work>
HF_INLINE void last_rows(const Work& work, int64_t row, int64_t panel, int64_t left) {
  if constexpr (MR > 0) {
    if (left == MR) return work.template run<MR, NP>(row, panel);
    last_rows<NP, MR - 1>(work, row, panel, left);
  }
}

// Calls work.run<MR, NP>(row, panel) over all rows of NP panels.
template <int NP, class Work>
HF_INLINE void for_rows(const Work& work, int64_t panel, int64_t rows) {
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) work.template run<kRows, NP>(row, panel);
  last_rows<NP, kRows - 1>(work, row, panel, rows - row);
}

template <class Work>
HF_INLINE void for_tiles(const Work& work, int64_t panels, int64_t rows) {
  int64_t p = 0;
  for (; p + kPanelsAtOnce <= panels; p += kPanelsAtOnce) {
    for_rows<kPanelsAtOnce>(work, p, rows);
    work.finish(p, kPanelsAtOnce);
  }
  for (; p < panels; ++p) {
    for_rows<1>(work, p, rows);
    work.finish(p, 1);
  }
}

// W [out, in] rows -> [out panel][in][lanes], zero in the lanes past `out`.
template <class T>
static void pack_transposed(T* packed, const T* w, int64_t out, int64_t in) {
  constexpr int64_t lanes = kPanel<T>;
  typedef T Quad __attribute__((vector_size(4 * sizeof(T))));
  typedef T QuadAt __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T)), may_alias));
  for (int64_t o = 0; o < out; o += lanes) {
    T* to = packed + o * in;
    const T* from = w + o * in;
    if (out - o < lanes) {
      __builtin_memset(to, 0, in * lanes * sizeof(T));
      for (int64_t lane = 0; lane < out - o; ++lane)
        for (int64_t k = 0; k < in; ++k) to[k * lanes + lane] = from[lane * in + k];
      continue;
    }
    int64_t k = 0;
    for (; k + 4 <= in; k += 4) {
      for (int64_t lane = 0; lane < lanes; lane += 4) {
        const T* at = from + lane * in + k;
        const Quad a = *reinterpret_cast<const QuadAt*>(at);
        const Quad b = *reinterpret_cast<const QuadAt*>(at + in);
        const Quad c = *reinterpret_cast<const QuadAt*>(at + 2 * in);
        const Quad d = *reinterpret_cast<const QuadAt*>(at + 3 * in);
        const Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
        const Quad ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
        const Quad cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        T* at_k = to + k * lanes + lane;
        *reinterpret_cast<QuadAt*>(at_k) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
        *reinterpret_cast<QuadAt*>(at_k + lanes) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
        *reinterpret_cast<QuadAt*>(at_k + 2 * lanes) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
        *reinterpret_cast<QuadAt*>(at_k + 3 * lanes) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
      }
    }
    for (; k < in; ++k)
      for (int64_t lane = 0; lane < lanes; ++lane) to[k * lanes + lane] = from[lane * in + k];
  }
}

// W [out, in] rows -> [in panel][out][lanes], zero in the lanes past `in`.
template <class T>
static void pack_rows(T* packed, const T* w, int64_t out, int64_t in) {
  constexpr int64_t lanes = kPanel<T>;
  for (int64_t f = 0; f < in; f += lanes) {
    const int64_t n = min64(lanes, in - f);
    T* to = packed + f * out;
    for (int64_t o = 0; o < out; ++o, to += lanes) {
      const T* from = w + o * in + f;
      if (n == lanes) {
        HF_UNROLL for (int j = 0; j < kRegs; ++j) store(to + j * kLanes<T>, load(from + j * kLanes<T>));
      } else {
        for (int64_t i = 0; i < lanes; ++i) to[i] = i < n ? from[i] : T(0);
      }
    }
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
