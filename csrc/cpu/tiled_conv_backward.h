// Gradients of tiled_conv: of the embeddings, of the fold, and from there of both layers.
//
// FLOPs of WRN 40-2 (966 tiles): 285 M to the embeddings, 285 M to the fold, 19 M each to weight_out and weight_in (and
// 19 M for folding again). Bytes: the gradients of the kernels twice, once for each of the large products, as no thread
// keeps both a tile's gradient to the embedding and a slice's to the fold.
#pragma once

#include "tiled_conv.h"

namespace hyperfast {
namespace HF_ISA {

// A tile's gradient for slice o, that of the penalty included: [S], zeros behind it up to whole panels.
template <class T>
HF_INLINE void load_gradient(const TiledConvProblem& p, const TiledConvGradients& g, const TiledConvTile& tile,
                             int64_t o, int64_t n, T* to) {
  const int64_t at = tile.offset + o * tile.stride;
  if (const void* grad = g.grads[tile.kernel])
    load_row(to, element(grad, p.data, at), p.data, n);
  else
    for (int64_t i = 0; i < n; ++i) to[i] = 0;
  for (int64_t i = n; i < round_up(n, kPanel<T>); ++i) to[i] = 0;
  if (g.twice_gpenalty == 0) return;
  T value[kPanel<T>];
  for (int64_t done = 0; done < n; done += kPanel<T>) {
    const int64_t some = min64(kPanel<T>, n - done);
    load_row(value, element(g.kernels[tile.kernel], p.data, at + done), p.data, some);
    for (int64_t i = 0; i < some; ++i) to[done + i] += T(g.twice_gpenalty) * value[i];
  }
}

// A tile's gradient lies in n_out places far apart, which no hardware foresees: they are fetched so many tiles ahead.
constexpr int64_t kAhead = 4;
HF_INLINE void prefetch_gradient(const TiledConvProblem& p, const TiledConvGradients& g, int64_t t, int64_t end,
                                 int64_t o, int64_t n) {
  if (t + kAhead >= end) return;
  const TiledConvTile& tile = p.tiles[t + kAhead];
  const void* grad = g.grads[tile.kernel];
  if (!grad) return;
  const char* from = static_cast<const char*>(element(grad, p.data, tile.offset + o * tile.stride));
  for (int64_t line = 0; line < n * bytes_of(p.data); line += 64) __builtin_prefetch(from + line);
}

// ---- embeddings: gz[t] = sum over o and s of V[(o, s)] g[t, o, s] --------------------------------

template <class T>
static int64_t embeddings_scratch(const TiledConvProblem& p) {
  const int64_t panels = panels_of<T>(p.n_in * p.taps) + panels_of<T>(p.embedding);
  return kTiles * panels * kPanel<T> * int64_t(sizeof(T));
}

template <class T>
static void embeddings(const TiledConvProblem& p, const TiledConvGradients& g, int64_t begin, int64_t end,
                       void* scratch) {
  constexpr int64_t lanes = kPanel<T>;
  const Shared<T> m(p, p.shared);
  Arena arena{static_cast<char*>(scratch)};
  const int64_t width = m.slice_panels * lanes;
  T* gradient = arena.take<T>(kTiles * width);
  T* sums = arena.take<T>(kTiles * m.z_panels * lanes);
  const int64_t fold_stride = p.n_out * m.slice * lanes;
  for (int64_t t = begin; t < end; t += kTiles) {
    const int64_t n = min64(kTiles, end - t);
    for (int64_t o = 0; o < p.n_out; ++o) {
      for (int64_t i = 0; i < n; ++i) {
        prefetch_gradient(p, g, t + i, t + n, o, m.slice);
        load_gradient(p, g, p.tiles[t + i], o, m.slice, gradient + i * width);
      }
      const PanelProduct<1, T> product{
          gradient, width, m.fold + o * m.slice * lanes, fold_stride, m.slice, sums, kTiles * lanes, nullptr, o > 0};
      for_tiles(product, m.z_panels, n);
    }
    for (int64_t i = 0; i < n; ++i) {
      const TiledConvTile& tile = p.tiles[t + i];
      void* row = element(g.gzs[tile.kernel], p.data, tile.index * p.embedding);
      for (int64_t z = 0; z < p.embedding; z += lanes)
        store_row(element(row, p.data, z), p.data, sums + (z / lanes * kTiles + i) * lanes,
                  min64(lanes, p.embedding - z));
    }
  }
}

// ---- outputs: the fold's gradient for slices o, weight_out's and bias_out's ------------------------

template <class T>
static int64_t outputs_scratch(const TiledConvProblem& p) {
  const int64_t slice = panels_of<T>(p.n_in * p.taps) * kPanel<T>;
  const int64_t weight = p.taps * panels_of<T>(p.hidden) * kPanel<T>;
  return ((kSummed + 3) * slice + weight + round_up(p.taps, kPanel<T>)) * int64_t(sizeof(T));
}

// gfold[(o, i, q), z] = sum over t of g[t, o, i, q] z_t[z], and in the column behind Z the sum of g.
template <class T>
static void fold_gradient(const TiledConvProblem& p, const TiledConvGradients& g, const Shared<T>& m, int64_t o,
                          T* block, T* total, T* part, T* row) {
  constexpr int64_t lanes = kPanel<T>;
  T* own = m.gfold + o * p.taps * lanes;
  for (int64_t panel = 0; panel < p.n_in * m.in_panels; ++panel)
    for (int64_t i = 0; i < p.taps * lanes; ++i) own[panel * m.rows * lanes + i] = 0;
  for (int64_t s = 0; s < m.slice_panels * lanes; ++s) total[s] = 0;
  for (int64_t t = 0; t < p.count; t += kSummed) {
    const int64_t n = min64(kSummed, p.count - t);
    for (int64_t s = 0; s < m.slice_panels * lanes; ++s) part[s] = 0;
    for (int64_t i = 0; i < n; ++i) {
      prefetch_gradient(p, g, t + i, p.count, o, m.slice);
      load_gradient(p, g, p.tiles[t + i], o, m.slice, row);
      for (int64_t s = 0; s < m.slice; s += kLanes<T>) {
        const Vec<T> values = load(row + s);
        store(block + (s / lanes * kSummed + i) * lanes + s % lanes, values);
        store(part + s, load(part + s) + values);
      }
    }
    for (int64_t s = 0; s < m.slice; ++s) total[s] += part[s];
    const PanelProduct<int(lanes), T> product{
        block, kSummed * lanes, m.embeddings + t * lanes, p.count * lanes, n, own, m.rows * lanes, m.slice_at, true};
    for_tiles(product, m.z_panels, m.slice);
  }
  const int64_t bias = p.embedding / lanes * m.rows * lanes + p.embedding % lanes;
  for (int64_t s = 0; s < m.slice; ++s) own[m.slice_at[s] + bias] = total[s];
}

template <class T>
static void outputs(const TiledConvProblem& p, const TiledConvGradients& g, int64_t begin, int64_t end, void* scratch) {
  constexpr int64_t lanes = kPanel<T>;
  const Shared<T> m(p, p.shared);
  Arena arena{static_cast<char*>(scratch)};
  T* block = arena.take<T>(kSummed * m.slice_panels * lanes);
  T* total = arena.take<T>(m.slice_panels * lanes);
  T* part = arena.take<T>(m.slice_panels * lanes);
  T* row = arena.take<T>(m.slice_panels * lanes);
  T* weight = arena.take<T>(p.taps * m.hidden_panels * lanes);
  T* bias = arena.take<T>(p.taps);
  for (int64_t o = begin; o < end; ++o) {
    fold_gradient(p, g, m, o, block, total, part, row);
    // gweight_out[(o, q), h] = sum over i and z of gfold[(o, i, q), z] weight_in[i, h, z], the biases as column Z.
    for (int64_t i = 0; i < p.n_in; ++i) {
      const T* rows = m.gfold + (i * m.in_panels * m.rows + o * p.taps) * lanes;
      const T* transposed = m.weight_in_transposed + i * m.hidden_panels * m.z1 * lanes;
      for (int64_t z = 0; z < m.z1; z += lanes) {
        const PanelProduct<1, T> product{rows + z * m.rows,
                                         lanes,
                                         transposed + z * lanes,
                                         m.z1 * lanes,
                                         min64(lanes, m.z1 - z),
                                         weight,
                                         p.taps * lanes,
                                         nullptr,
                                         i + z > 0};
        for_tiles(product, m.hidden_panels, p.taps);
      }
    }
    for (int64_t q = 0; q < p.taps; ++q) {
      const int64_t row = o * p.taps + q;
      for (int64_t h = 0; h < p.hidden; h += lanes)
        store_row(element(g.gweight_out, p.weights, row * p.hidden + h), p.weights,
                  weight + (h / lanes * p.taps + q) * lanes, min64(lanes, p.hidden - h));
      bias[q] = 0;
      for (int64_t i = 0; i < p.n_in; ++i) bias[q] += total[i * p.taps + q];
    }
    store_row(element(g.gbias_out, p.weights, o * p.taps), p.weights, bias, p.taps);
  }
}

// ---- inputs: gweight_in[i, h, z] = sum over (o, q) of weight_out[o, q, h] gfold[(o, i, q), z] ------

template <class T>
static int64_t inputs_scratch(const TiledConvProblem& p) {
  return panels_of<T>(p.embedding + 1) * p.hidden * kPanel<T> * int64_t(sizeof(T)) + 64;
}

template <class T>
static void inputs(const TiledConvProblem& p, const TiledConvGradients& g, int64_t begin, int64_t end, void* scratch) {
  constexpr int64_t lanes = kPanel<T>;
  const Shared<T> m(p, p.shared);
  T* sums = static_cast<T*>(scratch);
  for (int64_t i = begin; i < end; ++i) {
    const PanelProduct<int(lanes), T> product{
        m.weight_out_panels, m.rows * lanes, m.gfold + i * m.in_panels * m.rows * lanes,
        m.rows * lanes,      m.rows,         sums,
        p.hidden * lanes,    nullptr,        false};
    for_tiles(product, m.in_panels, p.hidden);
    for (int64_t h = 0; h < p.hidden; ++h) {
      const int64_t row = i * p.hidden + h;
      for (int64_t z = 0; z < p.embedding; z += lanes)
        store_row(element(g.gweight_in, p.weights, row * p.embedding + z), p.weights, sums + (z * p.hidden + h * lanes),
                  min64(lanes, p.embedding - z));
      const int64_t z = p.embedding;
      store_row(element(g.gbias_in, p.weights, row), p.weights, sums + (z / lanes * p.hidden + h) * lanes + z % lanes,
                1);
    }
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
