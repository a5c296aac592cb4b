// Nearest neighbours on the CPU: approximate distances of blocks of rows through one micro-kernel, with the bound of
// their error; distances of single pairs; the gradient of chosen pairs.
//
// FLOPs of a screen: 2 for each feature of each pair (gram), 3 in two instructions (square, absolute). A slab of kSlab
// features of both blocks is packed once, [panel][feature][lanes], and serves as both operands from L2; the sums stay
// in L2 and L3. Bytes of main memory: each block's rows once. Differences of a few rows are taken where they lie.
#include "nn_entropy_pack.h"

namespace hyperfast {
namespace HF_ISA {

// ---- products -----------------------------------------------------------------------------------

HF_INLINE float absolute(float v) { return __builtin_fabsf(v); }
HF_INLINE double absolute(double v) { return __builtin_fabs(v); }
HF_INLINE Vec<float> absolute(Vec<float> v) { return (Vec<float>)((VecOf<float>::integer)v & 0x7FFFFFFF); }
HF_INLINE Vec<double> absolute(Vec<double> v) { return (Vec<double>)((VecOf<double>::integer)v & 0x7FFFFFFFFFFFFFFF); }

template <Measure M, class T, int MR, int NP>
HF_INLINE void differ(Tile<T, MR, NP>& c, const T* const (&a_start)[MR], const T* b, int64_t b_stride, int64_t n) {
  const T* a[MR];
  HF_UNROLL for (int i = 0; i < MR; ++i) a[i] = a_start[i];
  for (int64_t k = 0; k < n; ++k) {
    Vec<T> row[NP * kRegs];
    HF_UNROLL for (int p = 0; p < NP; ++p) HF_UNROLL for (int j = 0; j < kRegs; ++j) row[p * kRegs + j] =
        load(b + p * b_stride + j * kLanes<T>);
    HF_UNROLL for (int i = 0; i < MR; ++i) {
      const T x = a[i][k * kPanel<T>];
      HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) {
        const Vec<T> d = x - row[j];
        if constexpr (M == Measure::square)
          c.v[i][j] += d * d;
        else
          c.v[i][j] += absolute(d);
      }
    }
    b += kPanel<T>;
  }
}

template <Measure M, class T>
struct Work {
  const T* left;   // packed
  const T* right;  // packed
  T* sums;
  int64_t n, rows;
  bool triangle;

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t row, int64_t panel) const {
    constexpr int64_t lanes = kPanel<T>;
    if (triangle && (panel + NP) * lanes <= row + 1) return;
    const T* a[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) a[i] = left + (row + i) / lanes * lanes * n + (row + i) % lanes;
    Tile<T, MR, NP> tile = {};
    if constexpr (M == Measure::gram)
      multiply<int(lanes)>(tile, a, right + panel * lanes * n, lanes * n, n, n, 0);
    else
      differ<M>(tile, a, right + panel * lanes * n, lanes * n, n);
    HF_UNROLL for (int p = 0; p < NP; ++p) HF_UNROLL for (int i = 0; i < MR; ++i) {
      T* to = sums + ((panel + p) * rows + row + i) * lanes;
      HF_UNROLL for (int j = 0; j < kRegs; ++j)
          store(to + j * kLanes<T>, load(to + j * kLanes<T>) + tile.v[i][p * kRegs + j]);
    }
  }
  __attribute__((always_inline)) inline void finish(int64_t, int) const {}
};

template <Measure M, class T>
static void multiply_slab(const Screen& s, const Partial<T>& part, int64_t n) {
  const T* right = part.packed + Partial<T>::packed_left(s) * n;
  const Work<M, T> work{s.triangle ? right : part.packed, right, part.sums, n, s.left, s.triangle};
  for_tiles(work, Partial<T>::padded(s.right) / kPanel<T>, s.left);
}

// Four rows against four over [begin, begin + n): sums over features, which lie in the lanes.
constexpr int kDirect = 4;

