// A block of points through all steps of a network, forward and backward. The layers are the batched MLP's own
// (target_net_forward.h, target_net_backward.h): a grid differs from it in where rows come from and where they go, and
// in the values that residuals keep aside.
#pragma once

#include "coord_grid_points.h"
#include "target_net_backward.h"

namespace hyperfast {
namespace HF_ISA {

template <class T>
static int64_t widest(const GridProblem& p) {
  int64_t width = p.axes + p.extras;
  for (int64_t s = 0; s < p.num_steps; ++s) width = max64(width, p.steps[s].outputs);
  return padded<T>(width);
}

static int64_t largest_layer(const GridProblem& p) {
  int64_t largest = 0;
  for (int64_t l = 0; l < p.mlp.num_layers; ++l) largest = max64(largest, p.mlp.layers[l].in * p.mlp.layers[l].out);
  return largest;
}

// Residuals that are open at once.
static int64_t depth_of(const GridProblem& p) {
  int64_t depth = 0, most = 0;
  for (int64_t s = 0; s < p.num_steps; ++s) {
    if (p.steps[s].kind == StepKind::open) most = max64(most, ++depth);
    if (p.steps[s].kind == StepKind::close) --depth;
  }
  return most;
}

template <class T>
static int64_t workspace(const GridProblem& p, bool backward) {
  const int64_t width = widest<T>(p), depth = depth_of(p);
  int64_t values = largest_layer(p), pieces = 16 + depth + 2 * p.num_steps;
  for (int64_t l = 0; l < p.mlp.num_layers; ++l) {
    const Layer& layer = p.mlp.layers[l];
    values += padded<T>(layer.out) * (layer.in + 1) + 64;  // a narrow layer takes less
    if (backward) values += padded<T>(layer.in) * layer.out;
    pieces += 3;
  }
  if (backward) {
    values += padded<T>(p.axes + p.extras) * kBlock + (2 + depth) * width * kBlock;
    for (int64_t s = 0; s < p.num_steps; ++s) values += 2 * padded<T>(p.steps[s].outputs) * kBlock;
  } else {
    values += (2 + depth) * width * kBlock + 2 * width;
  }
  const int64_t arrays = p.mlp.num_layers * int64_t(sizeof(PackedLayer<T>)) + (4 * p.num_steps + 8 + depth) * 8;
  return values * int64_t(sizeof(T)) + arrays + 64 * pieces + box_bytes(p) + weight_bytes(p);
}

template <class T>
static const PackedLayer<T>* pack(const GridProblem& p, int64_t network, bool backward, bool to_inputs, Arena& arena) {
  T* converted = arena.take<T>(largest_layer(p));
  PackedLayer<T>* packed = arena.take<PackedLayer<T>>(p.mlp.num_layers);
  for (int64_t l = 0; l < p.mlp.num_layers; ++l)
    pack_layer(packed + l, p.mlp, l, network, backward && (l > 0 || to_inputs), converted, arena);
  return packed;
}

// to = act(a + b), or act(a) where b is null; slope as in activate().
template <class T>
static void activate_panels(const Step& step, const T* a, const T* b, T* to, T* slope, int64_t rows) {
  const T scale = argument_scale<T>(step.activation);
  for (int64_t at = 0; at < padded<T>(step.outputs) / kPanel<T> * kPanelStride<T>; at += kPanelStride<T>) {
    for (int64_t i = at; i < at + rows * kPanel<T>; i += kLanes<T>) {
      const Vec<T> h = b ? load(a + i) + load(b + i) : load(a + i);
      store(to + i, scale == T(1) ? h : h * scale);
    }
    activate(step.activation, T(step.parameter), to + at, slope ? slope + at : nullptr, rows * kPanel<T>);
  }
}

// ---- forward ------------------------------------------------------------------------------------

// The panels that a block goes through: one to read, one to write, and one for each open residual.
template <class T>
struct Pool {
  int64_t count;
  T** panels;
  const T** kept;  // by open residuals, the last one last

  Pool(const GridProblem& p, Arena& arena) {
    const int64_t depth = depth_of(p);
    count = 2 + depth;
    panels = arena.take<T*>(count);
    kept = arena.take<const T*>(depth + 1);
    for (int64_t i = 0; i < count; ++i) panels[i] = arena.take<T>(widest<T>(p) * kBlock);
  }
  // Panels that hold neither h nor what is kept.
  T* unused(const T* h, int64_t depth) const {
    for (int64_t i = 0; i < count; ++i) {
      bool taken = panels[i] == h;
      for (int64_t k = 0; k < depth; ++k) taken = taken || panels[i] == kept[k];
      if (!taken) return panels[i];
    }
    return nullptr;  // there are two more than open residuals
  }
};

// The outputs, in panels of the pool, of inputs that lie in its first.
template <class T>
static const T* through(const GridProblem& p, const PackedLayer<T>* packed, const Pool<T>& pool, int64_t rows,
                        Ahead& ahead) {
  const T* h = pool.panels[0];
  int64_t depth = 0;
  for (int64_t s = 0; s < p.num_steps; ++s) {
    const Step& step = p.steps[s];
    if (step.kind == StepKind::open) {
      pool.kept[depth++] = h;
      continue;
    }
    T* to = pool.unused(h, depth);
    if (step.kind == StepKind::linear)
      forward_layer<T>(p.mlp, step.layer, packed[step.layer], in_panels<T>(h), to, nullptr, rows, ahead);
    else
      activate_panels<T>(step, h, step.kind == StepKind::close ? pool.kept[--depth] : nullptr, to, nullptr, rows);
    h = to;
  }
  return h;
}

// ---- backward -----------------------------------------------------------------------------------

// What backward keeps of a block: h[s], the input of step s, and the slope of the activation that made it.
template <class T>
struct Trace {
  T** h;
  T** slope;

