// The kernel density estimate, point after point: lanes are centres, whose coordinates lie apart in x and y and stay in
// L1 (n = 400: 3 KB), and a few points at once share their loads.
//
// Forward goes over the centres twice, for the nearest one's distance and for the sum, so that no exponential is taken
// twice for a maximum that moved. Backward goes over them once, with both saved. Per pair of point and
// centre about 21 operations forward and 22 to 27 backward, the exponential among them; no memory beyond L1.
#include "../kde.h"

#include "common/arena.h"
#include "common/convert.h"
#include "common/functions.h"

namespace hyperfast {
namespace HF_ISA {

// Summands that one accumulator takes before it is added to the total: longer chains lose digits.
constexpr int64_t kCentresSummed = 2048;
constexpr int64_t kPointsSummed = 512;
constexpr double kLog2 = 0.693147180559945309417, kPi = 3.14159265358979323846;

template <class T>
constexpr T kInfinity = T(__builtin_inf());
// Exponents of 2 below which a share of a point is taken as 0. Even 2^30 of them are nothing beside the nearest
// centre's 1, and times a weight they would become denormal, which costs a hundred times as much as the rest of a pair.
template <class T>
constexpr T kSmallest = sizeof(T) == 8 ? T(-900) : T(-80);

template <class T>
struct Centres {
  T *x, *y;      // [padded n], 0 behind the last
  int64_t full;  // lanes of whole registers
  bool tail;     // one more register, partly filled
  Vec<T> pad;    // added to its squared distances: infinity behind the last centre
};

// Of some points: their places among all L, and what is known of them.
template <class T>
struct Points {
  int64_t count;
  int32_t* place;  // from `begin` on
  T *x, *y, *w, *nearest, *sum;
};

template <class T>
struct Scale {
  T k;           // log2(e) / (2 sigma^2)
  T inverse;     // 1 / sigma^2
  T normalizer;  // log(2 pi n sigma^2)
};

template <class T>
static Scale<T> scale_of(const KdeProblem& p, int64_t sample) {
  const double sigma = static_cast<const T*>(p.sigma)[sample * p.sigma_stride];
  const double inverse = 1 / (sigma * sigma);
  return {T(0.5 / kLog2 * inverse), T(inverse),
          T(__builtin_log(2 * kPi * double(p.centres)) + 2 * __builtin_log(sigma))};
}

template <class T>
static Centres<T> pack(const KdeProblem& p, int64_t sample, Arena& arena) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t padded = round_up(p.centres, lanes), full = p.centres / lanes * lanes;
  Centres<T> c = {arena.take<T>(padded), arena.take<T>(padded), full, full < p.centres, Vec<T>{}};
  const T* mu = static_cast<const T*>(p.mu) + sample * p.mu_stride;
  for (int64_t i = 0; i < padded; ++i) {
    c.x[i] = i < p.centres ? mu[2 * i] : T(0);
    c.y[i] = i < p.centres ? mu[2 * i + 1] : T(0);
  }
  for (int64_t i = 0; i < lanes; ++i) c.pad[i] = full + i < p.centres ? T(0) : kInfinity<T>;
  return c;
}

// Those of the points [begin, end) whose weight is zero, or is not; padded to whole groups by the last of them, with
// weight zero.
constexpr int64_t kMostAtOnce = 4;

template <class T>
static Points<T> select(const KdeProblem& p, int64_t sample, int64_t begin, int64_t end, bool zero, Arena& arena) {
  const int64_t most = round_up(end - begin, kMostAtOnce);
  Points<T> points = {0,
                      arena.take<int32_t>(most),
                      arena.take<T>(most),
                      arena.take<T>(most),
                      arena.take<T>(most),
                      arena.take<T>(most),
                      arena.take<T>(most)};
  const T* x = static_cast<const T*>(p.x) + sample * p.x_stride;
  const T* w = static_cast<const T*>(p.weight) + sample * p.weight_stride;
  for (int64_t l = begin; l < end; ++l) {
    if ((w[l] == T(0)) != zero) continue;
    points.place[points.count] = int32_t(l - begin);
    points.x[points.count] = x[2 * l];
    points.y[points.count] = x[2 * l + 1];
    points.w[points.count++] = w[l];
  }
  if (points.count == 0) return points;
  const int64_t last = points.count - 1;
  for (int64_t i = points.count; i < round_up(points.count, kMostAtOnce); ++i) {
    points.x[i] = points.x[last];
    points.y[i] = points.y[last];
    points.w[i] = T(0);
  }
  return points;
}

// A register of centres and N points: differences and squared distances.
template <class T, int N>
struct Pairs {
  Vec<T> dx[N], dy[N], square[N];
};

template <class T, int N>
HF_INLINE Pairs<T, N> pairs(const Centres<T>& c, int64_t i, const T* x, const T* y, bool tail) {
  Pairs<T, N> q;
  const Vec<T> cx = load(c.x + i), cy = load(c.y + i);
  HF_UNROLL for (int j = 0; j < N; ++j) {
    q.dx[j] = x[j] - cx;
    q.dy[j] = y[j] - cy;
    q.square[j] = q.dx[j] * q.dx[j] + q.dy[j] * q.dy[j];
    if (tail) q.square[j] += c.pad;
  }
  return q;
}

// exp((nearest - square) / (2 sigma^2)), 0 below 2^kSmallest. The difference first: far away, rounding k
// times each would be more than the exponential can hold.
template <class T>
HF_INLINE Vec<T> relative(Vec<T> square, T nearest, T k) {
  const Vec<T> exponent = k * (nearest - square);
  return exponent < kSmallest<T> ? splat(T(0)) : exp2_normal(exponent);
}

template <class T, int N>
static void nearest_and_sums(const Centres<T>& c, T k, const T* x, const T* y, T* nearest, T* sum) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> least[N];
  HF_UNROLL for (int j = 0; j < N; ++j) least[j] = splat(kInfinity<T>);
  const auto nearer = [&](const Pairs<T, N>& q) __attribute__((always_inline)) {
    HF_UNROLL for (int j = 0; j < N; ++j) least[j] = q.square[j] < least[j] ? q.square[j] : least[j];
  };
  for (int64_t i = 0; i < c.full; i += lanes) nearer(pairs<T, N>(c, i, x, y, false));
  if (c.tail) nearer(pairs<T, N>(c, c.full, x, y, true));
  T from[N], total[N] = {};
  HF_UNROLL for (int j = 0; j < N; ++j) {
    nearest[j] = least[j][0];
    for (int64_t lane = 1; lane < lanes; ++lane) nearest[j] = least[j][lane] < nearest[j] ? least[j][lane] : nearest[j];
    from[j] = nearest[j] < kInfinity<T> ? nearest[j] : T(0);
  }
  for (int64_t begin = 0; begin < c.full + c.tail; begin += kCentresSummed) {
    Vec<T> sums[N] = {};
    const auto add = [&](const Pairs<T, N>& q) __attribute__((always_inline)) {
      HF_UNROLL for (int j = 0; j < N; ++j) sums[j] += relative(q.square[j], from[j], k);
    };
    const int64_t end = min64(begin + kCentresSummed, c.full);
    for (int64_t i = begin; i < end; i += lanes) add(pairs<T, N>(c, i, x, y, false));
    if (c.tail && begin + kCentresSummed > c.full) add(pairs<T, N>(c, c.full, x, y, true));
    HF_UNROLL for (int j = 0; j < N; ++j) total[j] += sum_of_lanes<T>(sums[j]);
  }
  // Infinitely far from every centre: log p is -infinity; a NaN among the distances has made the sum one.
  HF_UNROLL for (int j = 0; j < N; ++j) sum[j] = total[j] == T(0) ? T(1) : total[j];
}

