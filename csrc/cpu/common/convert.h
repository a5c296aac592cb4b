// Rows of stored values (float32, float64, bfloat16, float16) to and from rows of compute values.
#pragma once

#include "../../target_net.h"
#include "vec.h"

namespace hyperfast {
namespace HF_ISA {

HF_INLINE int64_t bytes_of(DType type) { return type == DType::f64 ? 8 : type == DType::f32 ? 4 : 2; }

HF_INLINE float from_bf16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  __builtin_memcpy(&value, &wide, 4);
  return value;
}
// Round to nearest even; NaN stays NaN.
HF_INLINE uint16_t to_bf16(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return uint16_t(value == value ? rounded : 0x7FC0u);
}

HF_INLINE const void* element(const void* data, DType type, int64_t index) {
  return static_cast<const char*>(data) + index * bytes_of(type);
}
HF_INLINE void* element(void* data, DType type, int64_t index) {
  return static_cast<char*>(data) + index * bytes_of(type);
}

template <class T>
static void load_row(T* to, const void* from, DType type, int64_t n) {
  if (type == DType::bf16) {
    const uint16_t* p = static_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = T(from_bf16(p[i]));
  } else if (type == DType::f16) {
    const _Float16* p = static_cast<const _Float16*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = T(p[i]);
  } else if (type == DType::f64) {
    const double* p = static_cast<const double*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = T(p[i]);
  } else {
    const float* p = static_cast<const float*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = T(p[i]);
  }
}

template <class T>
static void store_row(void* to, DType type, const T* from, int64_t n) {
  if (type == DType::bf16) {
    uint16_t* p = static_cast<uint16_t*>(to);
    for (int64_t i = 0; i < n; ++i) p[i] = to_bf16(float(from[i]));
  } else if (type == DType::f16) {
    _Float16* p = static_cast<_Float16*>(to);
    for (int64_t i = 0; i < n; ++i) p[i] = _Float16(from[i]);
  } else if (type == DType::f64) {
    double* p = static_cast<double*>(to);
    for (int64_t i = 0; i < n; ++i) p[i] = double(from[i]);
  } else {
    float* p = static_cast<float*>(to);
    for (int64_t i = 0; i < n; ++i) p[i] = float(from[i]);
  }
}

// The same row where it lies when it needs no conversion, otherwise converted into `scratch`.
template <class T>
HF_INLINE const T* row_in_place(const void* from, DType type, T* scratch, int64_t n) {
  if (type == (sizeof(T) == 8 ? DType::f64 : DType::f32)) return static_cast<const T*>(from);
  load_row(scratch, from, type, n);
  return scratch;
}

}  // namespace HF_ISA
}  // namespace hyperfast
