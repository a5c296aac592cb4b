// Forward of the batched CNN. See target_net_cnn.cpp.
#pragma once

#include "target_net_cnn_prepare.h"

namespace hyperfast {
namespace HF_ISA {

template <class T>
struct ConvForward {
  const Stage<T>& stage;
  const int64_t* patches;  // of the block's pixels
  T* output;               // panels

  template <int MR, int NP>
  __attribute__((always_inline)) inline void run(int64_t pixel, int64_t panel) const {
    const Shape<T>& s = stage.shape;
    const T* a[MR];
    HF_UNROLL for (int i = 0; i < MR; ++i) a[i] = stage.image + patches[pixel + i];
    const int64_t panel_size = s.patch * kPanel<T>;
    multiply_patch<MR, NP>(output + panel * kPanelStride<T> + pixel * kPanel<T>, kPanelStride<T>,
                           stage.bias + panel * kPanel<T>, a, stage.weight + panel * panel_size, panel_size,
                           stage.layer->kernel_y, s.rows_at_once, s.run, s.row);
  }
  void finish(int64_t, int64_t) const {}
};

// A block of windows before activation, into panels.
template <class T>
static void multiply_block(const Stage<T>& stage, int64_t first_window, int64_t count, T* values) {
  const Shape<T>& s = stage.shape;
  if (stage.filters && with_taps(stage, [&](auto taps) {
        return multiply_pairs<T, decltype(taps)>(stage, first_window, count, values);
      }))
    return;
  for_tiles(ConvForward<T>{stage, stage.patches + first_window * s.window, values}, s.channels / kPanel<T>,
            count * s.window);
}

template <class T>
HF_INLINE void store_lanes(T* to, Vec<T> v, int64_t lanes) {
  if (lanes >= kLanes<T>) return store(to, v);
  for (int64_t i = 0; i < lanes; ++i) to[i] = v[i];
}

// The largest of a window's values, the first of equals; a NaN wins, the last of them, as in torch.
template <class T, bool BACKWARD>
static void pool_window(const Stage<T>& stage, const T* values, const T* slopes, int64_t window, T* to) {
  const Shape<T>& s = stage.shape;
  for (int64_t o = 0; o < s.channels; o += kLanes<T>) {
    const int64_t at = o / kPanel<T> * kPanelStride<T> + o % kPanel<T>;
    Vec<T> best = load(values + at), slope = {};
    Index<T> winner = {};
    if (BACKWARD) slope = slopes ? load(slopes + at) : splat(T(1));
    for (int64_t k = 1; k < s.window; ++k) {
      const Vec<T> v = load(values + at + k * kPanel<T>);
      const Index<T> better = (v > best) | (v != v);
      best = better ? v : best;
      if (BACKWARD) {
        winner = better ? Index<T>{} + IndexValue<T>(k) : winner;
        if (slopes) slope = better ? load(slopes + at + k * kPanel<T>) : slope;
      }
    }
    store_lanes(to + o, best, stage.layer->out - o);
    if (BACKWARD) {
      store(stage.slope + window * s.channels + o, slope);
      __builtin_memcpy(stage.winner + window * s.channels + o, &winner, sizeof(winner));
    }
  }
}

// One layer over one image, block by block of windows; the output goes into the next layer's image, or `last`.
template <class T, bool BACKWARD>
static void forward_layer(const Stage<T>& stage, const Stage<T>* next, T* last, T* values, T* slopes) {
  const ConvLayer& l = *stage.layer;
  const Shape<T>& s = stage.shape;
  T* slope_panels = BACKWARD && l.activation != Activation::identity ? slopes : nullptr;
  if (stage.filters) with_taps(stage, [&](auto taps) { transform_image<T, decltype(taps)>(stage); });
  for (int64_t block = 0; block < s.blocks; ++block) {
    const int64_t first = s.windows * block / s.blocks, count = s.windows * (block + 1) / s.blocks - first;
    const int64_t pixels = count * s.window;
    multiply_block(stage, first, count, values);
    for (int64_t p = 0; p < s.channels / kPanel<T>; ++p)
      activate(l.activation, T(l.parameter), values + p * kPanelStride<T>,
               slope_panels ? slope_panels + p * kPanelStride<T> : nullptr, pixels * kPanel<T>);
    for (int64_t w = first; w < first + count; ++w) {
      const int64_t y = w / l.out_width, x = w % l.out_width;
      T* to = next ? next->image + next->shape.at(*next->layer, y, x) : last + w * l.out;
      const int64_t at = (w - first) * s.window * kPanel<T>;
      pool_window<T, BACKWARD>(stage, values + at, slope_panels ? slope_panels + at : nullptr, w, to);
    }
  }
}

// Layers [0, layers) over one image.
template <class T, bool BACKWARD>
static void forward_image(const ConvProblem& p, const Stage<T>* stages, int64_t layers, int64_t network, int64_t image,
                          T* last, T* values, T* slopes) {
  load_image(stages[0], element(p.x.data, p.x.type, network * p.x.network_stride + image * p.x.row_stride), p.x.type);
  for (int64_t l = 0; l < layers; ++l)
    forward_layer<T, BACKWARD>(stages[l], l + 1 < p.num_layers ? stages + l + 1 : nullptr, last, values, slopes);
}

// What backward needs of the last layer, an image at a time: slopes [window][out], then winners [window][out].
template <class T>
static int64_t saved_bytes(const ConvProblem& p) {
  return last_size<T>(p) * int64_t(sizeof(T) + 1);
}
template <class T>
static void save_last(const ConvProblem& p, const Stage<T>& stage, int64_t row) {
  const int64_t out = stage.layer->out;
  T* slope = reinterpret_cast<T*>(static_cast<char*>(p.saved) + row * saved_bytes<T>(p));
  uint8_t* winner = reinterpret_cast<uint8_t*>(slope + last_size<T>(p));
  for (int64_t w = 0; w < stage.shape.windows; ++w)
    for (int64_t o = 0; o < out; ++o) {
      const T value = stage.slope[w * stage.shape.channels + o];
      __builtin_memcpy(slope + w * out + o, &value, sizeof(T));  // T's alignment is not kept from row to row
      winner[w * out + o] = uint8_t(stage.winner[w * stage.shape.channels + o]);
    }
}
template <class T>
static void load_last(const ConvProblem& p, const Stage<T>& stage, int64_t row) {
  const int64_t out = stage.layer->out;
  const char* slope = static_cast<const char*>(p.saved) + row * saved_bytes<T>(p);
  const uint8_t* winner = reinterpret_cast<const uint8_t*>(slope + last_size<T>(p) * int64_t(sizeof(T)));
  for (int64_t w = 0; w < stage.shape.windows; ++w) {
    __builtin_memcpy(stage.slope + w * stage.shape.channels, slope + w * out * int64_t(sizeof(T)), out * sizeof(T));
    for (int64_t o = 0; o < out; ++o) stage.winner[w * stage.shape.channels + o] = winner[w * out + o];
  }
}

template <class T>
static void forward(const ConvProblem& p, int64_t network, int64_t begin, int64_t end, void* y, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  const Stage<T>* stages = prepare<T>(p, network, p.saved != nullptr, arena);
  const Stage<T>& top = stages[p.num_layers - 1];
  const Shape<T>& s = top.shape;
  const int64_t out = top.layer->out, size = last_size<T>(p);
  T* last = arena.take<T>(size);
  T* channel = arena.take<T>(s.windows);
  T* values = arena.take<T>(widest_output<T>(p) * kBlock);
  T* slopes = p.saved ? arena.take<T>(widest_output<T>(p) * kBlock) : nullptr;
  for (int64_t n = begin; n < end; ++n) {
    const int64_t row = network * p.rows + n;
    forward_image<T, false>(p, stages, p.num_layers - (p.saved ? 1 : 0), network, n, last, values, nullptr);
    if (p.saved) {
      forward_layer<T, true>(top, nullptr, last, values, slopes);
      save_last(p, top, row);
    }
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t w = 0; w < s.windows; ++w) channel[w] = last[w * out + o];
      store_row(element(y, p.x.type, row * size + o * s.windows), p.x.type, channel, s.windows);
    }
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
