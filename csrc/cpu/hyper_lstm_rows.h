// What is done row by row in a step, kRowsAtOnce batch rows together: hyper cell, embeddings, scales, main cell; and
// back.
#pragma once

#include "hyper_lstm_cell.h"

namespace hyperfast {
namespace HF_ISA {

// Memory of one block of rows. [kRowsAtOnce] each.
template <class T>
struct Block {
  CellRow<T> main[kRowsAtOnce], hyper[kRowsAtOnce];
  T *gates, *hyper_gates;        // [gates * hp], [gates * kp]
  T *c, *hyper_c, *h, *hyper_h;  // [cp], [hyper_cp], [hp], [kp]: the states before; new ones in backward
  T *c_new, *h_new, *hyper_c_new, *hyper_h_new;
  T *z, *dz;             // [zp]
  T *scale_h, *scale_x;  // [gates * hp]
  T* differences;        // [hp]
  T *dh, *hyper_dh;      // [hp], [kp]
  char* end;

  Block(const Sizes<T>& s, bool backward, char* memory) {
    Arena arena{memory};
    const auto take = [&](int64_t n) { return arena.take<T>(kRowsAtOnce * n); };
    const auto cell = [&](CellRow<T>* rows, T*& gates, int64_t up) {
      gates = take(s.gates * up);
      T *hat = take(s.norms * up), *shown = take(up), *keep = take(up);
      for (int64_t i = 0; i < kRowsAtOnce; ++i)
        rows[i] = {gates + i * s.gates * up, hat + i * s.norms * up, shown + i * up, keep + i * up, {}};
    };
    cell(main, gates, s.hp);
    cell(hyper, hyper_gates, s.kp);
    z = take(s.zp);
    if (backward) {
      c = take(s.cp), h = take(s.hp), c_new = take(s.cp), h_new = take(s.hp), dh = take(s.hp);
      hyper_c = take(s.hyper_cp), hyper_h = take(s.kp), hyper_c_new = take(s.hyper_cp), hyper_h_new = take(s.kp);
      hyper_dh = take(s.kp);
      dz = take(s.zp);
      scale_h = take(s.main), scale_x = take(s.main), differences = take(s.hp);
    }
    end = arena.at;
  }
};

template <class T>
static int64_t block_bytes(const HyperLstmRun& r) {
  return Block<T>(Sizes<T>(r.l), r.backward, reinterpret_cast<char*>(64)).end - reinterpret_cast<char*>(64);
}

// The two cells of a layer, as the rows see them.
template <class T>
struct Cells {
  CellShape<T> main, hyper;
  Vectors<T> vectors;

  Cells(const HyperLstmRun& r, const Sizes<T>& s) : vectors(Vectors<T>::at(r.vectors, s)) {
    const T forget = T(r.l.forget_bias);
    main = {r.l.cell, s.units, s.hp, vectors.main, r.l.weight[kLnWeight] != nullptr, forget};
    hyper = {r.l.cell, s.hyper, s.kp, vectors.hyper, r.l.weight[kHyperLnWeight] != nullptr, forget};
  }
};

// gates[row][unit] += scale * with, where scale[row][unit] = sum over elements of z[row] map[element][unit].
template <class T>
struct Scale {
  const T* z;
  int64_t z_row;
  const T* map;
  int64_t length;
  const T* with;  // null: 1
  int64_t with_row;
  T* gates;
  T* scale;  // null: not kept
  int64_t gates_row;

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t row, int64_t panel) const {
    constexpr int64_t lanes = kPanel<T>;
    const T* from[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) from[i] = z + (row + i) * z_row;
    Tile<T, MR, NP> tile = {};
    multiply<1>(tile, from, map + panel * lanes * length, lanes * length, length, length, 0);
    HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) {
      const int64_t unit = panel * lanes + j * kLanes<T>;
      T* to = gates + (row + i) * gates_row + unit;
      const Vec<T> d = tile.v[i][j];
      store(to, load(to) + (with ? d * load(with + (row + i) * with_row + unit) : d));
      if (scale) store(scale + (row + i) * gates_row + unit, d);
    }
  }
  __attribute__((always_inline)) inline void finish(int64_t, int) const {}
};

