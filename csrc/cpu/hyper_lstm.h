// Sizes, workspace and packed weights of the native HyperLSTM and HyperRNN.
#pragma once

#include "../hyper_lstm.h"
#include "common/arena.h"
#include "common/convert.h"
#include "common/product.h"

namespace hyperfast {
namespace HF_ISA {

constexpr int64_t kRowsAtOnce = 6;  // of the small products with embeddings

template <class T>
HF_INLINE int64_t padded(int64_t units) {
  return round_up(units, kPanel<T>);
}

template <class T>
struct Sizes {
  int64_t gates, inputs, units, hyper, embedding;
  int64_t maps, embeddings;              // maps to scales: kinds h, x, b of each gate; elements of all their embeddings
  int64_t norms, cells, hyper_cells;     // an LSTM's layer norms and units of c; 0 in an RNN
  int64_t ip, hp, kp, zp, cp, hyper_cp;  // in whole panels; zp: of all embeddings; cp: of c
  int64_t main, width;                   // of a row of products: the main cell's part, all of it

  explicit Sizes(const HyperLstmLayer& l)
      : gates(l.gates),
        inputs(l.inputs),
        units(l.units),
        hyper(l.hyper_units),
        embedding(l.embedding),
        maps(3 * l.gates),
        embeddings(maps * l.embedding),
        norms(l.cell == HyperLstmCell::lstm ? 5 : 0),
        cells(norms ? l.units : 0),
        hyper_cells(norms ? l.hyper_units : 0),
        ip(padded<T>(l.inputs)),
        hp(padded<T>(l.units)),
        kp(padded<T>(l.hyper_units)),
        zp(padded<T>(embeddings)),
        cp(padded<T>(cells)),
        hyper_cp(padded<T>(hyper_cells)),
        main(gates * hp),
        width(gates * (hp + kp)) {}
  bool scaled() const { return hyper > 0; }
};

// ---- vectors: what is as long as a gate -----------------------------------------------------------

// A cell's bias and layer norm, or the sums of their gradients.
template <class T>
struct CellVectors {
  T* bias;       // [gates][up]
  T* ln_weight;  // [norms][up]
  T* ln_bias;    // [norms][up]
};

template <class T>
struct Vectors {
  CellVectors<T> main, hyper;
  T* embedding;  // [zp] biases of the embeddings, in the order kind, gate, element; kinds h, x, b

  Vectors(Arena& arena, const Sizes<T>& s) {
    const auto cell = [&](int64_t up) {
      return CellVectors<T>{arena.take<T>(s.gates * up), arena.take<T>(s.norms * up), arena.take<T>(s.norms * up)};
    };
    main = cell(s.hp);
    hyper = cell(s.kp);
    embedding = arena.take<T>(s.zp);
  }
  static Vectors at(void* memory, const Sizes<T>& s) {
    Arena arena{static_cast<char*>(memory)};
    return Vectors(arena, s);
  }
};

// The sums of a slab of batch rows over a chunk of steps: gradients of all that is not a product over all rows.
template <class T>
struct Slab {
  T* begin;
  Vectors<T> vectors;
  T* z;  // [zp][kp] of the embeddings' weights
  T* d;  // [kind][gate][embedding][hp] of the maps to scales
  T* end;

  Slab(char* memory, const Sizes<T>& s) : Slab(Arena{memory}, s) {}

