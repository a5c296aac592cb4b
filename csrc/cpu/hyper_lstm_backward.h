// The phases of HyperLSTM's backward: rows, states, and after each chunk of steps the products over its rows.
#pragma once

#include "hyper_lstm_rows.h"

namespace hyperfast {
namespace HF_ISA {

template <class T>
static void clear_sums(const HyperLstmRun& r) {
  const Sizes<T> s(r.l);
  const auto clear = [](void* at, int64_t n) { __builtin_memset(at, 0, n * sizeof(T)); };
  clear(r.h, r.batch * s.hp);
  clear(r.c, r.batch * s.cp);
  clear(r.hyper_h, r.batch * s.kp);
  clear(r.hyper_c, r.batch * s.hyper_cp);
  clear(r.sum_h, s.width * s.hp);
  clear(r.sum_hyper_h, s.gates * s.kp * s.kp);
  clear(r.sum_x, s.width * s.ip);
  __builtin_memset(r.slab, 0, (r.slabs + 1) * slab_bytes(s));
}

// The slab behind all others: the sums of the chunks so far.
template <class T>
static Slab<T> total_of(const HyperLstmRun& r, const Sizes<T>& s) {
  return Slab<T>(static_cast<char*>(r.slab) + r.slabs * slab_bytes(s), s);
}

// Values of a task of add_slabs.
constexpr int64_t kSlabPiece = 4096;

template <class T>
static int64_t slab_tasks(const HyperLstmRun& r) {
  const int64_t values = slab_bytes(Sizes<T>(r.l)) / sizeof(T);
  return (values + kSlabPiece - 1) / kSlabPiece;
}

// A chunk's sums join the total and start again: one chain over all steps would have a worse rounding error.
template <class T>
static void add_slabs(const HyperLstmRun& r, int64_t begin, int64_t end) {
  const Sizes<T> s(r.l);
  const int64_t values = slab_bytes(s) / sizeof(T), last = min64(end * kSlabPiece, values);
  T* total = total_of(r, s).begin;
  for (int64_t slab = 0; slab < r.slabs; ++slab) {
    T* sums = static_cast<T*>(r.slab) + slab * values;
    for (int64_t i = begin * kSlabPiece; i < last; i += kLanes<T>) {
      store(total + i, load(total + i) + load(sums + i));
      store(sums + i, splat(T(0)));
    }
  }
}

template <class T>
static void gather(const HyperLstmRun& r, const HyperLstmStep& step, int64_t row_before) {
  constexpr int64_t lanes = kPanel<T>;
  const Sizes<T> s(r.l);
  const int64_t stride = panel_stride<T>(r);
  const auto rows_of = [&](void* panels, const void* data, int64_t first, int64_t width) {
    for (int64_t i = 0; i < step.rows; ++i)
      for (int64_t k = 0; k < width; k += lanes) {
        T* to = static_cast<T*>(panels) + k / lanes * stride + (step.in_chunk + i) * lanes;
        const int64_t n = min64(lanes, width - k);
        load_row(to, element(data, r.l.data, (first + i) * width + k), r.l.data, n);
        for (int64_t lane = n; lane < lanes; ++lane) to[lane] = T(0);
      }
  };
  const bool first = row_before < 0;
  rows_of(r.panels_h, first ? r.state[0] : r.out[0], first ? 0 : row_before, s.units);
  rows_of(r.panels_hyper_h, first ? r.state[2] : r.out[2], first ? 0 : row_before, s.hyper);
  rows_of(r.panels_x, r.x, step.row, s.inputs);
}

template <class T>
static void backward_rows(const HyperLstmRun& r, const HyperLstmStep& step, int64_t row_before, int64_t begin,
                          int64_t end, int64_t slab, char* scratch) {
  const Sizes<T> s(r.l);
  const Cells<T> cells(r, s);
  Block<T> block(s, true, scratch);
  const Slab<T> sums(static_cast<char*>(r.slab) + slab * slab_bytes(s), s);
  for (int64_t b = begin; b < end; b += kRowsAtOnce)
    retreat(r, s, cells, step, row_before, b, min64(kRowsAtOnce, end - b), block, sums);
}

template <class T>
static int64_t state_tasks(const HyperLstmRun& r) {
  const Sizes<T> s(r.l);
  return (s.hp + s.kp) / kPanel<T>;
}

// Gradients of h and hyper_h before a step: through the products. Tasks are panels of h, then of hyper_h.
template <class T>
static void backward_state(const HyperLstmRun& r, const HyperLstmStep& step, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kPanel<T>;
  const Sizes<T> s(r.l);
  const int64_t stride = panel_stride<T>(r), main = s.hp / lanes, hyper_rows = s.gates * s.kp;
  const T* gradients = static_cast<const T*>(r.panels_g) + step.in_chunk * lanes;
  const int64_t count = min64(end, main) - begin;
  if (count > 0)
    multiply_rows(Rows<T>{gradients, lanes, lanes, stride, static_cast<const T*>(r.back_h) + begin * s.width * lanes,
                          s.width, static_cast<T*>(r.h) + begin * lanes, s.hp, false},
                  count, step.rows);
  const int64_t first = max64(begin - main, 0);
  if (end - main > first)
    multiply_rows(Rows<T>{gradients + s.main / lanes * stride, lanes, lanes, stride,
                          static_cast<const T*>(r.back_hyper_h) + first * hyper_rows * lanes, hyper_rows,
                          static_cast<T*>(r.hyper_h) + first * lanes, s.kp, true},
                  end - main - first, step.rows);
}

template <class T>
static void store_state_gradients(const HyperLstmRun& r) {
  const Sizes<T> s(r.l);
  const auto rows_of = [&](void* to, const void* from, int64_t units) {
    for (int64_t b = 0; b < r.batch; ++b)
      store_row(element(to, r.l.data, b * units), r.l.data, static_cast<const T*>(from) + b * padded<T>(units), units);
  };
  rows_of(r.gstate[0], r.h, s.units);
  rows_of(r.gstate[1], r.c, s.cells);
  rows_of(r.gstate[2], r.hyper_h, s.hyper);
  rows_of(r.gstate[3], r.hyper_c, s.hyper_cells);
}

// sums[out][in] += sum over rows of g[row][out] x[row][in], both in panels.
template <class T>
struct Outer {
  const T* g;
  const T* x;
  int64_t stride, rows;
  T* sums;
  int64_t width;

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t out, int64_t panel) const {
    constexpr int64_t lanes = kPanel<T>;
    Tile<T, MR, NP> sum = {};
    for (int64_t row = 0; row < rows; row += kSummed) {
      const T* from[MR];
      HF_UNROLL for (int i = 0; i < MR; ++i) from[i] = g + (out + i) / lanes * stride + row * lanes + (out + i) % lanes;
      const int64_t n = min64(kSummed, rows - row);
      Tile<T, MR, NP> tile = {};
      multiply<int(lanes)>(tile, from, x + panel * stride + row * lanes, stride, n, n, 0);
      HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) sum.v[i][j] += tile.v[i][j];
    }
    HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) {
      T* to = sums + (out + i) * width + panel * lanes + j * kLanes<T>;
      store(to, load(to) + sum.v[i][j]);
    }
  }
  __attribute__((always_inline)) inline void finish(int64_t, int) const {}
};

