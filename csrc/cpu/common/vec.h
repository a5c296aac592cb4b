// Vectors of one instruction set on the compiler's own vector types: written once, compiled per set.
// HF_ISA (generic, avx2, avx512) names the namespace, HF_VECTOR_BYTES the register.
//
// Everything that this header and its users define lives in namespace hyperfast::HF_ISA, and nothing
// from torch or the standard library's templates is included: a linker keeps one copy of an inline
// template, and that copy could hold instructions which the machine lacks.
#pragma once

#include <stdint.h>

#define HF_INLINE static inline __attribute__((always_inline))
#define HF_UNROLL _Pragma("GCC unroll 32")

namespace hyperfast {
namespace HF_ISA {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(HF_VECTOR_BYTES)));
  typedef float unaligned __attribute__((vector_size(HF_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t integer_value;
  typedef int32_t integer __attribute__((vector_size(HF_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(HF_VECTOR_BYTES)));
  typedef double unaligned __attribute__((vector_size(HF_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t integer_value;
  typedef int64_t integer __attribute__((vector_size(HF_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;

// A panel is 64 bytes of features: 16 float or 8 double lanes, in kRegs registers.
constexpr int kRegs = 64 / HF_VECTOR_BYTES;
template <class T>
constexpr int kLanes = HF_VECTOR_BYTES / int(sizeof(T));
template <class T>
constexpr int kPanel = 64 / int(sizeof(T));

template <class T>
HF_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}
template <class T>
HF_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}
template <class T>
HF_INLINE Vec<T> splat(T value) {
  return value - Vec<T>{};
}

// Quarters of a register first: short chains, one order for all.
template <class T>
HF_INLINE T sum_of_lanes(Vec<T> v) {
  typedef T Quarter __attribute__((vector_size(16), may_alias));
  const Quarter* parts = reinterpret_cast<const Quarter*>(&v);
  Quarter sum = parts[0];
  HF_UNROLL for (int i = 1; i < HF_VECTOR_BYTES / 16; ++i) sum += parts[i];
  if constexpr (sizeof(T) == 8)
    return sum[0] + sum[1];
  else
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

HF_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
HF_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
HF_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

}  // namespace HF_ISA
}  // namespace hyperfast