 private:
  Slab(Arena arena, const Sizes<T>& s)
      : begin(reinterpret_cast<T*>(arena.at)),
        vectors(arena, s),
        z(arena.take<T>(s.zp * s.kp)),
        d(arena.take<T>(s.embeddings * s.hp)),
        end(reinterpret_cast<T*>(arena.at)) {}
};
template <class T>
static int64_t slab_bytes(const Sizes<T>& s) {
  const Slab<T> slab(reinterpret_cast<char*>(64), s);
  return reinterpret_cast<char*>(slab.end) - reinterpret_cast<char*>(slab.begin);
}

// Values from panel to panel of a chunk: an odd number of cache lines, so that panels do not meet in a cache's sets.
template <class T>
HF_INLINE int64_t panel_stride(const HyperLstmRun& r) {
  return (r.chunk_rows | 1) * kPanel<T>;
}

// ---- workspace ------------------------------------------------------------------------------------

template <class T>
static int64_t layout_of(HyperLstmRun& r, char* base) {
  const Sizes<T> s(r.l);
  Arena arena{base};
  const auto take = [&](int64_t n) -> void* { return arena.take<T>(n); };
  {
    Arena at = arena;
    r.vectors = at.at;
    Vectors<T>(at, s);
    arena = at;
  }
  r.packed_z = take(s.zp * s.kp);
  r.packed_d = take(s.embeddings * s.hp);
  r.inputs = take(r.chunk_rows * s.width);
  r.h = take(r.batch * s.hp);
  r.c = take(r.batch * s.cp);
  r.hyper_h = take(r.batch * s.kp);
  r.hyper_c = take(r.batch * s.hyper_cp);
  if (!r.direct) r.packed_x = take(s.width * s.inputs);
  if (!r.backward) {
    if (!r.direct) {
      r.packed_h = take(s.width * s.units);
      r.packed_hyper_h = take(s.gates * s.kp * s.hyper);
    }
    r.products = take(r.saved ? 0 : r.batch * s.width);
    return arena.at - base;
  }
  const auto panels = [&](int64_t width) { return take(width / kPanel<T> * panel_stride<T>(r)); };
  r.back_h = take(s.width * s.hp);
  r.back_hyper_h = take(s.gates * s.kp * s.kp);
  r.back_x = take(s.main * s.ip);
  r.back_hyper_x = take(s.gates * s.kp * s.ip);
  r.back_z = take(s.zp * s.kp);
  r.panels_g = panels(s.width);
  r.panels_gx = s.scaled() ? panels(s.main) : r.panels_g;
  r.panels_h = panels(s.hp);
  r.panels_hyper_h = panels(s.kp);
  r.panels_x = panels(s.ip);
  r.sum_h = take(s.width * s.hp);
  r.sum_hyper_h = take(s.gates * s.kp * s.kp);
  r.sum_x = take(s.width * s.ip);
  r.slab = arena.at;
  arena.at += (r.slabs + 1) * slab_bytes(s);
  return arena.at - base;
}

// ---- weights as they are stored -------------------------------------------------------------------

// A matrix [gates * units, row_stride] as it is stored, of which columns [column, column + in) are read.
struct Stored {
  const void* data;
  int64_t gates, units, in, row_stride, column;
};

HF_INLINE Stored weight_ih(const HyperLstmLayer& l) {
  return {l.weight[kWeightIh], l.gates, l.units, l.inputs, l.inputs, 0};
}
HF_INLINE Stored weight_hh(const HyperLstmLayer& l) {
  return {l.weight[kWeightHh], l.gates, l.units, l.units, l.units, 0};
}
// The hyper cell reads [h; x].
HF_INLINE Stored hyper_weight_h(const HyperLstmLayer& l) {
  return {l.weight[kHyperWeightIh], l.gates, l.hyper_units, l.units, l.units + l.inputs, 0};
}
HF_INLINE Stored hyper_weight_x(const HyperLstmLayer& l) {
  return {l.weight[kHyperWeightIh], l.gates, l.hyper_units, l.inputs, l.units + l.inputs, l.units};
}
HF_INLINE Stored hyper_weight_hh(const HyperLstmLayer& l) {
  return {l.weight[kHyperWeightHh], l.gates, l.hyper_units, l.hyper_units, l.hyper_units, 0};
}

template <class T>
static void load_padded(T* to, const void* from, DType type, int64_t count, int64_t units) {
  const int64_t up = padded<T>(units);
  for (int64_t i = 0; i < count; ++i) {
    if (from) load_row(to + i * up, element(from, type, i * units), type, units);
    for (int64_t u = from ? units : 0; u < up; ++u) to[i * up + u] = T(0);
  }
}

// ---- tasks -----------------------------------------------------------------------------------------

// Rows of x at once: converted ones stay in L1.
constexpr int64_t kInputRows = 24;
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

// ---- products of rows with packed weights ---------------------------------------------------------

// c[row][out] (+)= sum over k of a[row][k] w[out][k]. `a` lies in rows (chunk = length) or in panels (chunk = lanes).
template <class T>
struct Rows {
  const T* a;
  int64_t a_row, chunk, jump;
  const T* packed;
  int64_t length;
  T* c;
  int64_t c_row;
  bool add;
  int64_t panel_stride = length * kPanel<T>;

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t row, int64_t panel) const {
    constexpr int64_t lanes = kPanel<T>;
    const T* from[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) from[i] = a + (row + i) * a_row;
    Tile<T, MR, NP> tile = {};
    multiply_long(tile, from, packed + panel * panel_stride, panel_stride, length, chunk, jump);
    HF_UNROLL for (int i = 0; i < MR; ++i) HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) {
      T* to = c + (row + i) * c_row + panel * lanes + j * kLanes<T>;
      store(to, add ? load(to) + tile.v[i][j] : tile.v[i][j]);
    }
  }
  __attribute__((always_inline)) inline void finish(int64_t, int) const {}
};

// Long products go piece by piece, so that a piece of two panels (24 KB) stays in L1 for all rows.
constexpr int64_t kPieceBytes = 12288;

template <class T>
static void multiply_rows(const Rows<T>& whole, int64_t panels, int64_t rows) {
  constexpr int64_t lanes = kPanel<T>, piece = kPieceBytes / (lanes * int64_t(sizeof(T)));
  static_assert(piece % lanes == 0);
  for (int64_t panel = 0; panel < panels; panel += kPanelsAtOnce) {
    Rows<T> part = whole;
    part.c += panel * lanes;
    for (int64_t k = 0; k < whole.length; k += piece) {
      part.length = min64(piece, whole.length - k);
      part.chunk = min64(whole.chunk, part.length);
      part.a = whole.a + (whole.chunk == lanes ? k / lanes * whole.jump : k);
      part.packed = whole.packed + (panel * whole.length + k) * lanes;
      part.panel_stride = whole.length * lanes;
      part.add = whole.add || k > 0;
      for_tiles(part, min64(kPanelsAtOnce, panels - panel), rows);
    }
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