template <Measure M, class T>
static void differ_directly(T (&sums)[kDirect][kDirect], const T* const (&x)[kDirect], const T* const (&y)[kDirect],
                            int64_t n) {
  const auto measured = [](auto d) {
    if constexpr (M == Measure::square)
      return d * d;
    else
      return absolute(d);
  };
  Vec<T> sum[kDirect][kDirect] = {};
  int64_t k = 0;
  for (; k + kLanes<T> <= n; k += kLanes<T>) {
    Vec<T> b[kDirect];
    HF_UNROLL for (int j = 0; j < kDirect; ++j) b[j] = load(y[j] + k);
    HF_UNROLL for (int i = 0; i < kDirect; ++i) {
      const Vec<T> a = load(x[i] + k);
      HF_UNROLL for (int j = 0; j < kDirect; ++j) sum[i][j] += measured(a - b[j]);
    }
  }
  HF_UNROLL for (int i = 0; i < kDirect; ++i) HF_UNROLL for (int j = 0; j < kDirect; ++j) {
    T rest = T(0);
    for (int64_t at = k; at < n; ++at) rest += measured(x[i][at] - y[j][at]);
    sums[i][j] = sum_of_lanes<T>(sum[i][j]) + rest;
  }
}

template <Measure M, class T>
static void accumulate_directly(const Screen& s, const Partial<T>& part, int64_t begin, int64_t n) {
  constexpr int64_t lanes = kPanel<T>;
  // Past the last row, the last row again.
  const auto rows = [&](const T*(&at)[kDirect], const int64_t* from, int64_t first, int64_t count) {
    for (int i = 0; i < kDirect; ++i)
      at[i] = static_cast<const T*>(features_at(s.theta, from[min64(first + i, count - 1)], begin));
  };
  // The next slab comes from main memory while this one is computed, a row with each tile.
  const int64_t ahead = begin + n, ahead_bytes = min64(n, s.theta.features - ahead) * int64_t(sizeof(T));
  int64_t next_row = 0;
  const auto prefetch = [&] {
    if (next_row >= s.right) return;
    const char* at = static_cast<const char*>(features_at(s.theta, s.right_rows[next_row++], ahead));
    for (int64_t byte = 0; byte < ahead_bytes; byte += 64) __builtin_prefetch(at + byte, 0, 2);
  };
  for (int64_t i = 0; i < s.left; i += kDirect) {
    const T* x[kDirect];
    rows(x, s.left_rows, i, s.left);
    for (int64_t j = s.triangle ? i : 0; j < s.right; j += kDirect) {
      prefetch();
      const T* y[kDirect];
      rows(y, s.right_rows, j, s.right);
      T sums[kDirect][kDirect];
      differ_directly<M>(sums, x, y, n);
      for (int64_t a = i; a < min64(i + kDirect, s.left); ++a)
        for (int64_t b = j; b < min64(j + kDirect, s.right); ++b)
          part.sums[(b / lanes * s.left + a) * lanes + b % lanes] += sums[a - i][b - j];
    }
  }
}

template <class T>
static void accumulate(const Screen& s, int64_t slab, void* workspace) {
  const Partial<T> part(s, workspace);
  if (is_direct<T>(s)) {
    const int64_t size = slab_size<T>(s), first = slab * size, count = min64(size, s.theta.features - first);
    return s.measure == Measure::square ? accumulate_directly<Measure::square>(s, part, first, count)
                                        : accumulate_directly<Measure::absolute>(s, part, first, count);
  }
  const int64_t begin = slab * kSlab, n = min64(kSlab, s.theta.features - begin);
  if (s.measure == Measure::gram) find_centre(s, begin, n, part.centre, part.rows);
  const int64_t before = Partial<T>::packed_left(s);
  if (!s.triangle) pack(s, part, begin, n, s.left_rows, s.left, part.packed, part.norms);
  pack(s, part, begin, n, s.right_rows, s.right, part.packed + before * n, part.norms + before);
  switch (s.measure) {
    case Measure::gram: return multiply_slab<Measure::gram>(s, part, n);
    case Measure::square: return multiply_slab<Measure::square>(s, part, n);
    case Measure::absolute: return multiply_slab<Measure::absolute>(s, part, n);
  }
}