template <class T>
static void nearest_and_sums(const Centres<T>& c, T k, const Points<T>& points) {
  for (int64_t l = 0; l < points.count; l += kMostAtOnce)
    nearest_and_sums<T, kMostAtOnce>(c, k, points.x + l, points.y + l, points.nearest + l, points.sum + l);
}

// log p over whole registers; out may be sum.
template <class T>
static void log_density(T* out, const Points<T>& points, const Scale<T>& scale) {
  constexpr int64_t lanes = kLanes<T>;
  const T half = T(0.5) * scale.inverse;
  for (int64_t i = 0; i < points.count; i += lanes) {
    T sum[lanes], nearest[lanes];
    const int64_t n = min64(lanes, points.count - i);
    for (int64_t j = 0; j < lanes; ++j) {
      sum[j] = j < n ? points.sum[i + j] : T(1);
      nearest[j] = j < n ? points.nearest[i + j] : T(0);
    }
    const Vec<T> value = vlog(load(sum)) - half * load(nearest) - scale.normalizer;
    // vlog looks at bits, and takes a NaN for a number.
    for (int64_t j = 0; j < n; ++j) out[i + j] = sum[j] == sum[j] ? value[j] : sum[j];
  }
}

template <class T>
static void forward_points(const KdeProblem& p, int64_t sample, int64_t begin, int64_t end, T* nearest, T* sum,
                           double* ce, void* memory) {
  Arena arena{static_cast<char*>(memory)};
  const Centres<T> c = pack<T>(p, sample, arena);
  const Scale<T> scale = scale_of<T>(p, sample);
  const Points<T> points = select<T>(p, sample, begin, end, false, arena);
  nearest_and_sums(c, scale.k, points);
  for (int64_t l = begin; l < end; ++l) nearest[l] = sum[l] = T(0);
  for (int64_t i = 0; i < points.count; ++i) {
    nearest[begin + points.place[i]] = points.nearest[i];
    sum[begin + points.place[i]] = points.sum[i];
  }
  log_density(points.sum, points, scale);
  double total = 0;
  for (int64_t i = 0; i < points.count; ++i) total -= double(points.w[i]) * double(points.sum[i]);
  *ce = total;
}

