// HyperLSTM on the CPU: for each step one product of [h, hyper_h] with weights packed once for all steps, and the rows.
//
// FLOPs of a step for a row: 2 ((4H + 4K)(H + I) + 4K K) in the products, 2 * 12 Z (K + H) in embeddings and scales;
// backward twice that, and W_x x again. Bytes: the packed weights once a step from L3 (18 MB at H = 1000, K = 128) for
// up to 128 rows; where there are only a few rows, or steps, packing would cost more than it saves, and the weights are
// read where they lie, in their own type.
#include "hyper_lstm_rows.h"

namespace hyperfast {
namespace HF_ISA {

// ---- weights where they lie -----------------------------------------------------------------------

HF_INLINE Vec<float> load_as(const float* p, float) { return load(p); }
HF_INLINE Vec<double> load_as(const double* p, double) { return load(p); }

typedef uint16_t Half __attribute__((vector_size(HF_VECTOR_BYTES / 2)));
typedef uint16_t HalfAt __attribute__((vector_size(HF_VECTOR_BYTES / 2), aligned(2), may_alias));
typedef uint32_t Wide __attribute__((vector_size(HF_VECTOR_BYTES)));
struct BFloat16 {
  uint16_t bits;
};
HF_INLINE Vec<float> load_as(const BFloat16* p, float) {
  return (Vec<float>)(__builtin_convertvector(Half(*reinterpret_cast<const HalfAt*>(p)), Wide) << 16);
}
typedef _Float16 Float16s __attribute__((vector_size(HF_VECTOR_BYTES / 2)));
typedef _Float16 Float16sAt __attribute__((vector_size(HF_VECTOR_BYTES / 2), aligned(2), may_alias));
HF_INLINE Vec<float> load_as(const _Float16* p, float) {
  return __builtin_convertvector(Float16s(*reinterpret_cast<const Float16sAt*>(p)), Vec<float>);
}
HF_INLINE float value_of(float v) { return v; }
HF_INLINE double value_of(double v) { return v; }
HF_INLINE float value_of(BFloat16 v) { return from_bf16(v.bits); }
HF_INLINE float value_of(_Float16 v) { return float(v); }

// Outputs and rows at once: as many sums as hide the latency of an addition.
constexpr int kDirectOutputs = 4, kDirectRows = 3;
constexpr int kSingleOutputs = HF_VECTOR_BYTES == 64 ? 8 : 4;

// c[row][out] (+)= sum over k of w[out][k] a[row][k], k in the lanes.
template <class W, class T, int NO, int NR>
static void multiply_in_place(const W* const (&w)[NO], const T* a, int64_t a_row, int64_t length, T* c,
                              int64_t c_row, int64_t outputs, bool add) {
  Vec<T> sum[NO][NR] = {};
  int64_t k = 0;
  for (; k + kLanes<T> <= length; k += kLanes<T>) {
    Vec<T> x[NR];
    HF_UNROLL for (int r = 0; r < NR; ++r) x[r] = load(a + r * a_row + k);
    HF_UNROLL for (int o = 0; o < NO; ++o) {
      const Vec<T> weights = load_as(w[o] + k, T(0));
      HF_UNROLL for (int r = 0; r < NR; ++r) sum[o][r] += weights * x[r];
    }
  }
  HF_UNROLL for (int o = 0; o < NO; ++o) HF_UNROLL for (int r = 0; r < NR; ++r) {
    T total = sum_of_lanes<T>(sum[o][r]);
    for (int64_t i = k; i < length; ++i) total += T(value_of(w[o][i])) * a[r * a_row + i];
    if (o < outputs) c[r * c_row + o] = add ? c[r * c_row + o] + total : total;
  }
}

// One panel of outputs for all rows.
template <class W, class T>
static void panel_in_place(const Stored& m, int64_t panel, const T* a, int64_t a_row, int64_t rows, T* c, int64_t c_row,
                           bool add) {
  constexpr int64_t lanes = kPanel<T>;
  const int64_t panels = padded<T>(m.units) / lanes, gate = panel / panels, first = panel % panels * lanes;
  const int64_t height = min64(lanes, m.units - first);
  const auto outputs_from = [&]<int NO, int NR>(int64_t o, int64_t row) {
    const W* w[NO];
    for (int i = 0; i < NO; ++i)  // past the last output, the last one again
      w[i] = static_cast<const W*>(m.data) + (gate * m.units + first + min64(o + i, height - 1)) * m.row_stride + m.column;
    multiply_in_place<W, T, NO, NR>(w, a + row * a_row, a_row, m.in, c + row * c_row + o, c_row, min64(NO, height - o),
                                    add);
  };
  int64_t row = 0;
  for (; row + kDirectRows <= rows; row += kDirectRows)
    for (int64_t o = 0; o < height; o += kDirectOutputs)
      outputs_from.template operator()<kDirectOutputs, kDirectRows>(o, row);
  for (; row < rows; ++row)
    for (int64_t o = 0; o < height; o += kSingleOutputs) outputs_from.template operator()<kSingleOutputs, 1>(o, row);
  if (!add)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t o = height; o < lanes; ++o) c[row * c_row + o] = T(0);
}

static void in_place(DType type, const Stored& m, int64_t panel, const float* a, int64_t a_row, int64_t rows, float* c,
                     int64_t c_row, bool add) {
  if (type == DType::bf16) return panel_in_place<BFloat16>(m, panel, a, a_row, rows, c, c_row, add);
  if (type == DType::f16) return panel_in_place<_Float16>(m, panel, a, a_row, rows, c, c_row, add);
  panel_in_place<float>(m, panel, a, a_row, rows, c, c_row, add);
}
static void in_place(DType, const Stored& m, int64_t panel, const double* a, int64_t a_row, int64_t rows, double* c,
                     int64_t c_row, bool add) {
  panel_in_place<double>(m, panel, a, a_row, rows, c, c_row, add);
}

// ---- forward --------------------------------------------------------------------------------------

constexpr int64_t kPanelsPerTask = 2;

template <class T>
static int64_t panels_of(const Sizes<T>& s) {
  return s.width / kPanel<T>;
}

// work(cell, first, count) for the main cell's and the hyper cell's panels among those of tasks [begin, end).
template <class T, class Work>
HF_INLINE void by_cell(const Sizes<T>& s, int64_t per_task, int64_t begin, int64_t end, const Work& work) {
  const int64_t main = s.main / kPanel<T>, first = begin * per_task, last = min64(end * per_task, panels_of(s));
  if (first < main) work(false, first, min64(last, main) - first);
  if (last > main) work(true, max64(first, main) - main, last - max64(first, main));
}

template <class T>
static int64_t pack_tasks(const HyperLstmRun& r) {
  const Sizes<T> s(r.l);
  const int64_t panels = panels_of(s), inputs = (s.hp + s.kp + 2 * s.ip) / kPanel<T>;
  return 1 + (s.scaled() ? 12 : 0) + (r.direct ? 0 : panels) + (r.backward ? inputs : 0);
}

// Vectors and embeddings; each map; each panel of outputs; each panel of inputs, for backward.
template <class T>
static void pack_one(const HyperLstmRun& r, const Sizes<T>& s, int64_t task) {
  constexpr int64_t lanes = kPanel<T>;
  const HyperLstmLayer& l = r.l;
  if (task == 0) {
    pack_vectors(r, s);
    if (!s.scaled()) return;
    T* to = static_cast<T*>(r.packed_z);
    const int64_t n = 4 * s.embedding;
    for (int64_t panel = 0; panel < s.zp / lanes; ++panel)
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t e = panel * lanes + lane;
        for (int64_t k = 0; k < s.hyper; ++k) {
          T value = T(0);
          if (e < s.embeddings)
            load_row(&value, element(l.weight[kZhWeight + e / n], l.weights, e % n * s.hyper + k), l.weights, 1);
          to[(panel * s.hyper + k) * lanes + lane] = value;
          if (r.backward && e < s.embeddings)
            static_cast<T*>(r.back_z)[(k / lanes * s.embeddings + e) * lanes + k % lanes] = value;
        }
        for (int64_t k = s.hyper; r.backward && e < s.embeddings && k < s.kp; ++k)
          static_cast<T*>(r.back_z)[(k / lanes * s.embeddings + e) * lanes + k % lanes] = T(0);
      }
    return;
  }
  task -= 1;
  if (s.scaled() && task < 12) return pack_map(r, s, task);
  task -= s.scaled() ? 12 : 0;
  const int64_t main = s.main / lanes;
  if (!r.direct) {
    if (task < panels_of(s)) {
      const bool hyper = task >= main;
      const int64_t panel = hyper ? task - main : task;
      T *x = static_cast<T*>(r.packed_x) + task * s.inputs * lanes, *h = static_cast<T*>(r.packed_h);
      pack_outputs(x, hyper ? hyper_weight_x(l) : weight_ih(l), l.weights, panel);
      if (r.backward) return;
      pack_outputs(h + task * s.units * lanes, hyper ? hyper_weight_h(l) : weight_hh(l), l.weights, panel);
      if (hyper)
        pack_outputs(static_cast<T*>(r.packed_hyper_h) + panel * s.hyper * lanes, hyper_weight_hh(l), l.weights, panel);
      return;
    }
    task -= panels_of(s);
  }
  T* h = static_cast<T*>(r.back_h);
  if (task < s.hp / lanes) {
    pack_inputs(h + task * s.width * lanes, weight_hh(l), l.weights, task);
    if (s.scaled()) pack_inputs(h + (task * s.width + s.main) * lanes, hyper_weight_h(l), l.weights, task);
    return;
  }
  task -= s.hp / lanes;
  const int64_t hyper_rows = kGates * s.kp;
  if (task < s.kp / lanes)
    return pack_inputs(static_cast<T*>(r.back_hyper_h) + task * hyper_rows * lanes, hyper_weight_hh(l), l.weights, task);
  task -= s.kp / lanes;
  if (task < s.ip / lanes)
    return pack_inputs(static_cast<T*>(r.back_x) + task * s.main * lanes, weight_ih(l), l.weights, task);
  task -= s.ip / lanes;
  if (s.scaled())
    pack_inputs(static_cast<T*>(r.back_hyper_x) + task * hyper_rows * lanes, hyper_weight_x(l), l.weights, task);
}