  Trace(const GridProblem& p, Arena& arena) {
    h = arena.take<T*>(p.num_steps + 1);
    slope = arena.take<T*>(p.num_steps + 1);
    h[0] = arena.take<T>(padded<T>(p.axes + p.extras) * kBlock);
    slope[0] = nullptr;
    for (int64_t s = 0; s < p.num_steps; ++s) {
      const Step& step = p.steps[s];
      const int64_t size = padded<T>(step.outputs) * kBlock;
      const bool alias = step.kind == StepKind::open;
      h[s + 1] = alias ? h[s] : arena.take<T>(size);
      slope[s + 1] = alias || step.activation == Activation::identity ? nullptr : arena.take<T>(size);
    }
  }
};

template <class T>
static void trace(const GridProblem& p, const PackedLayer<T>* packed, const Trace<T>& t, const T** kept, int64_t rows,
                  Ahead& ahead) {
  int64_t depth = 0;
  for (int64_t s = 0; s < p.num_steps; ++s) {
    const Step& step = p.steps[s];
    if (step.kind == StepKind::open)
      kept[depth++] = t.h[s];
    else if (step.kind == StepKind::linear)
      forward_layer<T>(p.mlp, step.layer, packed[step.layer], in_panels<T>(t.h[s]), t.h[s + 1], t.slope[s + 1], rows,
                       ahead);
    else
      activate_panels<T>(step, t.h[s], step.kind == StepKind::close ? kept[--depth] : nullptr, t.h[s + 1],
                         t.slope[s + 1], rows);
  }
}

template <class T>
static void add_panels(T* to, const T* from, int64_t panels, int64_t rows) {
  for (int64_t p = 0; p < panels; ++p)
    for (int64_t i = p * kPanelStride<T>; i < p * kPanelStride<T> + rows * kPanel<T>; i += kLanes<T>)
      store(to + i, load(to + i) + load(from + i));
}

template <class T>
static void copy_panels(T* to, const T* from, int64_t panels, int64_t rows) {
  for (int64_t p = 0; p < panels; ++p)
    __builtin_memcpy(to + p * kPanelStride<T>, from + p * kPanelStride<T>, rows * kPanel<T> * sizeof(T));
}

// Gradients of one block from g, that of its outputs. gradient (+)= theta's; returns the panels of the inputs'
// gradient, or null unless `to_inputs`. Uses g, other, and kept[i] for each open residual.
template <class T>
static const T* back_through(const GridProblem& p, const PackedLayer<T>* packed, const Trace<T>& t, T* g, T* other,
                             T* const* kept, T* gradient, bool want_theta, bool to_inputs, bool add, int64_t rows) {
  int64_t depth = 0;
  if (t.slope[p.num_steps])
    multiply_panels(g, t.slope[p.num_steps], padded<T>(p.steps[p.num_steps - 1].outputs) / kPanel<T>, rows);
  for (int64_t s = p.num_steps - 1; s >= 0; --s) {  // g: with respect to the argument of step s's activation
    const Step& step = p.steps[s];
    const int64_t panels = padded<T>(step.inputs) / kPanel<T>;
    if (step.kind == StepKind::linear) {
      const Layer& layer = p.mlp.layers[step.layer];
      if (want_theta) {
        T* to = gradient + gradient_offset<T>(p.mlp, step.layer);
        const int64_t stride = padded<T>(layer.in);
        for_tiles(WeightGradient<T>{g, t.h[s], to, stride, rows, add}, panels, layer.out);
        bias_gradient(g, to + layer.out * stride, padded<T>(layer.out), rows, add);
      }
      if (step.layer == 0 && !to_inputs) return nullptr;
      for_tiles(InputGradient<T>{layer, packed[step.layer], g, other, t.slope[s]}, panels, rows);
      T* swap = g;
      g = other;
      other = swap;
      continue;
    }
    if (step.kind == StepKind::close) copy_panels(kept[depth++], g, panels, rows);
    if (step.kind == StepKind::open) add_panels(g, kept[--depth], panels, rows);
    if (t.slope[s]) multiply_panels(g, t.slope[s], panels, rows);
  }
  return to_inputs ? g : nullptr;
}

}  // namespace HF_ISA
}  // namespace hyperfast
