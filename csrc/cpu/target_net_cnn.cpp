// Batched CNN on the CPU: a run of convolution, activation and max-pool layers, one image of one network at a
// time, so that everything between the layers stays in L1 and L2.
//
// Images lie pixel-major, [y][x][channels], with their zero padding. A kernel row of a pixel's patch is then one
// run of kw * channels neighbouring values, and the micro-kernel of common/product.h reads it as it is: rows are
// pixels, lanes are output channels. Pixels come in the order of the pooling windows, so that a window's values
// are neighbours, too. Layers with 3 or 5 taps a row, stride 1 and an even pool take two pixels at a time with fewer
// products: target_net_cnn_winograd.h. Whole-number weights and blocks with Inf or NaN do not.
//
// Backward goes through the windows' winners only: a list of (pixel, gradient) for every output channel. Both
// products run along a patch's runs, a quarter of the dense work for 2 x 2 pooling. A gradient that is exactly
// zero adds nothing, also where it meets Inf or NaN.
//
// Per pixel of a convolution, FLOPs: 2 * in * out * kh * kw forward (3/5 of it with 5 taps by Winograd, 2/3 with 3,
// plus transforms); backward recomputes them for all layers but the last, whose slopes and winners forward can save (5
// bytes an output), and each of its two products takes that divided by pool^2. Bytes of main memory: x, theta once and
// y; gy, gx and gtheta.
#include "common/table.h"
#include "target_net_cnn_forward.h"

namespace hyperfast {
namespace HF_ISA {

// ---- backward -----------------------------------------------------------------------------------

// The winning pixels of an image whose gradient is not zero, listed by output channel.
template <class T>
struct Winners {
  int32_t* patch;  // [out][windows]: where the winner's patch begins
  T* gradient;     // [out][windows]
  int64_t* count;  // [out]
  int64_t windows;
  bool finite;

  Winners of_channel(int64_t o) const {
    return {patch + o * windows, gradient + o * windows, count + o, windows, finite};
  }
};

// g: gradient of the layer's output, pixel-major; readable past its end as far as a panel.
template <class T>
static void find_winners(Winners<T>& winners, const Stage<T>& stage, const T* g, int64_t g_row, int64_t g_pixel) {
  const ConvLayer& l = *stage.layer;
  const Shape<T>& s = stage.shape;
  Vec<T> check = {};  // zero, or NaN after a gradient that is Inf or NaN
  for (int64_t o = 0; o < l.out; o += kPanel<T>) {
    const int64_t lanes = min64(kPanel<T>, l.out - o);
    int64_t at[kPanel<T>];  // where the next winner of a channel is listed
    for (int64_t lane = 0; lane < lanes; ++lane) at[lane] = (o + lane) * s.windows;
    const T* slope = stage.slope + o;
    const IndexValue<T>* winner = stage.winner + o;
    const int64_t* patches = stage.patches;
    for (int64_t y = 0; y < l.out_height; ++y) {
      const T* from = g + y * g_row + o;
      for (int64_t x = 0; x < l.out_width; ++x) {
        T gradient[kPanel<T>];
        HF_UNROLL for (int j = 0; j < kPanel<T>; j += kLanes<T>) {
          const Vec<T> value = load(slope + j) * load(from + j);
          check += value - value;
          store(gradient + j, value);
        }
        for (int64_t lane = 0; lane < lanes; ++lane) {
          winners.patch[at[lane]] = int32_t(patches[winner[lane]]);
          winners.gradient[at[lane]] = gradient[lane];
          at[lane] += gradient[lane] != T(0);
        }
        slope += s.channels;
        winner += s.channels;
        patches += s.window;
        from += g_pixel;
      }
    }
    for (int64_t lane = 0; lane < lanes; ++lane) winners.count[o + lane] = at[lane] - (o + lane) * s.windows;
  }
  bool finite = true;
  for (int lane = 0; lane < kLanes<T>; ++lane) finite &= check[lane] == T(0);
  winners.windows = s.windows;
  winners.finite = finite;
}

// Vectors of a patch that stay in registers while the winners pass.
constexpr int kHeld = HF_VECTOR_BYTES >= 32 ? 12 : 6;

// gW[v] += sum over winners of gradient * patch[v], for NV vectors v from `first`; at most kSummed of them at once, so
// that the error does not grow with images and windows.
template <class T>
struct WeightGradient {
  const Stage<T>& stage;
  const Winners<T> winners;  // of this output channel
  T* gradient;               // [run in whole vectors], of this output channel