// ---- backward -------------------------------------------------------------------------------------

// Sums over the centres of r (x - mu), and of r |x - mu|^2.
template <class T>
struct Moments {
  T *x, *y, *square;  // [points]
};

template <class T>
struct CentreGradients {
  T *x, *y;  // [padded n]: sums over points of c r (x - mu), without 1 / sigma^2
};

// Points [l, l + N): their share of the centres' gradients, and their own moments.
template <bool MU, bool MOMENTS, int N, class T>
static void backward_group(const Centres<T>& c, T k, const Points<T>& points, int64_t l, const CentreGradients<T>& g,
                           const Moments<T>& moments) {
  constexpr int64_t lanes = kLanes<T>;
  Vec<T> mx[N] = {}, my[N] = {}, ms[N] = {};
  const T *x = points.x + l, *y = points.y + l, *nearest = points.nearest + l, *w = points.w + l;
  const auto work = [&](int64_t i, bool tail) __attribute__((always_inline)) {
    const Pairs<T, N> q = pairs<T, N>(c, i, x, y, tail);
    Vec<T> gx = {}, gy = {};
    HF_UNROLL for (int j = 0; j < N; ++j) {
      const Vec<T> e = relative(q.square[j], nearest[j], k);
      if constexpr (MU) {
        const Vec<T> r = e * w[j];
        gx += r * q.dx[j];
        gy += r * q.dy[j];
      }
      if constexpr (MOMENTS) {
        mx[j] += e * q.dx[j];
        my[j] += e * q.dy[j];
        // Not e * square: that is infinite behind the last centre.
        ms[j] += e * q.dx[j] * q.dx[j] + e * q.dy[j] * q.dy[j];
      }
    }
    if constexpr (MU) {
      store(g.x + i, load(g.x + i) + gx);
      store(g.y + i, load(g.y + i) + gy);
    }
  };
  for (int64_t i = 0; i < c.full; i += lanes) work(i, false);
  if (c.tail) work(c.full, true);
  if constexpr (MOMENTS) HF_UNROLL for (int j = 0; j < N; ++j) {
      moments.x[l + j] = sum_of_lanes<T>(mx[j]);
      moments.y[l + j] = sum_of_lanes<T>(my[j]);
      moments.square[l + j] = sum_of_lanes<T>(ms[j]);
    }
}