template <class T>
static void pack_all(const HyperLstmRun& r, int64_t begin, int64_t end) {
  const Sizes<T> s(r.l);
  for (int64_t task = begin; task < end; ++task) pack_one(r, s, task);
}

template <class T>
static void load_state(const HyperLstmRun& r) {
  const Sizes<T> s(r.l);
  load_rows(static_cast<T*>(r.h), r.state[0], r.l.data, 0, r.batch, s.units);
  load_rows(static_cast<T*>(r.c), r.state[1], r.l.data, 0, r.batch, s.units);
  load_rows(static_cast<T*>(r.hyper_h), r.state[2], r.l.data, 0, r.batch, s.hyper);
  load_rows(static_cast<T*>(r.hyper_c), r.state[3], r.l.data, 0, r.batch, s.hyper);
}

template <class T>
static int64_t product_tasks(const HyperLstmRun& r) {
  return (panels_of(Sizes<T>(r.l)) + kPanelsPerTask - 1) / kPanelsPerTask;
}

// Rows of x at once: converted ones stay in L1.
constexpr int64_t kInputRows = 24;

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
          const Rows<T> work{a, a_row, length, 0, static_cast<const T*>(r.packed_x) + ((at + p) * s.inputs + k) * lanes,
                             length, c + p * lanes, s.width, k > 0};
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
                        c + b * s.hp, hyper_c + b * s.kp, hyper_h + b * s.kp,
                        c + b * s.hp, h + b * s.hp, hyper_c + b * s.kp, hyper_h + b * s.kp};
    advance(r, s, cells, step, b, n, o, block);
    for (int64_t i = b; i < b + n; ++i) {
      const int64_t row = step.row + i;
      store_row(element(r.out[0], r.l.data, row * s.units), r.l.data, h + i * s.hp, s.units);
      store_row(element(r.out[1], r.l.data, row * s.units), r.l.data, c + i * s.hp, s.units);
      store_row(element(r.out[2], r.l.data, row * s.hyper), r.l.data, hyper_h + i * s.kp, s.hyper);
      store_row(element(r.out[3], r.l.data, row * s.hyper), r.l.data, hyper_c + i * s.kp, s.hyper);
    }
  }
}

