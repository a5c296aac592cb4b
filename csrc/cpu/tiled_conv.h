// Memory and products that tiled_conv's phases share. Sizes of one slice or tile are short: S = n_in * taps values that
// a tile has for one o, M = n_out * taps, Z the embedding, Z1 = Z + 1 with the bias as its last column, d the hidden
// size.
#pragma once

#include "../tiled_conv.h"
#include "common/arena.h"
#include "common/product.h"

namespace hyperfast {
namespace HF_ISA {

// Tiles that a task takes at once: their embeddings, gradients and, forward, a panel pair of the fold stay in L1 and
// L2.
constexpr int64_t kTiles = 48;

template <class T>
HF_INLINE int64_t panels_of(int64_t width) {
  return (width + kPanel<T> - 1) / kPanel<T>;
}

// The memory that all threads of a call share, [panel][row][lanes] where it says panels.
template <class T>
struct Shared {
  int64_t slice, rows, z1, in_panels, z_panels, hidden_panels, slice_panels;  // S, M, Z1, panels of Z1, Z, d, S
  T* weight_out;                                                              // [M][d]
  T* bias_out;                                                                // [M]
  T* weight_in;                 // [n_in] panels of Z1 [d]: the last column bias_in
  T* fold;                      // panels of Z1 [n_out * S]: V, and c as its last column
  T* packed;                    // forward: [n_out] panels of S [Z1 in whole panels]
  T* embeddings;                // backward: panels of Z [count]
  T* gfold;                     // backward: [n_in] panels of Z1 [M]
  T* weight_out_panels;         // backward: panels of d [M]
  T* weight_in_transposed;      // backward: [n_in] panels of d [Z1]
  int64_t *fold_at, *slice_at;  // where row m of slice i = 0 lies in fold, row (i, q) of o = 0 in gfold
  char* end;

  Shared(const TiledConvProblem& p, void* memory) {
    constexpr int64_t lanes = kPanel<T>;
    slice = p.n_in * p.taps;
    rows = p.n_out * p.taps;
    z1 = p.embedding + 1;
    in_panels = panels_of<T>(z1);
    z_panels = panels_of<T>(p.embedding);
    hidden_panels = panels_of<T>(p.hidden);
    slice_panels = panels_of<T>(slice);
    const bool weights = p.backward && p.want_weights;
    Arena arena{static_cast<char*>(memory)};
    weight_out = arena.take<T>(rows * p.hidden);
    bias_out = arena.take<T>(rows);
    weight_in = arena.take<T>(p.n_in * in_panels * p.hidden * lanes);
    fold = arena.take<T>(in_panels * p.n_out * slice * lanes);
    packed = arena.take<T>(p.backward ? 0 : p.n_out * slice_panels * in_panels * lanes * lanes);
    embeddings = arena.take<T>(weights ? z_panels * p.count * lanes : 0);
    gfold = arena.take<T>(weights ? p.n_in * in_panels * rows * lanes : 0);
    weight_out_panels = arena.take<T>(weights ? hidden_panels * rows * lanes : 0);
    weight_in_transposed = arena.take<T>(weights ? p.n_in * hidden_panels * z1 * lanes : 0);
    fold_at = arena.take<int64_t>(rows);
    slice_at = arena.take<int64_t>(slice);
    end = arena.at;
  }
};

// c[row] + panel * c_stride (+)= sum over k of A(row, k) B[k], for rows and panels of for_tiles. A(row, .): STEP 1,
// rows `a_stride` apart; STEP kPanel, a lane of panels `a_stride` apart. Row r of c lies at c_at[r], without it at r *
// lanes.
template <int STEP, class T>
struct PanelProduct {
  const T* a;
  int64_t a_stride;
  const T* b;
  int64_t b_stride, length;
  T* c;
  int64_t c_stride;
  const int64_t* c_at;
  bool add;

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t row, int64_t panel) const {
    constexpr int64_t lanes = kPanel<T>;
    const T* from[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) from[i] =
        STEP == 1 ? a + (row + i) * a_stride : a + (row + i) / lanes * a_stride + (row + i) % lanes;
    Tile<T, MR, NP> tile = {};
    multiply_long<STEP>(tile, from, b + panel * b_stride, b_stride, length, length, 0);
    HF_UNROLL for (int i = 0; i < MR; ++i) {
      T* to = c + (c_at ? c_at[row + i] : (row + i) * lanes) + panel * c_stride;
      HF_UNROLL for (int p = 0; p < NP; ++p) HF_UNROLL for (int j = 0; j < kRegs; ++j) {
        T* at = to + p * c_stride + j * kLanes<T>;
        const Vec<T> value = tile.v[i][p * kRegs + j];
        store(at, add ? load(at) + value : value);
      }
    }
  }
  __attribute__((always_inline)) inline void finish(int64_t, int) const {}
};

// The embedding of a tile.
template <class T>
HF_INLINE void load_embedding(const TiledConvProblem& p, const TiledConvTile& tile, int64_t first, int64_t n, T* to) {
  load_row(to, element(p.zs[tile.kernel], p.data, tile.index * p.embedding + first), p.data, n);
}

}  // namespace HF_ISA
}  // namespace hyperfast