  template <int NV>
  __attribute__((always_inline)) inline void run(int64_t first) const {
    const Shape<T>& s = stage.shape;
    const T* from[NV];
    HF_UNROLL for (int j = 0; j < NV; ++j) {
      const int64_t v = first + j;
      from[j] = stage.image + v / s.run_vectors * s.row + v % s.run_vectors * kLanes<T>;
    }
    for (int64_t begin = 0; begin < *winners.count; begin += kSummed) {
      Vec<T> sum[NV] = {};
      for (int64_t i = begin; i < min64(begin + kSummed, *winners.count); ++i) {
        const int64_t patch = winners.patch[i];
        const T g = winners.gradient[i];
        HF_UNROLL for (int j = 0; j < NV; ++j) sum[j] += g * load(from[j] + patch);
      }
      HF_UNROLL for (int j = 0; j < NV; ++j) {
        T* to = gradient + (first + j) * kLanes<T>;
        store(to, load(to) + sum[j]);
      }
    }
  }
};

template <class T>
static T bias_gradient(const Winners<T>& winners) {
  T total = T(0);
  for (int64_t begin = 0; begin < *winners.count; begin += kSummed) {
    T sum = T(0);
    for (int64_t i = begin; i < min64(begin + kSummed, *winners.count); ++i) sum += winners.gradient[i];
    total += sum;
  }
  return total;
}

// Gradient of the image: patch[v] += gradient * W[v]. Past the end of a run W is zero.
template <class T>
struct ImageGradient {
  const Stage<T>& stage;
  const Winners<T> winners;  // of this output channel
  const T* weight;           // [run in whole vectors], of this output channel