template <class T>
static void combine(const Screen& s, void* workspace, int64_t parts, int64_t bytes, int64_t begin, int64_t end) {
  const Partial<T> total(s, workspace);
  for (int64_t i = 1; i < parts; ++i) {
    const Partial<T> part(s, static_cast<char*>(workspace) + i * bytes);
    for (int64_t panel = 0; panel < Partial<T>::padded(s.right) / kPanel<T>; ++panel) {
      const int64_t first = (panel * s.left + begin) * kPanel<T>, last = (panel * s.left + end) * kPanel<T>;
      for (int64_t at = first; at < last; ++at) total.sums[at] += part.sums[at];
    }
  }
}

template <class T>
static bool finite_row(const Rows& theta, int64_t row) {
  const T* x = static_cast<const T*>(features_at(theta, row, 0));
  T zero = T(0);
  for (int64_t k = 0; k < theta.features; ++k) zero += x[k] - x[k];
  return zero == T(0);
}

static bool is_finite(const Rows& theta, int64_t row) {
  return theta.type == DType::f64 ? finite_row<double>(theta, row) : finite_row<float>(theta, row);
}

// The largest squared norm whose products cannot overflow.
template <class T>
constexpr double kLargest = sizeof(T) == 8 ? 0x1p1000 : 0x1p120;

template <class T>
static bool combine_norms(const Screen& s, void* workspace, int64_t parts, int64_t bytes) {
  if (s.measure != Measure::gram) return true;
  const Partial<T> total(s, workspace);
  const int64_t before = Partial<T>::packed_left(s);
  for (int64_t r = 0; r < before + s.right; ++r) {
    if (r >= (s.triangle ? 0 : s.left) && r < before) continue;
    for (int64_t i = 1; i < parts; ++i)
      total.norms[r] += Partial<T>(s, static_cast<char*>(workspace) + i * bytes).norms[r];
    const int64_t row = r < before ? s.left_rows[r] : s.right_rows[r - before];
    if (!(total.norms[r] < kLargest<T>) && is_finite(s.theta, row)) return false;
  }
  return true;
}

// ---- candidates ---------------------------------------------------------------------------------

// What rounding can have done to an approximate distance: at most `relative` times its scale, which is the distance
// itself or, through the Gram matrix, the sum of both squared norms; and `absolute`, where values underflow.
//
// A chain of n additions has the relative error n u in the sum of its terms' magnitudes (u: unit roundoff); there are
// at most kSlab in a slab, one for each slab and each partial sum. For x.y that sum is at most |x||y| <= (|x|^2 +
// |y|^2) / 2, and the product counts twice. Then: 2 for the difference and its square; through the Gram matrix 5 for
// the centring of both rows, and the chain of a norm. A tenth more covers the terms of second order.
struct Rounding {
  double relative;
  double absolute;
};
template <class T>
static Rounding rounding_of(const Screen& s, int64_t parts) {
  constexpr double unit = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24, smallest = sizeof(T) == 8 ? 0x1p-1022 : 0x1p-126;
  const bool gram = s.measure == Measure::gram;
  const double norm = double(kSlab / kLanes<T> + 2 * kLanes<T>);
  const double chain = double(kSlab + slabs<T>(s) + parts) + (gram ? 5 + norm : 4);
  return {1.1 * unit * chain, 8 * double(s.theta.features) * smallest};
}

