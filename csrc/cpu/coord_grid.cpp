// Coordinate networks on the CPU: all layers over a block of kBlock points at a time, whose coordinates are written
// into the panels that the batched MLP's layers read, and whose outputs leave them for y, for sums, or for the image.
//
// FLOPs of a point: 2 * sum(in * out) forward; backward three times that (recomputed activations, gradient to the
// inputs of every layer, gradient to theta). Main memory: theta once a task, y once. Of an image, a task owns whole
// rows, goes through the patches that reach into them in order, and adds them up where the image lies.
#include "coord_grid_steps.h"

namespace hyperfast {
namespace HF_ISA {

// Calls use(first point, points, outputs in panels) for every block of points [begin, end).
template <class T, class Use>
static void for_blocks(const GridProblem& p, const Box<T>& box, int64_t network, int64_t begin, int64_t end,
                       Arena arena, const Use& use) {
  const PackedLayer<T>* packed = pack<T>(p, network, false, false, arena);
  const Pool<T> pool(p, arena);
  Ahead ahead(p.mlp, network, end - begin);
  for (int64_t r = begin; r < end; r += kBlock) {
    const int64_t rows = min64(kBlock, end - r);
    fill_points(box, r, rows, pool.panels[0]);
    use(r, rows, through(p, packed, pool, rows, ahead));
  }
}

static int64_t outputs_of(const GridProblem& p) { return p.steps[p.num_steps - 1].outputs; }

template <class T>
static void eval(const GridProblem& p, int64_t network, int64_t begin, int64_t end, void* y, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  const Box<T> box = box_of<T>(p, network, 0, 0, arena);
  const int64_t out = outputs_of(p), first = network * box.count();
  const DType type = p.mlp.theta.type;
  for_blocks(p, box, network, begin, end, arena, [&](int64_t r, int64_t rows, const T* h) {
    panels_to_rows(element(y, type, (first + r) * out), type, h, rows, out, false);
  });
}

// ---- moments ------------------------------------------------------------------------------------

// (mean, squares) of `before` points take in those of `more`: Chan, Golub and LeVeque's formula.
template <class T>
static void merge_lane(T& mean, T& squares, T before, T more_mean, T more_squares, T more) {
  const T share = more / (before + more), difference = more_mean - mean;
  mean += difference * share;
  squares += more_squares + difference * difference * (before * share);
}

template <class T>
static void moments(const GridProblem& p, int64_t network, int64_t begin, int64_t end, void* part, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  const Box<T> box = box_of<T>(p, network, 0, 0, arena);
  const int64_t out = outputs_of(p);
  T* mean = static_cast<T*>(part);
  T* squares = mean + out;
  for (int64_t i = 0; i < 2 * out; ++i) mean[i] = T(0);
  for_blocks(p, box, network, begin, end, arena, [&](int64_t r, int64_t rows, const T* h) {
    for (int64_t f = 0; f < out; f += kPanel<T>) {
      const T* panel = h + f / kPanel<T> * kPanelStride<T>;
      T block_mean[kPanel<T>], block_squares[kPanel<T>];
      HF_UNROLL for (int j = 0; j < kPanel<T>; j += kLanes<T>) {
        Vec<T> sum = {}, square = {};
        for (int64_t i = 0; i < rows; ++i) sum += load(panel + i * kPanel<T> + j);
        sum /= T(rows);
        for (int64_t i = 0; i < rows; ++i) {
          const Vec<T> d = load(panel + i * kPanel<T> + j) - sum;
          square += d * d;
        }
        store(block_mean + j, sum);
        store(block_squares + j, square);
      }
      for (int64_t j = 0; j < min64(kPanel<T>, out - f); ++j)
        merge_lane(mean[f + j], squares[f + j], T(r - begin), block_mean[j], block_squares[j], T(rows));
    }
  });
}

template <class T>
static void merge(const GridProblem& p, void* total, int64_t before, const void* part, int64_t more) {
  const int64_t out = outputs_of(p);
  T* to = static_cast<T*>(total);
  const T* from = static_cast<const T*>(part);
  for (int64_t i = 0; i < out; ++i) merge_lane(to[i], to[out + i], T(before), from[i], from[out + i], T(more));
}

// ---- render -------------------------------------------------------------------------------------

template <class T>
static void render(const GridProblem& p, int64_t begin, int64_t end, void* image_values, void* weight_values,
                   void* scratch) {
  T* image = static_cast<T*>(image_values);
  T* total = static_cast<T*>(weight_values);
  const int64_t width = p.sizes[1], pixels = p.sizes[0] * width, out = outputs_of(p);
  for (int64_t network = 0; network < p.mlp.networks; ++network) {
    Arena arena{static_cast<char*>(scratch)};
    const Box<T> box = box_of<T>(p, network, begin, end, arena);
    const int64_t columns = box.size[1];
    if (box.count() == 0) continue;
    const Weights<T> weights = weights_of(p, box, arena);
    const int32_t* rect = p.rects + 4 * network;
    const int64_t corner = (rect[0] + box.first[0]) * width + rect[2];
    for_blocks(p, box, network, 0, box.count(), arena, [&](int64_t r, int64_t rows, const T* h) {
      int64_t row = r / columns, column = r % columns;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = corner + row * width + column;
        const T w = weights.rows[row] * weights.columns[column];
        total[at] += w;
        for (int64_t c = 0; c < out; ++c)
          image[c * pixels + at] += w * h[c / kPanel<T> * kPanelStride<T> + i * kPanel<T> + c % kPanel<T>];
        if (++column == columns) column = 0, ++row;
      }
    });
  }
  for (int64_t c = 0; c < out; ++c)
    for (int64_t at = begin * width; at < end * width; ++at)
      if (total[at] > T(0)) image[c * pixels + at] /= total[at];
}

// ---- backward -----------------------------------------------------------------------------------

// Gradients of a block's outputs, zero in the lanes past them.
template <class T>
struct OutputGradient {
  const GridProblem& p;
  const GridGradients& g;
  int64_t network;
  const Box<T>& box;
  Weights<T> weights;