// Output panels of a task: 96 outputs (float) share each operand from L2.
constexpr int64_t kWeightPanels = 6;

template <class T>
static int64_t weight_tasks(const HyperLstmRun& r) {
  return (panels_of(Sizes<T>(r.l)) + kWeightPanels - 1) / kWeightPanels;
}

template <class T>
static void weight_products(const HyperLstmRun& r, int64_t rows, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kPanel<T>;
  const Sizes<T> s(r.l);
  const int64_t stride = panel_stride<T>(r);
  for (int64_t task = begin; task < end; ++task)
    by_cell(s, kWeightPanels, task, task + 1, [&](bool hyper, int64_t panel, int64_t count) {
      const int64_t at = panel + (hyper ? s.main / lanes : 0);
      const T* g = static_cast<const T*>(r.panels_g) + at * stride;
      const T* gx = hyper ? g : static_cast<const T*>(r.panels_gx) + at * stride;
      const auto add = [&](const T* from, const void* x, void* sums, int64_t first, int64_t width) {
        const Outer<T> work{from, static_cast<const T*>(x), stride, rows, static_cast<T*>(sums) + first * lanes * width,
                            width};
        for_tiles(work, width / lanes, count * lanes);
      };
      add(g, r.panels_h, r.sum_h, at, s.hp);
      add(gx, r.panels_x, r.sum_x, at, s.ip);
      if (hyper) add(g, r.panels_hyper_h, r.sum_hyper_h, panel, s.kp);
    });
}