HF_INLINE void offer(Candidates& c, int64_t row, double distance, double error) {
  const double lower = distance - error;
  if (!(lower <= c.upper)) return;  // also where it is NaN
  if (distance + error < c.upper) c.upper = distance + error;
  if (distance < c.best || (distance == c.best && row < c.best_row)) {
    c.best = distance;
    c.best_row = row;
  }
  if (c.count == Candidates::kMost) {
    c.count = 0;
    for (int64_t i = 0; i < Candidates::kMost; ++i) {
      if (c.lower[i] > c.upper) continue;
      c.lower[c.count] = c.lower[i];
      c.row[c.count++] = c.row[i];
    }
  }
  if (c.count < Candidates::kMost) {
    c.lower[c.count] = lower;
    c.row[c.count++] = row;
  } else if (lower < c.dropped) {
    c.dropped = lower;
  }
}

// Distance and error of one pair from its sum.
struct Judge {
  Rounding rounding;
  bool gram;

  double distance(double sum, double norms) const { return gram ? norms - 2.0 * sum : sum; }
  double bound(double sum, double norms) const { return rounding.relative * (gram ? norms : sum) + rounding.absolute; }
};

template <class T>
static void offer_left(const Screen& s, const void* workspace, int64_t parts, Candidates* candidates, int64_t begin,
                       int64_t end) {
  constexpr int64_t lanes = kPanel<T>;
  const Partial<T> part(s, workspace);
  const Judge judge{rounding_of<T>(s, parts), s.measure == Measure::gram};
  for (int64_t i = begin; i < end; ++i) {
    Candidates& mine = candidates[s.left_rows[i]];
    for (int64_t j = s.triangle ? i + 1 : 0; j < s.right; ++j) {
      const double sum = double(part.sums[(j / lanes * s.left + i) * lanes + j % lanes]);
      const double norms = judge.gram ? part.left_norms(s)[i] + part.right_norms(s)[j] : 0.0;
      offer(mine, s.right_rows[j], judge.distance(sum, norms), judge.bound(sum, norms));
    }
  }
}

template <class T>
static void offer_right(const Screen& s, const void* workspace, int64_t parts, Candidates* candidates, int64_t begin,
                        int64_t end) {
  constexpr int64_t lanes = kPanel<T>;
  const Partial<T> part(s, workspace);
  const Judge judge{rounding_of<T>(s, parts), s.measure == Measure::gram};
  for (int64_t j = begin; j < end; ++j) {
    Candidates& mine = candidates[s.right_rows[j]];
    const T* sums = part.sums + j / lanes * s.left * lanes + j % lanes;
    for (int64_t i = 0; i < (s.triangle ? min64(j, s.left) : s.left); ++i) {
      const double sum = double(sums[i * lanes]);
      const double norms = judge.gram ? part.left_norms(s)[i] + part.right_norms(s)[j] : 0.0;
      offer(mine, s.left_rows[i], judge.distance(sum, norms), judge.bound(sum, norms));
    }
  }
}

// ---- pairs --------------------------------------------------------------------------------------

typedef float HalfFloat __attribute__((vector_size(HF_VECTOR_BYTES / 2)));
typedef float HalfFloatAt __attribute__((vector_size(HF_VECTOR_BYTES / 2), aligned(4), may_alias));

HF_INLINE Vec<double> load_double(const float* p) {
  return __builtin_convertvector(HalfFloat(*reinterpret_cast<const HalfFloatAt*>(p)), Vec<double>);
}
HF_INLINE Vec<double> load_double(const double* p) { return load(p); }

template <int P, class V>
HF_INLINE V measured(V difference) {
  if constexpr (P == 2)
    return difference * difference;
  else
    return absolute(difference);
}

template <int P, class T>
static double distance(const Rows& theta, int64_t row, int64_t other) {
  constexpr int64_t lanes = kLanes<double>, step = 4 * lanes;
  const T* x = static_cast<const T*>(features_at(theta, row, 0));
  const T* y = static_cast<const T*>(features_at(theta, other, 0));
  Vec<double> sum[4] = {};
  int64_t k = 0;
  for (; k + step <= theta.features; k += step)
    HF_UNROLL for (int i = 0; i < 4; ++i) sum[i] +=
        measured<P>(load_double(x + k + i * lanes) - load_double(y + k + i * lanes));
  double rest = 0.0;
  for (; k < theta.features; ++k) {
    const double d = double(x[k]) - double(y[k]);
    rest += P == 2 ? d * d : __builtin_fabs(d);
  }
  return sum_of_lanes<double>((sum[0] + sum[1]) + (sum[2] + sum[3])) + rest;
}

