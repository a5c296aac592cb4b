// HyperLSTM and HyperRNN on the CPU: for each step one product of [h, hyper_h] with weights packed once for all steps,
// and the rows.
//
// FLOPs of a step for a row: 2 ((4H + 4K)(H + I) + 4K K) in the products, 2 * 12 Z (K + H) in embeddings and scales;
// backward twice that, and W_x x again; an RNN's are a quarter of that. Bytes: the packed weights once a step from L3
// (18 MB at H = 1000, K = 128) for up to 128 rows; where there are only a few rows, or steps, packing would cost more
// than it saves, and the weights are read where they lie, in their own type.
#include "hyper_lstm_backward.h"
#include "hyper_lstm_in_place.h"
#include "hyper_lstm_pack.h"

namespace hyperfast {
namespace HF_ISA {

// ---- forward ---------------------------------------------------------------------------------------

template <class T>
static void load_state(const HyperLstmRun& r) {
  const Sizes<T> s(r.l);
  load_rows(static_cast<T*>(r.h), r.state[0], r.l.data, 0, r.batch, s.units);
  load_rows(static_cast<T*>(r.c), r.state[1], r.l.data, 0, r.batch, s.cells);
  load_rows(static_cast<T*>(r.hyper_h), r.state[2], r.l.data, 0, r.batch, s.hyper);
  load_rows(static_cast<T*>(r.hyper_c), r.state[3], r.l.data, 0, r.batch, s.hyper_cells);
}

template <class T>
static int64_t product_tasks(const HyperLstmRun& r) {
  return (panels_of(Sizes<T>(r.l)) + kPanelsPerTask - 1) / kPanelsPerTask;
}

template <class T>
static void input_products(const HyperLstmRun& r, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kPanel<T>, most = 4096;
  const Sizes<T> s(r.l);
  T converted[most];
  for (int64_t first = 0; first < rows; first += kInputRows) {
    const int64_t n = min64(kInputRows, rows - first);
    const void* from = element(r.x, r.l.data, (row + first) * s.inputs);
    const bool own = r.l.data == r.l.compute;
    T* to = static_cast<T*>(r.inputs) + first * s.width;
    // Pieces of the inputs that fit where they are converted.
    const int64_t piece = own ? s.inputs : min64(s.inputs, most / kInputRows);
    for (int64_t k = 0; k < s.inputs; k += piece) {
      const int64_t length = min64(piece, s.inputs - k);
      if (!own)
        for (int64_t i = 0; i < n; ++i)
          load_row(converted + i * piece, element(from, r.l.data, i * s.inputs + k), r.l.data, length);
      const T* a = own ? static_cast<const T*>(from) : converted;
      const int64_t a_row = own ? s.inputs : piece;
      by_cell(s, kPanelsPerTask, begin, end, [&](bool hyper, int64_t panel, int64_t count) {
        T* c = to + (hyper ? s.main : 0) + panel * lanes;
        if (r.direct) {
          Stored m = hyper ? hyper_weight_x(r.l) : weight_ih(r.l);
          m.in = length;
          m.column += k;
          for (int64_t p = 0; p < count; ++p)
            in_place(r.l.weights, m, panel + p, a, a_row, n, c + p * lanes, s.width, k > 0);
          return;
        }
        const int64_t at = panel + (hyper ? s.main / lanes : 0);
        for (int64_t p = 0; p < count; ++p) {
          const Rows<T> work{a,
                             a_row,
                             length,
                             0,
                             static_cast<const T*>(r.packed_x) + ((at + p) * s.inputs + k) * lanes,
                             length,
                             c + p * lanes,
                             s.width,
                             k > 0};
          for_tiles(work, 1, n);
        }
      });
    }
  }
}

template <class T>
static T* products_of(const HyperLstmRun& r, const HyperLstmStep& step, const Sizes<T>& s) {
  return r.saved ? static_cast<T*>(r.saved) + step.row * s.width : static_cast<T*>(r.products);
}

template <class T>
static void recurrent_products(const HyperLstmRun& r, const HyperLstmStep& step, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kPanel<T>;
  const Sizes<T> s(r.l);
  T* to = products_of(r, step, s);
  const T *h = static_cast<const T*>(r.h), *hyper_h = static_cast<const T*>(r.hyper_h);
  by_cell(s, kPanelsPerTask, begin, end, [&](bool hyper, int64_t panel, int64_t count) {
    T* c = to + (hyper ? s.main : 0) + panel * lanes;
    if (r.direct) {
      const Stored m = hyper ? hyper_weight_h(r.l) : weight_hh(r.l), own = hyper_weight_hh(r.l);
      for (int64_t p = 0; p < count; ++p) {
        in_place(r.l.weights, m, panel + p, h, s.hp, step.rows, c + p * lanes, s.width, false);
        if (hyper) in_place(r.l.weights, own, panel + p, hyper_h, s.kp, step.rows, c + p * lanes, s.width, true);
      }
      return;
    }
    const int64_t at = panel + (hyper ? s.main / lanes : 0);
    const T* packed = static_cast<const T*>(r.packed_h) + at * s.units * lanes;
    multiply_rows(Rows<T>{h, s.hp, s.units, 0, packed, s.units, c, s.width, false}, count, step.rows);
    if (hyper) {
      const T* own = static_cast<const T*>(r.packed_hyper_h) + panel * s.hyper * lanes;
      multiply_rows(Rows<T>{hyper_h, s.kp, s.hyper, 0, own, s.hyper, c, s.width, true}, count, step.rows);
    }
  });
}

template <class T>
static void rows(const HyperLstmRun& r, const HyperLstmStep& step, int64_t begin, int64_t end, char* scratch) {
  const Sizes<T> s(r.l);
  const Cells<T> cells(r, s);
  Block<T> block(s, false, scratch);
  T *h = static_cast<T*>(r.h), *c = static_cast<T*>(r.c);
  T *hyper_h = static_cast<T*>(r.hyper_h), *hyper_c = static_cast<T*>(r.hyper_c);
  for (int64_t b = begin; b < end; b += kRowsAtOnce) {
    const int64_t n = min64(kRowsAtOnce, end - b);
    const Operands<T> o{products_of(r, step, s) + b * s.width,
                        static_cast<const T*>(r.inputs) + (step.in_chunk + b) * s.width,
                        c + b * s.cp,
                        hyper_c + b * s.hyper_cp,
                        hyper_h + b * s.kp,
                        c + b * s.cp,
                        h + b * s.hp,
                        hyper_c + b * s.hyper_cp,
                        hyper_h + b * s.kp};
    advance(r, s, cells, step, b, n, o, block);
    for (int64_t i = b; i < b + n; ++i) {
      const int64_t row = step.row + i;
      store_row(element(r.out[0], r.l.data, row * s.units), r.l.data, h + i * s.hp, s.units);
      store_row(element(r.out[1], r.l.data, row * s.cells), r.l.data, c + i * s.cp, s.cells);
      store_row(element(r.out[2], r.l.data, row * s.hyper), r.l.data, hyper_h + i * s.kp, s.hyper);
      store_row(element(r.out[3], r.l.data, row * s.hyper_cells), r.l.data, hyper_c + i * s.hyper_cp, s.hyper_cells);
    }
  }
}

// ---- the table ------------------------------------------------------------------------------------

#define HF_BY_TYPE(run, call, ...) \
  ((run).l.compute == DType::f64 ? call<double>(__VA_ARGS__) : call<float>(__VA_ARGS__))

using Run = HyperLstmRun;
using Step = HyperLstmStep;

extern const HyperLstmKernels hyper_lstm_kernels = {
    [](Run& r, char* base) { return HF_BY_TYPE(r, layout_of, r, base); },
    [](const Run& r) { return r.l.compute == DType::f64 ? Sizes<double>(r.l).width : Sizes<float>(r.l).width; },
    [](const Run& r) { return HF_BY_TYPE(r, block_bytes, r); },
    [](const Run& r) { return HF_BY_TYPE(r, pack_tasks, r); },
    [](const Run& r, int64_t begin, int64_t end) { HF_BY_TYPE(r, pack_all, r, begin, end); },
    [](const Run& r) { HF_BY_TYPE(r, load_state, r); },
    [](const Run& r) { return HF_BY_TYPE(r, product_tasks, r); },
    [](const Run& r, int64_t row, int64_t n, int64_t begin, int64_t end) {
      HF_BY_TYPE(r, input_products, r, row, n, begin, end);
    },
    [](const Run& r, const Step& s, int64_t begin, int64_t end) {
      HF_BY_TYPE(r, recurrent_products, r, s, begin, end);
    },
    [](const Run& r, const Step& s, int64_t begin, int64_t end, char* scratch) {
      HF_BY_TYPE(r, rows, r, s, begin, end, scratch);
    },
    [](const Run& r) { HF_BY_TYPE(r, clear_sums, r); },
    [](const Run& r, const Step& s, int64_t row_before) { HF_BY_TYPE(r, gather, r, s, row_before); },
    [](const Run& r, const Step& s, int64_t row_before, int64_t begin, int64_t end, int64_t slab, char* scratch) {
      HF_BY_TYPE(r, backward_rows, r, s, row_before, begin, end, slab, scratch);
    },
    [](const Run& r) { return HF_BY_TYPE(r, state_tasks, r); },
    [](const Run& r, const Step& s, int64_t begin, int64_t end) { HF_BY_TYPE(r, backward_state, r, s, begin, end); },
    [](const Run& r) { HF_BY_TYPE(r, store_state_gradients, r); },
    [](const Run& r) { return HF_BY_TYPE(r, weight_tasks, r); },
    [](const Run& r, int64_t n, int64_t begin, int64_t end) { HF_BY_TYPE(r, weight_products, r, n, begin, end); },
    [](const Run& r, int64_t row, int64_t begin, int64_t end) { HF_BY_TYPE(r, input_gradients, r, row, begin, end); },
    [](const Run& r) { return HF_BY_TYPE(r, slab_tasks, r); },
    [](const Run& r, int64_t begin, int64_t end) { HF_BY_TYPE(r, add_slabs, r, begin, end); },
    [](const Run& r, void* const* gradients) { HF_BY_TYPE(r, store_weights, r, gradients); },
};

}  // namespace HF_ISA
}  // namespace hyperfast