// Where a block's operands lie: rows of products, [width] apart, and of states.
template <class T>
struct Operands {
  const T *products, *inputs;                    // W h and W x of the block's first row
  const T *c, *hyper_c, *hyper_h;                // before, [cp], [hyper_cp] and [kp] apart
  T *c_new, *h_new, *hyper_c_new, *hyper_h_new;  // may be those
};

template <class T>
static void embed(const HyperLstmRun& r, const Sizes<T>& s, const Cells<T>& cells, const T* hyper_h, T* z, int64_t n) {
  const Rows<T> work{hyper_h, s.kp, s.hyper, 0, static_cast<const T*>(r.packed_z), s.hyper, z, s.zp, false};
  for_tiles(work, s.zp / kPanel<T>, n);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t k = 0; k < s.zp; k += kLanes<T>)
      store(z + i * s.zp + k, load(z + i * s.zp + k) + load(cells.vectors.embedding + k));
}

// Rows [b, b + n) of a step.
template <class T>
static void advance(const HyperLstmRun& r, const Sizes<T>& s, const Cells<T>& cells, const HyperLstmStep& step,
                    int64_t b, int64_t n, const Operands<T>& o, Block<T>& block) {
  constexpr int64_t lanes = kLanes<T>;
  const HyperLstmLayer& l = r.l;
  const auto start = [&](T* gates, int64_t i, int64_t at, int64_t length, const T* bias, bool with_products) {
    const T *products = o.products + i * s.width + at, *inputs = o.inputs + i * s.width + at;
    for (int64_t u = 0; u < length; u += lanes)
      store(gates + u, with_products ? load(products + u) + load(inputs + u) + load(bias + u) : load(bias + u));
  };
  if (s.scaled()) {
    if (l.previous) embed(r, s, cells, o.hyper_h, block.z, n);
    for (int64_t i = 0; i < n; ++i) {
      start(block.hyper[i].gates, i, s.main, s.gates * s.kp, cells.hyper.v.bias, true);
      if (l.hyper_drop > 0)
        fill_keep(block.hyper[i].keep, s.hyper, l.seed, 2 * l.layer + 1, l.hyper_drop, step.t, b + i);
      cell_forward(block.hyper[i], cells.hyper, o.hyper_c + i * s.hyper_cp, o.hyper_c_new + i * s.hyper_cp,
                   o.hyper_h_new + i * s.kp, l.hyper_drop > 0);
    }
    if (!l.previous) embed(r, s, cells, o.hyper_h_new, block.z, n);
  }
  for (int64_t i = 0; i < n; ++i) start(block.main[i].gates, i, 0, s.main, cells.main.v.bias, !s.scaled());
  for (int64_t map = 0; s.scaled() && map < s.maps; ++map) {
    const int64_t kind = map / s.gates, at = map % s.gates * s.hp;
    const T* with = kind == 0 ? o.products + at : kind == 1 ? o.inputs + at : nullptr;
    T* kept = !r.backward || kind == 2 ? nullptr : (kind == 0 ? block.scale_h : block.scale_x) + at;
    const Scale<T> work{block.z + map * s.embedding,
                        s.zp,
                        static_cast<const T*>(r.packed_d) + map * s.embedding * s.hp,
                        s.embedding,
                        with,
                        s.width,
                        block.gates + at,
                        kept,
                        s.main};
    for_tiles(work, s.hp / kPanel<T>, n);
  }
  for (int64_t i = 0; i < n; ++i) {
    if (l.drop > 0) fill_keep(block.main[i].keep, s.units, l.seed, 2 * l.layer, l.drop, step.t, b + i);
    cell_forward(block.main[i], cells.main, o.c + i * s.cp, o.c_new + i * s.cp, o.h_new + i * s.hp, l.drop > 0);
  }
}

// ---- backward -------------------------------------------------------------------------------------