// ---- backward -------------------------------------------------------------------------------------

template <class T>
static void clear_sums(const HyperLstmRun& r) {
  const Sizes<T> s(r.l);
  const auto clear = [](void* at, int64_t n) { __builtin_memset(at, 0, n * sizeof(T)); };
  clear(r.h, r.batch * s.hp);
  clear(r.c, r.batch * s.hp);
  clear(r.hyper_h, r.batch * s.kp);
  clear(r.hyper_c, r.batch * s.kp);
  clear(r.sum_h, s.width * s.hp);
  clear(r.sum_hyper_h, kGates * s.kp * s.kp);
  clear(r.sum_x, s.width * s.ip);
  __builtin_memset(r.slab, 0, r.slabs * slab_bytes(s));
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
  const int64_t stride = panel_stride<T>(r), main = s.hp / lanes, hyper_rows = kGates * s.kp;
  const T* gradients = static_cast<const T*>(r.panels_g) + step.in_chunk * lanes;
  const int64_t count = min64(end, main) - begin;
  if (count > 0)
    multiply_rows(Rows<T>{gradients, lanes, lanes, stride, static_cast<const T*>(r.back_h) + begin * s.width * lanes, s.width,
                      static_cast<T*>(r.h) + begin * lanes, s.hp, false},
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
  rows_of(r.gstate[1], r.c, s.units);
  rows_of(r.gstate[2], r.hyper_h, s.hyper);
  rows_of(r.gstate[3], r.hyper_c, s.hyper);
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
  const int64_t stride = panel_stride<T>(r), hyper_rows = kGates * s.kp;
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
      if (s.scaled()) add(static_cast<const T*>(r.panels_g) + s.main / lanes * stride, r.back_hyper_x, hyper_rows, true);
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
  const Slab<T> total(static_cast<char*>(r.slab), s);
  for (int64_t slab = 1; slab < r.slabs; ++slab) {
    const Slab<T> other(static_cast<char*>(r.slab) + slab * slab_bytes(s), s);
    for (int64_t i = 0; i < total.end - total.begin; ++i) total.begin[i] += other.begin[i];
  }
  // [4 padded units][width] -> columns of a stored matrix.
  const auto matrix = [&](int which, const void* sums, int64_t units, int64_t width, int64_t in, int64_t row_stride,
                          int64_t column) {
    for (int64_t row = 0; row < kGates * units; ++row)
      store_row(element(gradients[which], type, row * row_stride + column), type,
                static_cast<const T*>(sums) + (row / units * padded<T>(units) + row % units) * width, in);
  };
  const auto vectors = [&](int which, const T* sums, int64_t count, int64_t units) {
    for (int64_t i = 0; gradients[which] && i < count; ++i)
      store_row(element(gradients[which], type, i * units), type, sums + i * padded<T>(units), units);
  };
  const auto cell = [&](int first, const CellVectors<T>& sums, int64_t units) {
    vectors(first, sums.bias, 4, units);
    vectors(first + 1, sums.ln_weight, 5, units);
    vectors(first + 2, sums.ln_bias, 5, units);
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
  const int64_t n = 4 * s.embedding;
  for (int64_t e = 0; e < s.embeddings; ++e)
    store_row(element(gradients[kZhWeight + e / n], type, e % n * s.hyper), type, total.z + e * s.kp, s.hyper);
  store_row(gradients[kZhBias], type, total.vectors.embedding, n);
  store_row(gradients[kZxBias], type, total.vectors.embedding + n, n);
  for (int64_t map = 0; map < 12; ++map)
    for (int64_t u = 0; u < s.units; ++u) {
      const T* from = total.d + map * s.embedding * s.hp + u / lanes * lanes * s.embedding + u % lanes;
      for (int64_t e = 0; e < s.embedding; ++e)
        store_row(element(gradients[kDhWeight + map / 4], type, (map % 4 * s.units + u) * s.embedding + e), type,
                  from + e * lanes, 1);
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
    [](const Run& r, const Step& s, int64_t begin, int64_t end) { HF_BY_TYPE(r, recurrent_products, r, s, begin, end); },
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
    [](const Run& r, void* const* gradients) { HF_BY_TYPE(r, store_weights, r, gradients); },
};

}  // namespace HF_ISA
}  // namespace hyperfast