// All points, kPointsSummed at a time. points.w holds the coefficients w / S.
template <bool MU, bool MOMENTS, class T>
static void backward_groups(const Centres<T>& c, T k, const Points<T>& points, const CentreGradients<T>& total,
                            const CentreGradients<T>& part, int64_t padded, const Moments<T>& moments) {
  constexpr int together = MOMENTS ? 2 : kMostAtOnce;  // the moments of four do not fit into registers
  for (int64_t begin = 0; begin < points.count; begin += kPointsSummed) {
    const CentreGradients<T>& g = begin == 0 ? total : part;
    for (int64_t i = 0; MU && i < padded; ++i) g.x[i] = g.y[i] = T(0);
    const int64_t end = min64(begin + kPointsSummed, points.count);
    for (int64_t l = begin; l < end; l += together) backward_group<MU, MOMENTS, together>(c, k, points, l, g, moments);
    for (int64_t i = 0; MU && begin > 0 && i < padded; ++i) {
      total.x[i] += part.x[i];
      total.y[i] += part.y[i];
    }
  }
}

template <class T>
static void weight_gradients(const KdeProblem& p, int64_t sample, int64_t begin, int64_t end, T g, T* gweight,
                             const Centres<T>& c, const Scale<T>& scale, const Points<T>& points, Arena arena) {
  T* log_p = arena.take<T>(points.count);
  log_density(log_p, points, scale);
  for (int64_t i = 0; i < points.count; ++i) gweight[begin + points.place[i]] = -g * log_p[i];
  const Points<T> skipped = select<T>(p, sample, begin, end, true, arena);
  nearest_and_sums(c, scale.k, skipped);
  log_density(skipped.sum, skipped, scale);
  for (int64_t i = 0; i < skipped.count; ++i) {
    const bool finite = skipped.x[i] - skipped.x[i] == T(0) && skipped.y[i] - skipped.y[i] == T(0);
    gweight[begin + skipped.place[i]] = finite ? -g * skipped.sum[i] : T(0);
  }
}

