// Activations in panels, [panel][row][kPanel<T>]: features lie in SIMD lanes, so that the forward
// product, the input gradient and the weight gradient all read them as they are, untransposed.
// The stride from panel to panel is kBlock rows. Unused lanes of the last panel are zero on packing.
#pragma once

#include "convert.h"

namespace hyperfast {
namespace HF_ISA {

// Rows per block. 24 to 96 measured alike; 48 is a multiple of every kernel height.
constexpr int64_t kBlock = 96;
template <class T>
constexpr int64_t kPanelStride = kBlock * kPanel<T>;

// [rows, width] rows -> panels.
template <class T>
static void rows_to_panels(T* panels, const void* from, DType type, int64_t row_stride, int64_t rows, int64_t width) {
  constexpr int64_t lanes = kPanel<T>;
  for (int64_t f = 0; f < width; f += lanes) {
    const int64_t n = min64(lanes, width - f);
    T* to = panels + f / lanes * kPanelStride<T>;
    for (int64_t r = 0; r < rows; ++r, to += lanes) {
      load_row(to, element(from, type, r * row_stride + f), type, n);
      for (int64_t i = n; i < lanes; ++i) to[i] = T(0);
    }
  }
}

// panels -> contiguous [rows, width]; with `add`, added to what lies there.
template <class T>
static void panels_to_rows(void* to, DType type, const T* panels, int64_t rows, int64_t width, bool add) {
  constexpr int64_t lanes = kPanel<T>;
  for (int64_t f = 0; f < width; f += lanes) {
    const int64_t n = min64(lanes, width - f);
    const T* from = panels + f / lanes * kPanelStride<T>;
    for (int64_t r = 0; r < rows; ++r, from += lanes) {
      void* row = element(to, type, r * width + f);
      if (add) {
        T sum[lanes];
        load_row(sum, row, type, n);
        for (int64_t i = 0; i < n; ++i) sum[i] += from[i];
        store_row(row, type, sum, n);
      } else {
        store_row(row, type, from, n);
      }
    }
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