  template <int NV>
  __attribute__((always_inline)) inline void run(int64_t first) const {
    const Shape<T>& s = stage.shape;
    Vec<T> w[NV];
    T* to[NV];
    HF_UNROLL for (int j = 0; j < NV; ++j) {
      const int64_t v = first + j;
      w[j] = load(weight + v * kLanes<T>);
      to[j] = stage.gradient + v / s.run_vectors * s.row + v % s.run_vectors * kLanes<T>;
    }
    for (int64_t i = 0; i < *winners.count; ++i) {
      const int64_t patch = winners.patch[i];
      const T g = winners.gradient[i];
      HF_UNROLL for (int j = 0; j < NV; ++j) store(to[j] + patch, load(to[j] + patch) + g * w[j]);
    }
  }
  // Inf and NaN times the zeros past a run would reach pixels beside the patch.
  void exact() const {
    const Shape<T>& s = stage.shape;
    for (int64_t i = 0; i < *winners.count; ++i)
      for (int64_t y = 0; y < stage.layer->kernel_y; ++y)
        for (int64_t k = 0; k < s.run; ++k)
          stage.gradient[winners.patch[i] + y * s.row + k] +=
              winners.gradient[i] * weight[y * s.run_vectors * kLanes<T> + k];
  }
};

template <int NV, class Work>
HF_INLINE void held_vectors(const Work& work, int64_t first, int64_t count) {
  if constexpr (NV > 0) {
    if (count == NV) return work.template run<NV>(first);
    held_vectors<NV - 1>(work, first, count);
  }
}

// All vectors of a patch, in groups of nearly equal size.
template <class Work>
static void for_patch(const Work& work, int64_t vectors) {
  const int64_t groups = (vectors + kHeld - 1) / kHeld;
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t first = vectors * i / groups;
    held_vectors<kHeld>(work, first, vectors * (i + 1) / groups - first);
  }
}

// One layer of one image: adds to the weight gradient, and overwrites the image's where it is wanted.
template <class T>
static void backward_layer(const Stage<T>& stage, const T* g, int64_t g_row, int64_t g_pixel, Winners<T> winners,
                           T* gradient, bool want_image) {
  const Shape<T>& s = stage.shape;
  if (want_image)
    for (int64_t i = 0; i < s.size; ++i) stage.gradient[i] = T(0);
  T* bias = gradient + stage.layer->out * s.vectors * kLanes<T>;
  find_winners(winners, stage, g, g_row, g_pixel);
  for (int64_t o = 0; o < stage.layer->out; ++o) {
    const int64_t at = o * s.vectors * kLanes<T>;
    const Winners<T> own = winners.of_channel(o);
    if (gradient) {
      for_patch(WeightGradient<T>{stage, own, gradient + at}, s.vectors);
      bias[o] += bias_gradient(own);
    }
    if (!want_image) continue;
    const ImageGradient<T> image{stage, own, stage.rows + at};
    if (winners.finite || s.run % kLanes<T> == 0)
      for_patch(image, s.vectors);
    else
      image.exact();
  }
}

// The inside of a padded, pixel-major gradient -> [channels][height][width].
template <class T>
static void store_gradient(const Stage<T>& stage, void* to, DType type, bool add) {
  const ConvLayer& l = *stage.layer;
  T values[64];
  for (int64_t c = 0; c < l.in; ++c)
    for (int64_t y = 0; y < l.height; ++y)
      for (int64_t x = 0; x < l.width; x += 64) {
        const int64_t n = min64(64, l.width - x);
        void* at = element(to, type, (c * l.height + y) * l.width + x);
        const T* from = stage.gradient + stage.shape.at(l, y, x) + c;
        if (add)
          load_row(values, at, type, n);
        else
          for (int64_t i = 0; i < n; ++i) values[i] = T(0);
        for (int64_t i = 0; i < n; ++i) values[i] += from[i * l.in];
        store_row(at, type, values, n);
      }
}

template <class T>
static void backward(const ConvProblem& p, const Gradients& g, int64_t network, int64_t begin, int64_t end,
                     void* gradient_values, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  const Stage<T>* stages = prepare<T>(p, network, true, arena);
  const int64_t top = p.num_layers - 1;
  const ConvLayer& last_layer = p.layers[top];
  T* last = arena.take<T>(last_size<T>(p) + kPanel<T>);
  for (int64_t i = 0; i < kPanel<T>; ++i) last[last_size<T>(p) + i] = T(0);
  T* channel = arena.take<T>(stages[top].shape.windows);
  T* values = arena.take<T>(widest_output<T>(p) * kBlock);
  T* slopes = arena.take<T>(widest_output<T>(p) * kBlock);
  const int64_t most = longest_lists<T>(p);
  Winners<T> winners{arena.take<int32_t>(most), arena.take<T>(most), arena.take<int64_t>(widest_output<T>(p)), 0, true};

  T* gradient = g.want_theta ? static_cast<T*>(gradient_values) : nullptr;
  if (gradient)
    for (int64_t i = 0; i < gradient_size<T>(p); ++i) gradient[i] = T(0);
  const int64_t image_size = p.layers[0].in * p.layers[0].height * p.layers[0].width;
  for (int64_t n = begin; n < end; ++n) {
    forward_image<T, true>(p, stages, p.saved ? top : top + 1, network, n, last, values, slopes);
    if (p.saved) load_last(p, stages[top], network * p.rows + n);
    const int64_t windows = stages[top].shape.windows;
    for (int64_t o = 0; o < last_layer.out; ++o) {
      const int64_t from = network * g.gy.network_stride + n * g.gy.row_stride + o * windows;
      load_row(channel, element(g.gy.data, g.gy.type, from), g.gy.type, windows);
      for (int64_t w = 0; w < windows; ++w) last[w * last_layer.out + o] = channel[w];
    }
    int64_t at = gradient_size<T>(p);
    for (int64_t l = top; l >= 0; --l) {
      const Stage<T>& stage = stages[l];
      at -= stage.layer->out * stage.shape.vectors * kLanes<T> + stage.shape.channels;
      T* to = gradient ? gradient + at : nullptr;
      const bool want_image = l > 0 || g.gx;
      if (l == top) {
        backward_layer(stage, last, last_layer.out_width * last_layer.out, last_layer.out, winners, to, want_image);
      } else {
        const Stage<T>& next = stages[l + 1];
        backward_layer(stage, next.gradient + next.shape.at(*next.layer, 0, 0), next.shape.row, next.shape.pixel,
                       winners, to, want_image);
      }
    }
    if (g.gx)
      store_gradient(stages[0], element(g.gx, g.gx_type, network * g.gx_network_stride + n * image_size), g.gx_type,
                     g.add_to_gx);
  }
}

template <class T>
static void add(const ConvProblem& p, void* total, const void* part) {
  T* to = static_cast<T*>(total);
  const T* from = static_cast<const T*>(part);
  for (int64_t i = 0; i < gradient_size<T>(p); ++i) to[i] += from[i];
}

template <class T>
static void emit(const ConvProblem& p, const void* gradient, void* gtheta, void* gbias) {
  const DType type = p.theta.type;
  const T* from = static_cast<const T*>(gradient);
  for (int64_t i = 0; i < p.num_layers; ++i) {
    const ConvLayer& l = p.layers[i];
    const Shape<T> s(l);
    for (int64_t o = 0; o < l.out; ++o)
      for (int64_t c = 0; c < l.in; ++c)
        for (int64_t y = 0; y < l.kernel_y; ++y) {
          const T* run = from + (o * s.vectors + y * s.run_vectors) * kLanes<T> + c;
          const int64_t at = l.weight + ((o * l.in + c) * l.kernel_y + y) * l.kernel_x;
          for (int64_t x = 0; x < l.kernel_x; ++x) store_row(element(gtheta, type, at + x), type, run + x * l.in, 1);
        }
    from += l.out * s.vectors * kLanes<T>;
    if (l.bias >= 0) {
      const DType bias_type = gbias ? p.bias.type : type;
      store_row(element(gbias ? gbias : gtheta, bias_type, l.bias), bias_type, from, l.out);
    }
    from += s.channels;
  }
}

HF_KERNEL_TABLE(ConvProblem, conv_kernels);

}  // namespace HF_ISA
}  // namespace hyperfast
