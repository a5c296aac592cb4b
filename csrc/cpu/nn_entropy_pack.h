// A block of rows as a screen takes it: slabs of features, packed into panels, less a common centre; and the workspace
// of a partial sum.
#pragma once

#include "../nn_entropy.h"
#include "common/arena.h"
#include "common/convert.h"
#include "common/product.h"

namespace hyperfast {
namespace HF_ISA {

// Features whose products are summed in registers before they meet the sums of other slabs.
constexpr int64_t kSlab = 128;

// Up to this many rows packing costs more than it saves: their features lie in the lanes, kDirectSteps vectors a slab.
constexpr int64_t kDirectSteps = 64;
template <class T>
static bool is_direct(const Screen& s) {
  return s.measure != Measure::gram && s.right <= kDirectRows && s.left <= kDirectRows &&
         s.theta.type == (sizeof(T) == 8 ? DType::f64 : DType::f32);
}

// ---- workspace ----------------------------------------------------------------------------------

// One partial sum and what it takes to add to it. Packed rows are the right ones; before them, without a triangle,
// the left ones.
template <class T>
struct Partial {
  T* sums;        // [right panel][left][lanes]
  double* norms;  // of the packed rows, squared, less the centre
  T* packed;      // [panel][kSlab][lanes]
  T* centre;      // [kSlab]
  T* rows;        // [lanes][kSlab]
  int64_t bytes;

  Partial(const Screen& s, const void* workspace) {
    Arena arena{static_cast<char*>(const_cast<void*>(workspace))};
    sums = arena.take<T>(padded(s.right) * s.left);
    norms = arena.take<double>(packed_rows(s));
    packed = arena.take<T>(packed_rows(s) * kSlab);
    centre = arena.take<T>(kSlab);
    rows = arena.take<T>(kPanel<T> * kSlab);
    bytes = arena.at - static_cast<const char*>(workspace);
  }
  static int64_t padded(int64_t rows) { return round_up(rows, kPanel<T>); }
  static int64_t packed_left(const Screen& s) { return s.triangle ? 0 : padded(s.left); }
  static int64_t packed_rows(const Screen& s) { return packed_left(s) + padded(s.right); }
  const double* left_norms(const Screen&) const { return norms; }
  const double* right_norms(const Screen& s) const { return norms + packed_left(s); }
};

template <class T>
static int64_t slab_size(const Screen& s) {
  return is_direct<T>(s) ? kDirectSteps * kLanes<T> : kSlab;
}
template <class T>
static int64_t slabs(const Screen& s) {
  return (s.theta.features + slab_size<T>(s) - 1) / slab_size<T>(s);
}

template <class T>
static int64_t workspace(const Screen& s) {
  return Partial<T>(s, reinterpret_cast<void*>(64)).bytes;  // of any aligned place
}

template <class T>
static void clear(const Screen& s, void* workspace) {
  const Partial<T> part(s, workspace);
  __builtin_memset(part.sums, 0, Partial<T>::padded(s.right) * s.left * sizeof(T));
  __builtin_memset(part.norms, 0, Partial<T>::packed_rows(s) * sizeof(double));
}

// ---- packing ------------------------------------------------------------------------------------

HF_INLINE const void* features_at(const Rows& theta, int64_t row, int64_t feature) {
  return element(theta.data, theta.type, row * theta.stride + feature);
}

// More would be read once more from L2 for little: a row's part in the centre is a sixteenth at most.
constexpr int64_t kCentreRows = 16;

// The mean of some rows of both blocks; any centre is right, and values that are not finite take no part.
template <class T>
static void find_centre(const Screen& s, int64_t begin, int64_t n, T* centre, T* scratch) {
  for (int64_t k = 0; k < n; ++k) centre[k] = T(0);
  int64_t taken = 0;
  const auto add = [&](const int64_t* rows, int64_t count) {
    for (int64_t r = 0; r < count; r += (count + kCentreRows - 1) / kCentreRows, ++taken) {
      const T* x = row_in_place(features_at(s.theta, rows[r], begin), s.theta.type, scratch, n);
      for (int64_t k = 0; k < n; ++k) centre[k] += x[k] - x[k] == T(0) ? x[k] : T(0);
    }
  };
  add(s.right_rows, s.right);
  if (!s.triangle) add(s.left_rows, s.left);
  const T scale = T(1) / T(taken);
  for (int64_t k = 0; k < n; ++k) centre[k] *= scale;
}

// One row less the centre; returns its squared norm.
template <class T>
static double centred(T* to, const T* x, const T* centre, int64_t n) {
  Vec<T> square = {};
  int64_t k = 0;
  for (; k + kLanes<T> <= n; k += kLanes<T>) {
    const Vec<T> v = load(x + k) - load(centre + k);
    square += v * v;
    store(to + k, v);
  }
  T rest = T(0);
  for (; k < n; ++k) {
    to[k] = x[k] - centre[k];
    rest += to[k] * to[k];
  }
  return double(sum_of_lanes<T>(square)) + double(rest);
}

template <class T>
static void pack(const Screen& s, const Partial<T>& part, int64_t begin, int64_t n, const int64_t* rows, int64_t count,
                 T* packed, double* norms) {
  for (int64_t first = 0; first < count; first += kPanel<T>) {
    const int64_t height = min64(kPanel<T>, count - first);
    for (int64_t r = 0; r < height; ++r) {
      T* to = part.rows + r * n;
      const void* from = features_at(s.theta, rows[first + r], begin);
      if (s.measure == Measure::gram)
        norms[first + r] += centred(to, row_in_place(from, s.theta.type, to, n), part.centre, n);
      else
        load_row(to, from, s.theta.type, n);
    }
    pack_transposed(packed + first * n, part.rows, height, n);
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