  void operator()(int64_t r, int64_t rows, const T* h, T* panels) const {
    const int64_t out = outputs_of(p);
    if (p.kind == GridKind::eval) {
      const int64_t at = network * g.gy.network_stride + r * g.gy.row_stride;
      return rows_to_panels(panels, element(g.gy.data, g.gy.type, at), g.gy.type, g.gy.row_stride, rows, out);
    }
    for (int64_t f = 0; f < out; f += kPanel<T>) {
      T* panel = panels + f / kPanel<T> * kPanelStride<T>;
      for (int64_t i = 0; i < rows * kPanel<T>; i += kLanes<T>) store(panel + i, Vec<T>{});
    }
    p.kind == GridKind::moments ? of_moments(rows, out, h, panels) : of_image(r, rows, out, panels);
  }

  // mean = sum h / N, var = sum (h - mean)^2 / N: gh = (gmean + 2 (h - mean) gvar) / N.
  void of_moments(int64_t rows, int64_t out, const T* h, T* panels) const {
    const T* gy = static_cast<const T*>(g.gy.data) + network * 2 * out;
    const T* mean = static_cast<const T*>(g.kept) + network * 2 * out;
    const T share = T(1) / T(box.count());
    for (int64_t c = 0; c < out; ++c) {
      const int64_t lane = c / kPanel<T> * kPanelStride<T> + c % kPanel<T>;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = lane + i * kPanel<T>;
        panels[at] = share * (gy[c] + T(2) * (h[at] - mean[c]) * gy[out + c]);
      }
    }
  }

  void of_image(int64_t r, int64_t rows, int64_t out, T* panels) const {
    const int64_t width = p.sizes[1], pixels = p.sizes[0] * width, columns = box.size[1];
    const int32_t* rect = p.rects + 4 * network;
    const T* gy = static_cast<const T*>(g.gy.data);
    const T* total = static_cast<const T*>(g.kept);
    int64_t row = r / columns, column = r % columns;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = (rect[0] + row) * width + rect[2] + column;
      const T w = weights.rows[row] * weights.columns[column] / total[at];
      for (int64_t c = 0; c < out; ++c)
        panels[c / kPanel<T> * kPanelStride<T> + i * kPanel<T> + c % kPanel<T>] = w * gy[c * pixels + at];
      if (++column == columns) column = 0, ++row;
    }
  }
};

template <class T>
static int64_t gradient_size(const GridProblem& p) {
  return gradient_size<T>(p.mlp) + padded<T>(p.extras);
}

