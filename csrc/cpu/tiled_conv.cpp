// Kernels assembled from generated tiles, every tile at once: the generator's two linear layers are folded into one,
// and one product of all embeddings with the fold is written straight into the convolutions' kernels.
//
// FLOPs of WRN 40-2 (966 tiles): 19 M for the fold, 285 M for the product. Bytes: 8.9 MB of kernels written once, 0.2
// MB of embeddings read once; the fold (0.6 MB) is packed once and read from L2, a pair of its panels (8 KB) serves
// kTiles tiles from L1.
#include "tiled_conv.h"

#include "tiled_conv_backward.h"

namespace hyperfast {
namespace HF_ISA {

// ---- the fold -----------------------------------------------------------------------------------

// What every phase reads, converted once. weight_in is packed by the phase that folds it.
template <class T>
static void load_shared(const TiledConvProblem& p) {
  constexpr int64_t lanes = kPanel<T>;
  const Shared<T> m(p, p.shared);
  load_row(m.weight_out, p.weight_out, p.weights, m.rows * p.hidden);
  load_row(m.bias_out, p.bias_out, p.weights, m.rows);
  for (int64_t row = 0; row < m.rows; ++row) m.fold_at[row] = (row / p.taps * m.slice + row % p.taps) * lanes;
  for (int64_t s = 0; s < m.slice; ++s) m.slice_at[s] = (s / p.taps * m.in_panels * m.rows + s % p.taps) * lanes;
  if (!p.backward || !p.want_weights) return;
  pack_rows(m.weight_out_panels, m.weight_out, m.rows, p.hidden);
  for (int64_t panel = 0; panel < m.z_panels; ++panel)
    for (int64_t t = 0; t < p.count; ++t) {
      T* to = m.embeddings + (panel * p.count + t) * lanes;
      const int64_t n = min64(lanes, p.embedding - panel * lanes);
      load_embedding(p, p.tiles[t], panel * lanes, n, to);
      for (int64_t lane = n; lane < lanes; ++lane) to[lane] = 0;
    }
}

// weight_in[i] [d, Z] with bias_in[i] behind it, in panels [panel][d][lanes]; backward also [panel of d][Z1][lanes].
template <class T>
static void pack_weight_in(const TiledConvProblem& p, const Shared<T>& m, int64_t i) {
  constexpr int64_t lanes = kPanel<T>;
  T* own = m.weight_in + i * m.in_panels * p.hidden * lanes;
  for (int64_t h = 0; h < p.hidden; ++h) {
    const int64_t row = i * p.hidden + h;
    for (int64_t panel = 0; panel < m.in_panels; ++panel) {
      T* to = own + (panel * p.hidden + h) * lanes;
      const int64_t z = panel * lanes, n = min64(lanes, p.embedding - z);
      load_row(to, element(p.weight_in, p.weights, row * p.embedding + z), p.weights, n);
      for (int64_t lane = n; lane < lanes; ++lane) to[lane] = 0;
      if (n < lanes) load_row(to + n, element(p.bias_in, p.weights, row), p.weights, 1);
    }
  }
  if (!p.backward || !p.want_weights) return;
  T* transposed = m.weight_in_transposed + i * m.hidden_panels * m.z1 * lanes;
  for (int64_t panel = 0; panel < m.hidden_panels; ++panel)
    for (int64_t z = 0; z < m.z1; ++z)
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t h = panel * lanes + lane;
        transposed[(panel * m.z1 + z) * lanes + lane] =
            h < p.hidden ? own[(z / lanes * p.hidden + h) * lanes + z % lanes] : T(0);
      }
}

template <class T>
static void fold_slices(const TiledConvProblem& p, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kPanel<T>;
  const Shared<T> m(p, p.shared);
  const int64_t panel = p.n_out * m.slice * lanes;
  for (int64_t i = begin; i < end; ++i) {
    pack_weight_in(p, m, i);
    T* own = m.fold + i * p.taps * lanes;
    const int64_t b_stride = p.hidden * lanes;
    const PanelProduct<1, T> product{m.weight_out, p.hidden,  m.weight_in + i * m.in_panels * b_stride,
                                     b_stride,     p.hidden,  own,
                                     panel,        m.fold_at, false};
    for_tiles(product, m.in_panels, m.rows);
    T* bias = own + p.embedding / lanes * panel + p.embedding % lanes;
    for (int64_t row = 0; row < m.rows; ++row) bias[m.fold_at[row]] += m.bias_out[row];
  }
}

// fold, panels of Z1 [n_out * S] -> packed, [n_out] panels of S [Z1 in whole panels]: squares of lanes x lanes.
template <class T>
static void pack_slices(const TiledConvProblem& p, int64_t begin, int64_t end) {
  constexpr int64_t lanes = kPanel<T>;
  const Shared<T> m(p, p.shared);
  for (int64_t o = begin; o < end; ++o)
    for (int64_t s = 0; s < m.slice_panels; ++s)
      for (int64_t z = 0; z < m.in_panels; ++z)
        pack_transposed(m.packed + ((o * m.slice_panels + s) * m.in_panels + z) * lanes * lanes,
                        m.fold + (z * p.n_out * m.slice + o * m.slice + s * lanes) * lanes,
                        min64(lanes, m.slice - s * lanes), lanes);
}

// ---- the kernels --------------------------------------------------------------------------------

template <class T>
struct Assemble {
  const TiledConvProblem& p;
  const Shared<T>& m;
  const TiledConvTile* tiles;
  const T* z;  // [kTiles][Z]
  void* const* kernels;
  T* squares;  // [kTiles][kLanes<T>], or null
  bool in_place;

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t row, int64_t panel) const {
    const int64_t stride = m.in_panels * kPanel<T> * kPanel<T>;
    const T* b = m.packed + panel * stride;
    void* to[MR][NP];
    int64_t width[NP];
    HF_UNROLL for (int n = 0; n < NP; ++n) {
      const int64_t o = (panel + n) / m.slice_panels, first = (panel + n) % m.slice_panels * kPanel<T>;
      width[n] = min64(kPanel<T>, m.slice - first);
      HF_UNROLL for (int i = 0; i < MR; ++i) {
        const TiledConvTile& tile = tiles[row + i];
        to[i][n] = element(kernels[tile.kernel], p.data, tile.offset + o * tile.stride + first);
        __builtin_prefetch(to[i][n], 1);  // 6 x 2 lines in other pages: here while the product runs
      }
    }
    const T* a[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) a[i] = z + (row + i) * p.embedding;
    Tile<T, MR, NP> c;
    HF_UNROLL for (int n = 0; n < NP; ++n) HF_UNROLL for (int j = 0; j < kRegs; ++j) {
      const Vec<T> bias = load(b + n * stride + p.embedding * kPanel<T> + j * kLanes<T>);
      HF_UNROLL for (int i = 0; i < MR; ++i) c.v[i][n * kRegs + j] = bias;
    }
    multiply_long(c, a, b, stride, p.embedding, p.embedding, 0);
    HF_UNROLL for (int n = 0; n < NP; ++n) HF_UNROLL for (int i = 0; i < MR; ++i) {
      if (in_place && width[n] == kPanel<T>) {
        HF_UNROLL for (int j = 0; j < kRegs; ++j)
            store(static_cast<T*>(to[i][n]) + j * kLanes<T>, c.v[i][n * kRegs + j]);
      } else {
        T values[kPanel<T>];
        HF_UNROLL for (int j = 0; j < kRegs; ++j) store(values + j * kLanes<T>, c.v[i][n * kRegs + j]);
        store_row(to[i][n], p.data, values, width[n]);
      }
    }
    if (!squares) return;
    HF_UNROLL for (int i = 0; i < MR; ++i) {
      T* at = squares + (row + i) * kLanes<T>;
      Vec<T> sum = load(at);
      HF_UNROLL for (int j = 0; j < NP * kRegs; ++j) sum += c.v[i][j] * c.v[i][j];
      store(at, sum);
    }
  }
  __attribute__((always_inline)) inline void finish(int64_t, int) const {}
};