// Gradients through one map: dz[row][element] = sum over units of d * map, and map's own, += sum over rows of z * d.
// d [kRowsAtOnce][up], its missing rows zero.
template <class T>
static void map_backward(const T* d, int64_t up, const T* map, T* map_gradient, const T* z, T* dz, int64_t z_row,
                         int64_t elements) {
  constexpr int64_t lanes = kPanel<T>;
  for (int64_t e = 0; e < elements; ++e) {
    T factor[kRowsAtOnce];
    HF_UNROLL for (int i = 0; i < kRowsAtOnce; ++i) factor[i] = z[i * z_row + e];
    Vec<T> sum[kRowsAtOnce] = {};
    for (int64_t u = 0; u < up; u += lanes) {
      const int64_t at = (u * elements) + e * lanes;
      HF_UNROLL for (int j = 0; j < kRegs; ++j) {
        const Vec<T> m = load(map + at + j * kLanes<T>);
        Vec<T> gradient = load(map_gradient + at + j * kLanes<T>);
        HF_UNROLL for (int i = 0; i < kRowsAtOnce; ++i) {
          const Vec<T> v = load(d + i * up + u + j * kLanes<T>);
          sum[i] += v * m;
          gradient += factor[i] * v;
        }
        store(map_gradient + at + j * kLanes<T>, gradient);
      }
    }
    HF_UNROLL for (int i = 0; i < kRowsAtOnce; ++i) dz[i * z_row + e] = sum_of_lanes<T>(sum[i]);
  }
}

// to[panel][row][lanes] = values, [length] of one row.
template <class T>
HF_INLINE void into_panels(T* panels, int64_t stride, int64_t row, const T* values, int64_t length) {
  constexpr int64_t lanes = kPanel<T>;
  for (int64_t u = 0; u < length; u += lanes)
    HF_UNROLL for (int j = 0; j < kRegs; ++j)
        store(panels + u / lanes * stride + row * lanes + j * kLanes<T>, load(values + u + j * kLanes<T>));
}

// Gradients of scales, maps and embeddings of a block whose gates hold those of the pre-activations; the gradient of
// the embedded hyper state is added to `hyper_dh`.
template <class T>
static void scales_backward(const HyperLstmRun& r, const Sizes<T>& s, const HyperLstmStep& step, int64_t b, int64_t n,
                            const Operands<T>& o, Block<T>& block, const Slab<T>& slab, const T* embedded,
                            T* hyper_dh) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t stride = panel_stride<T>(r), hp = s.hp;
  for (int64_t i = n; i < kRowsAtOnce; ++i) {
    for (int64_t k = 0; k < s.zp; ++k) block.z[i * s.zp + k] = T(0);
    for (int64_t u = 0; u < hp; ++u) block.differences[i * hp + u] = T(0);
  }
  for (int64_t k = 0; k < kRowsAtOnce * s.zp; ++k) block.dz[k] = T(0);
  for (int64_t map = 0; map < s.maps; ++map) {
    const int64_t kind = map / s.gates, at = map % s.gates * hp;
    for (int64_t i = 0; i < n; ++i) {
      const T *d = block.gates + i * s.main + at, *with = (kind == 0 ? o.products : o.inputs) + i * s.width + at;
      T* to = block.differences + i * hp;
      for (int64_t u = 0; u < hp; u += lanes) store(to + u, kind == 2 ? load(d + u) : load(d + u) * load(with + u));
    }
    const int64_t offset = map * s.embedding * hp;
    map_backward(block.differences, hp, static_cast<const T*>(r.packed_d) + offset, slab.d + offset,
                 block.z + map * s.embedding, block.dz + map * s.embedding, s.zp, s.embedding);
  }
  for (int64_t i = 0; i < n; ++i) {
    T *scale_h = block.scale_h + i * s.main, *scale_x = block.scale_x + i * s.main, *d = block.gates + i * s.main;
    for (int64_t u = 0; u < s.main; u += lanes) {
      store(scale_h + u, load(scale_h + u) * load(d + u));
      store(scale_x + u, load(scale_x + u) * load(d + u));
    }
    into_panels(static_cast<T*>(r.panels_g), stride, step.in_chunk + b + i, scale_h, s.main);
    into_panels(static_cast<T*>(r.panels_gx), stride, step.in_chunk + b + i, scale_x, s.main);
    const T* dz = block.dz + i * s.zp;
    for (int64_t k = 0; k < s.zp; k += lanes)
      store(slab.vectors.embedding + k, load(slab.vectors.embedding + k) + load(dz + k));
    for (int64_t e = 0; e < s.embeddings; ++e)
      for (int64_t k = 0; k < s.kp; k += lanes) {
        T* sum = slab.z + e * s.kp + k;
        store(sum, load(sum) + dz[e] * load(embedded + i * s.kp + k));
      }
  }
  const Rows<T> work{block.dz,     s.zp,     s.embeddings, 0,   static_cast<const T*>(r.back_z),
                     s.embeddings, hyper_dh, s.kp,         true};
  for_tiles(work, s.kp / kPanel<T>, n);
}