template <class T>
static void backward(const GridProblem& p, const GridGradients& g, int64_t network, int64_t begin, int64_t end,
                     void* gradient_values, void* scratch) {
  T* gradient = static_cast<T*>(gradient_values);
  T* gextra = gradient + gradient_size<T>(p.mlp);
  for (int64_t e = 0; e < p.extras; ++e) gextra[e] = T(0);
  Arena arena{static_cast<char*>(scratch)};
  const Box<T> box = box_of<T>(p, network, 0, p.sizes[0], arena);
  Weights<T> weights{};
  if (p.kind == GridKind::render) weights = weights_of(p, box, arena);
  const OutputGradient<T> output_gradient{p, g, network, box, weights};
  const PackedLayer<T>* packed = pack<T>(p, network, true, g.want_extra, arena);
  const Trace<T> t(p, arena);
  const int64_t width = widest<T>(p), depth = depth_of(p);
  const T** open = arena.take<const T*>(depth + 1);
  T** kept = arena.take<T*>(depth + 1);
  for (int64_t i = 0; i < depth; ++i) kept[i] = arena.take<T>(width * kBlock);
  T* first = arena.take<T>(width * kBlock);
  T* second = arena.take<T>(width * kBlock);
  Ahead ahead(p.mlp, network, end - begin);
  for (int64_t r = begin; r < end; r += kBlock) {
    const int64_t rows = min64(kBlock, end - r);
    fill_points(box, r, rows, t.h[0]);
    trace(p, packed, t, open, rows, ahead);
    output_gradient(r, rows, t.h[p.num_steps], first);
    const T* inputs =
        back_through(p, packed, t, first, second, kept, gradient, g.want_theta, g.want_extra, r > begin, rows);
    if (!inputs) continue;
    for (int64_t e = 0; e < p.extras; ++e) {
      const int64_t lane = p.axes + e;
      const T* from = inputs + lane / kPanel<T> * kPanelStride<T> + lane % kPanel<T>;
      T sum = T(0);
      for (int64_t i = 0; i < rows; ++i) sum += from[i * kPanel<T>];
      gextra[e] += sum;
    }
  }
}

template <class T>
static void add(const GridProblem& p, const GridGradients& g, void* total, const void* part) {
  T* to = static_cast<T*>(total);
  const T* from = static_cast<const T*>(part);
  for (int64_t i = g.want_theta ? 0 : gradient_size<T>(p.mlp); i < gradient_size<T>(p); ++i) to[i] += from[i];
}

template <class T>
static void emit(const GridProblem& p, const void* gradient, void* gtheta, void* gextra) {
  if (gtheta) emit<T>(p.mlp, gradient, gtheta, nullptr);
  if (gextra) __builtin_memcpy(gextra, static_cast<const T*>(gradient) + gradient_size<T>(p.mlp), p.extras * sizeof(T));
}

// ---- the table ----------------------------------------------------------------------------------

// The function of the type of sums that p asks for.
#define HF_BY_TYPE(function, ...) \
  (p.mlp.x.type == DType::f64 ? function<double>(__VA_ARGS__) : function<float>(__VA_ARGS__))

extern const GridKernels grid_kernels = {
    [](const GridProblem& p, bool backward) { return HF_BY_TYPE(workspace, p, backward); },
    [](const GridProblem& p, int64_t network, int64_t begin, int64_t end, void* y, void* scratch) {
      HF_BY_TYPE(eval, p, network, begin, end, y, scratch);
    },
    [](const GridProblem& p, int64_t network, int64_t begin, int64_t end, void* part, void* scratch) {
      HF_BY_TYPE(moments, p, network, begin, end, part, scratch);
    },
    [](const GridProblem& p, void* total, int64_t before, const void* part, int64_t more) {
      HF_BY_TYPE(merge, p, total, before, part, more);
    },
    [](const GridProblem& p, int64_t begin, int64_t end, void* image, void* weight, void* scratch) {
      HF_BY_TYPE(render, p, begin, end, image, weight, scratch);
    },
    [](const GridProblem& p) { return HF_BY_TYPE(gradient_size, p); },
    [](const GridProblem& p, const GridGradients& g, int64_t network, int64_t begin, int64_t end, void* gradient,
       void* scratch) { HF_BY_TYPE(backward, p, g, network, begin, end, gradient, scratch); },
    [](const GridProblem& p, const GridGradients& g, void* total, const void* part) {
      HF_BY_TYPE(add, p, g, total, part);
    },
    [](const GridProblem& p, const void* gradient, void* gtheta, void* gextra) {
      HF_BY_TYPE(emit, p, gradient, gtheta, gextra);
    }};

}  // namespace HF_ISA
}  // namespace hyperfast