template <class T>
static int64_t assemble_scratch(const TiledConvProblem& p) {
  return kTiles * (p.embedding + kLanes<T>)*int64_t(sizeof(T)) + 128;
}

template <class T>
static void assemble_tiles(const TiledConvProblem& p, int64_t begin, int64_t end, void* const* kernels, double* squares,
                           void* scratch) {
  const Shared<T> m(p, p.shared);
  Arena arena{static_cast<char*>(scratch)};
  T* z = arena.take<T>(kTiles * p.embedding);
  T* sums = arena.take<T>(kTiles * kLanes<T>);
  const bool in_place = p.data == (sizeof(T) == 8 ? DType::f64 : DType::f32);
  for (int64_t t = begin; t < end; t += kTiles) {
    const int64_t n = min64(kTiles, end - t);
    for (int64_t i = 0; i < n; ++i) load_embedding(p, p.tiles[t + i], 0, p.embedding, z + i * p.embedding);
    for (int64_t i = 0; i < n * kLanes<T>; ++i) sums[i] = 0;
    const Assemble<T> work{p, m, p.tiles + t, z, kernels, squares ? sums : nullptr, in_place};
    for_tiles(work, p.n_out * m.slice_panels, n);
    for (int64_t i = 0; squares && i < n; ++i) squares[t + i] = double(sum_of_lanes<T>(load(sums + i * kLanes<T>)));
  }
}