template <class T>
static void backward_points(const KdeProblem& p, int64_t sample, int64_t begin, int64_t end, const KdeGradients& grads,
                            void* memory) {
  Arena arena{static_cast<char*>(memory)};
  const Centres<T> c = pack<T>(p, sample, arena);
  const Scale<T> scale = scale_of<T>(p, sample);
  const Points<T> points = select<T>(p, sample, begin, end, false, arena);
  const int64_t padded = round_up(p.centres, kLanes<T>), count = round_up(points.count, kMostAtOnce);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t l = begin + points.place[i < points.count ? i : points.count - 1];
    points.nearest[i] = static_cast<const T*>(grads.nearest)[l];
    points.sum[i] = static_cast<const T*>(grads.sum)[l];
  }
  const T g = *static_cast<const T*>(grads.g);
  if (grads.gweight) {
    weight_gradients(p, sample, begin, end, g, static_cast<T*>(grads.gweight), c, scale, points, arena);
  }
  if (!grads.gx && !grads.gmu && !grads.gsigma) return;
  const CentreGradients<T> total = {arena.take<T>(padded), arena.take<T>(padded)};
  const CentreGradients<T> part = {arena.take<T>(padded), arena.take<T>(padded)};
  const Moments<T> moments = {arena.take<T>(count), arena.take<T>(count), arena.take<T>(count)};
  for (int64_t i = 0; i < count; ++i) points.w[i] /= points.sum[i];
  for (int64_t i = 0; i < padded; ++i) total.x[i] = total.y[i] = T(0);
  const bool moved = grads.gx || grads.gsigma;
  if (moved && grads.gmu)
    backward_groups<true, true>(c, scale.k, points, total, part, padded, moments);
  else if (moved)
    backward_groups<false, true>(c, scale.k, points, total, part, padded, moments);
  else
    backward_groups<true, false>(c, scale.k, points, total, part, padded, moments);
  if (T* gmu = static_cast<T*>(grads.gmu)) {
    const T factor = -g * scale.inverse;
    for (int64_t i = 0; i < p.centres; ++i) {
      gmu[2 * i] = factor * total.x[i];
      gmu[2 * i + 1] = factor * total.y[i];
    }
  }
  if (T* gx = static_cast<T*>(grads.gx)) {
    for (int64_t i = 2 * begin; i < 2 * end; ++i) gx[i] = T(0);
    for (int64_t i = 0; i < points.count; ++i) {
      const T factor = g * points.w[i] * scale.inverse;
      const int64_t at = 2 * (begin + points.place[i]);
      gx[at] = factor * moments.x[i];
      gx[at + 1] = factor * moments.y[i];
    }
  }
  if (grads.gsigma) {
    double squares = 0, all = 0;
    for (int64_t i = 0; i < points.count; ++i) {
      squares += double(points.w[i]) * double(moments.square[i]);
      all += double(points.w[i]) * double(points.sum[i]);
    }
    const double sigma = static_cast<const T*>(p.sigma)[sample * p.sigma_stride];
    *grads.gsigma = -double(g) * (squares / (sigma * sigma) - 2 * all) / sigma;
  }
}

// ---- the table ------------------------------------------------------------------------------------

// Of both directions: coordinates of the centres and two accumulators of their gradients, two selections of points,
// four numbers a point; every piece on a line of its own.
template <class T>
static int64_t workspace(const KdeProblem& p, int64_t points) {
  const int64_t each = round_up(round_up(points, kMostAtOnce) * int64_t(sizeof(T)), 64);
  return 6 * round_up(round_up(p.centres, kLanes<T>) * int64_t(sizeof(T)), 64) + (2 * 6 + 4) * each;
}

template <class T>
static void add_parts(T* to, const T* parts, int64_t count, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    T sum = parts[i];
    for (int64_t k = 1; k < count; ++k) sum += parts[k * n + i];
    to[i] = sum;
  }
}

extern const KdeKernels kde_kernels = {
    [](const KdeProblem& p, int64_t points) {
      return p.type == DType::f64 ? workspace<double>(p, points) : workspace<float>(p, points);
    },
    [](const KdeProblem& p, int64_t sample, int64_t begin, int64_t end, void* nearest, void* sum, double* ce, void* m) {
      p.type == DType::f64
          ? forward_points(p, sample, begin, end, static_cast<double*>(nearest), static_cast<double*>(sum), ce, m)
          : forward_points(p, sample, begin, end, static_cast<float*>(nearest), static_cast<float*>(sum), ce, m);
    },
    [](const KdeProblem& p, int64_t sample, int64_t begin, int64_t end, const KdeGradients& g, void* m) {
      p.type == DType::f64 ? backward_points<double>(p, sample, begin, end, g, m)
                           : backward_points<float>(p, sample, begin, end, g, m);
    },
    [](DType type, void* to, const void* parts, int64_t count, int64_t n) {
      type == DType::f64 ? add_parts(static_cast<double*>(to), static_cast<const double*>(parts), count, n)
                         : add_parts(static_cast<float*>(to), static_cast<const float*>(parts), count, n);
    }};

}  // namespace HF_ISA
}  // namespace hyperfast