template <class T>
static double distance(const Rows& theta, int64_t row, int64_t other, int64_t p) {
  return p == 2 ? distance<2, T>(theta, row, other) : distance<1, T>(theta, row, other);
}

// Features at once: the sum stays in L1.
constexpr int64_t kPiece = 1024;

template <class T>
static void gradient(const Rows& theta, int64_t row, const int64_t* others, const double* weights, int64_t count,
                     int64_t p, int64_t begin, int64_t end, T* to) {
  for (int64_t first = begin; first < end; first += kPiece) {
    const int64_t n = min64(kPiece, end - first);
    const T* x = static_cast<const T*>(features_at(theta, row, first));
    T sum[kPiece];
    for (int64_t k = 0; k < n; ++k) sum[k] = T(0);
    for (int64_t i = 0; i < count; ++i) {
      const T* y = static_cast<const T*>(features_at(theta, others[i], first));
      const T weight = T(weights[i]);
      if (p == 2)
        for (int64_t k = 0; k < n; ++k) sum[k] += weight * (x[k] - y[k]);
      else
        for (int64_t k = 0; k < n; ++k) {
          const T d = x[k] - y[k];
          sum[k] += weight * (d > T(0) ? T(1) : d < T(0) ? T(-1) : T(0));  // 0 for NaN: torch.sgn's
        }
    }
    for (int64_t k = 0; k < n; ++k) to[first + k] = sum[k];
  }
}

// ---- the table ----------------------------------------------------------------------------------

#define HF_BY_TYPE(type, call, ...) ((type) == DType::f64 ? call<double>(__VA_ARGS__) : call<float>(__VA_ARGS__))

extern const NeighborKernels neighbor_kernels = {
    [](const Screen& s) { return HF_BY_TYPE(s.compute, slabs, s); },
    [](const Screen& s) { return HF_BY_TYPE(s.compute, workspace, s); },
    [](const Screen& s, void* space) { HF_BY_TYPE(s.compute, clear, s, space); },
    [](const Screen& s, int64_t slab, void* space) { HF_BY_TYPE(s.compute, accumulate, s, slab, space); },
    [](const Screen& s, void* space, int64_t parts, int64_t bytes, int64_t begin, int64_t end) {
      HF_BY_TYPE(s.compute, combine, s, space, parts, bytes, begin, end);
    },
    [](const Screen& s, void* space, int64_t parts, int64_t bytes) {
      return HF_BY_TYPE(s.compute, combine_norms, s, space, parts, bytes);
    },
    [](const Screen& s, const void* space, int64_t parts, Candidates* c, int64_t begin, int64_t end) {
      HF_BY_TYPE(s.compute, offer_left, s, space, parts, c, begin, end);
    },
    [](const Screen& s, const void* space, int64_t parts, Candidates* c, int64_t begin, int64_t end) {
      HF_BY_TYPE(s.compute, offer_right, s, space, parts, c, begin, end);
    },
    [](const Rows& theta, int64_t row, int64_t other, int64_t p) {
      return HF_BY_TYPE(theta.type, distance, theta, row, other, p);
    },
    is_finite,
    [](const Rows& theta, int64_t row, const int64_t* others, const double* weights, int64_t count, int64_t p,
       int64_t begin, int64_t end, void* to) {
      theta.type == DType::f64 ? gradient(theta, row, others, weights, count, p, begin, end, static_cast<double*>(to))
                               : gradient(theta, row, others, weights, count, p, begin, end, static_cast<float*>(to));
    },
};

}  // namespace HF_ISA
}  // namespace hyperfast