// state[i] <- rows [row, row + n) of `data`, padded.
template <class T>
static void load_rows(T* state, const void* data, DType type, int64_t row, int64_t n, int64_t units) {
  load_padded(state, element(data, type, row * units), type, n, units);
}

// to[i] += rows of `data`, if there are any.
template <class T>
static void add_rows(T* to, const void* data, DType type, int64_t row, int64_t n, int64_t units, T* scratch) {
  if (!data) return;
  for (int64_t i = 0; i < n; ++i) {
    load_padded(scratch, element(data, type, (row + i) * units), type, 1, units);
    for (int64_t u = 0; u < padded<T>(units); u += kLanes<T>)
      store(to + i * padded<T>(units) + u, load(to + i * padded<T>(units) + u) + load(scratch + u));
  }
}

// Rows [b, b + n) of a step; row_before: where the step before has its first row, -1: nowhere.
template <class T>
static void retreat(const HyperLstmRun& r, const Sizes<T>& s, const Cells<T>& cells, const HyperLstmStep& step,
                    int64_t row_before, int64_t b, int64_t n, Block<T>& block, const Slab<T>& slab) {
  const HyperLstmLayer& l = r.l;
  const int64_t stride = panel_stride<T>(r);
  const bool first = row_before < 0;
  const auto before = [&](int k) { return first ? r.state[k] : static_cast<const void*>(r.out[k]); };
  const int64_t at = (first ? 0 : row_before) + b;
  load_rows(block.c, before(1), l.data, at, n, s.cells);
  if (s.scaled()) {
    load_rows(block.hyper_h, before(2), l.data, at, n, s.hyper);
    load_rows(block.hyper_c, before(3), l.data, at, n, s.hyper_cells);
  }
  const Operands<T> o{static_cast<const T*>(r.saved) + (step.row + b) * s.width,
                      static_cast<const T*>(r.inputs) + (step.in_chunk + b) * s.width,
                      block.c,
                      block.hyper_c,
                      block.hyper_h,
                      block.c_new,
                      block.h_new,
                      block.hyper_c_new,
                      block.hyper_h_new};
  advance(r, s, cells, step, b, n, o, block);
  T *dh = static_cast<T*>(r.h) + b * s.hp, *dc = static_cast<T*>(r.c) + b * s.cp;
  add_rows(dh, r.grad[0], l.data, step.row + b, n, s.units, block.dh);
  add_rows(dc, r.grad[1], l.data, step.row + b, n, s.cells, block.dh);
  for (int64_t i = 0; i < n; ++i)
    cell_backward(block.main[i], cells.main, block.c + i * s.cp, dh + i * s.hp, dc + i * s.cp, l.drop > 0,
                  slab.vectors.main);
  if (!s.scaled()) {
    for (int64_t i = 0; i < n; ++i)
      into_panels(static_cast<T*>(r.panels_g), stride, step.in_chunk + b + i, block.main[i].gates, s.main);
    return;
  }
  T *hyper_dh = static_cast<T*>(r.hyper_h) + b * s.kp, *hyper_dc = static_cast<T*>(r.hyper_c) + b * s.hyper_cp;
  add_rows(hyper_dh, r.grad[2], l.data, step.row + b, n, s.hyper, block.hyper_dh);
  add_rows(hyper_dc, r.grad[3], l.data, step.row + b, n, s.hyper_cells, block.hyper_dh);
  if (!l.previous) scales_backward(r, s, step, b, n, o, block, slab, block.hyper_h_new, hyper_dh);
  for (int64_t i = 0; i < n; ++i) {
    cell_backward(block.hyper[i], cells.hyper, block.hyper_c + i * s.hyper_cp, hyper_dh + i * s.kp,
                  hyper_dc + i * s.hyper_cp, l.hyper_drop > 0, slab.vectors.hyper);
    into_panels(static_cast<T*>(r.panels_g) + s.main / kPanel<T> * stride, stride, step.in_chunk + b + i,
                block.hyper[i].gates, s.gates * s.kp);
  }
  // What the products with the weights add to, see backward_state.
  for (int64_t u = 0; u < n * s.kp; u += kLanes<T>) store(hyper_dh + u, splat(T(0)));
  if (l.previous) scales_backward(r, s, step, b, n, o, block, slab, block.hyper_h, hyper_dh);
}

}  // namespace HF_ISA
}  // namespace hyperfast