// Rows [begin, end) of a chunk that begins at `row`.
template <class T>
static void input_gradients(const HyperLstmRun& r, int64_t row, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kPanel<T>;
  const Sizes<T> s(r.l);
  const int64_t stride = panel_stride<T>(r), hyper_rows = s.gates * s.kp;
  for (int64_t panel = 0; panel < s.ip / lanes; ++panel)
    for (int64_t first = begin; first < end; first += kInputRows) {
      const int64_t n = min64(kInputRows, end - first);
      alignas(64) T sum[kInputRows * lanes];
      const auto add = [&](const void* g, const void* packed, int64_t length, bool again) {
        multiply_rows(Rows<T>{static_cast<const T*>(g) + first * lanes, lanes, lanes, stride,
                              static_cast<const T*>(packed) + panel * length * lanes, length, sum, lanes, again},
                      1, n);
      };
      add(r.panels_gx, r.back_x, s.main, false);
      if (s.scaled())
        add(static_cast<const T*>(r.panels_g) + s.main / lanes * stride, r.back_hyper_x, hyper_rows, true);
      for (int64_t i = 0; i < n; ++i)
        store_row(element(r.gx, r.l.data, (row + first + i) * s.inputs + panel * lanes), r.l.data, sum + i * lanes,
                  min64(lanes, s.inputs - panel * lanes));
    }
}

template <class T>
static void store_weights(const HyperLstmRun& r, void* const* gradients) {
  constexpr int64_t lanes = kPanel<T>;
  const Sizes<T> s(r.l);
  const DType type = r.l.weights;
  const Slab<T> total = total_of(r, s);
  // [gates * padded units][width] -> columns of a stored matrix.
  const auto matrix = [&](int which, const void* sums, int64_t units, int64_t width, int64_t in, int64_t row_stride,
                          int64_t column) {
    for (int64_t row = 0; row < s.gates * units; ++row)
      store_row(element(gradients[which], type, row * row_stride + column), type,
                static_cast<const T*>(sums) + (row / units * padded<T>(units) + row % units) * width, in);
  };
  const auto vectors = [&](int which, const T* sums, int64_t count, int64_t units) {
    for (int64_t i = 0; gradients[which] && i < count; ++i)
      store_row(element(gradients[which], type, i * units), type, sums + i * padded<T>(units), units);
  };
  const auto cell = [&](int first, const CellVectors<T>& sums, int64_t units) {
    vectors(first, sums.bias, s.gates, units);
    vectors(first + 1, sums.ln_weight, s.norms, units);
    vectors(first + 2, sums.ln_bias, s.norms, units);
  };
  matrix(kWeightIh, r.sum_x, s.units, s.ip, s.inputs, s.inputs, 0);
  matrix(kWeightHh, r.sum_h, s.units, s.hp, s.units, s.units, 0);
  cell(kBias, total.vectors.main, s.units);
  if (!s.scaled()) return;
  const T *x = static_cast<const T*>(r.sum_x) + s.main * s.ip, *h = static_cast<const T*>(r.sum_h) + s.main * s.hp;
  matrix(kHyperWeightIh, h, s.hyper, s.hp, s.units, s.units + s.inputs, 0);
  matrix(kHyperWeightIh, x, s.hyper, s.ip, s.inputs, s.units + s.inputs, s.units);
  matrix(kHyperWeightHh, r.sum_hyper_h, s.hyper, s.kp, s.hyper, s.hyper, 0);
  cell(kHyperBias, total.vectors.hyper, s.hyper);
  const int64_t n = s.gates * s.embedding;
  for (int64_t e = 0; e < s.embeddings; ++e)
    store_row(element(gradients[kZhWeight + e / n], type, e % n * s.hyper), type, total.z + e * s.kp, s.hyper);
  store_row(gradients[kZhBias], type, total.vectors.embedding, n);
  store_row(gradients[kZxBias], type, total.vectors.embedding + n, n);
  for (int64_t map = 0; map < s.maps; ++map)
    for (int64_t u = 0; u < s.units; ++u) {
      const T* from = total.d + map * s.embedding * s.hp + u / lanes * lanes * s.embedding + u % lanes;
      for (int64_t e = 0; e < s.embedding; ++e)
        store_row(element(gradients[kDhWeight + map / s.gates], type, (map % s.gates * s.units + u) * s.embedding + e),
                  type, from + e * lanes, 1);
    }
}

}  // namespace HF_ISA
}  // namespace hyperfast