// ---- the table ----------------------------------------------------------------------------------

static bool is_double(const TiledConvProblem& p) { return p.weights == DType::f64; }

static int64_t shared_bytes(const TiledConvProblem& p) {
  char* const none = reinterpret_cast<char*>(64);
  return is_double(p) ? Shared<double>(p, none).end - none : Shared<float>(p, none).end - none;
}
template <class T>
static int64_t scratch_of(const TiledConvProblem& p) {
  if (!p.backward) return assemble_scratch<T>(p);
  return max64(embeddings_scratch<T>(p), max64(outputs_scratch<T>(p), inputs_scratch<T>(p)));
}
static int64_t scratch_bytes(const TiledConvProblem& p) {
  return is_double(p) ? scratch_of<double>(p) : scratch_of<float>(p);
}
static void load_all(const TiledConvProblem& p) { is_double(p) ? load_shared<double>(p) : load_shared<float>(p); }
static void fold(const TiledConvProblem& p, int64_t begin, int64_t end) {
  is_double(p) ? fold_slices<double>(p, begin, end) : fold_slices<float>(p, begin, end);
}
static void pack(const TiledConvProblem& p, int64_t begin, int64_t end) {
  is_double(p) ? pack_slices<double>(p, begin, end) : pack_slices<float>(p, begin, end);
}
static void assemble(const TiledConvProblem& p, int64_t begin, int64_t end, void* const* kernels, double* squares,
                     void* scratch) {
  is_double(p) ? assemble_tiles<double>(p, begin, end, kernels, squares, scratch)
               : assemble_tiles<float>(p, begin, end, kernels, squares, scratch);
}
static void to_embeddings(const TiledConvProblem& p, const TiledConvGradients& g, int64_t begin, int64_t end,
                          void* scratch) {
  is_double(p) ? embeddings<double>(p, g, begin, end, scratch) : embeddings<float>(p, g, begin, end, scratch);
}
static void to_outputs(const TiledConvProblem& p, const TiledConvGradients& g, int64_t begin, int64_t end,
                       void* scratch) {
  is_double(p) ? outputs<double>(p, g, begin, end, scratch) : outputs<float>(p, g, begin, end, scratch);
}
static void to_inputs(const TiledConvProblem& p, const TiledConvGradients& g, int64_t begin, int64_t end,
                      void* scratch) {
  is_double(p) ? inputs<double>(p, g, begin, end, scratch) : inputs<float>(p, g, begin, end, scratch);
}

extern const TiledConvKernels tiled_conv_kernels = {shared_bytes, scratch_bytes, load_all,   fold,     pack,
                                                    assemble,     to_embeddings, to_outputs, to_inputs};

}  // namespace HF_ISA
}  // namespace hyperfast
