// One cell for one row, from pre-activations on: an LSTM's layer norm, gates, states, or an RNN's nonlinearity; and
// back.
#pragma once

#include "common/activation.h"
#include "common/philox.h"
#include "hyper_lstm.h"

namespace hyperfast {
namespace HF_ISA {

constexpr int kGates = 4;                   // of an LSTM
constexpr double kLayerNormEpsilon = 1e-3;  // as in hyperfast/reference/hyper_lstm.py

// v where a lane is below `left`, else 0.
template <class T>
HF_INLINE Vec<T> first_lanes(Vec<T> v, int64_t left) {
  typename VecOf<T>::integer lane;
  HF_UNROLL for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
  return lane < typename VecOf<T>::integer_value(left) ? v : splat(T(0));
}

template <class T>
struct CellShape {
  HyperLstmCell cell;
  int64_t units, up;
  CellVectors<T> v;
  bool layer_norm;
  T forget_bias;
};

// What a cell computes for a row and its backward reads. [up] each; hat is x^ of i, f, g, o, c. An RNN has gates alone.
template <class T>
struct CellRow {
  T* gates;  // [gates]: pre-activations, then i, f, g, o, or h
  T* hat;    // [norms]
  T* shown;  // tanh of what the output shows
  T* keep;   // dropout's factors
  T inverse[5];
};

// x <- (x - mean) / sqrt(var + eps), pads zero; returns 1 / sqrt(var + eps).
template <class T>
static T normalise(T* x, int64_t units) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t up = padded<T>(units);
  Vec<T> sum = {};
  for (int64_t u = 0; u < up; u += lanes) sum += load(x + u);
  const T mean = sum_of_lanes<T>(sum) / T(units);
  Vec<T> squares = {};
  for (int64_t u = 0; u < up; u += lanes) {
    const Vec<T> d = first_lanes<T>(load(x + u) - mean, units - u);
    squares += d * d;
    store(x + u, d);
  }
  const T variance = sum_of_lanes<T>(squares) / T(units) + T(kLayerNormEpsilon);
  const T inverse = T(1) / T(sizeof(T) == 8 ? __builtin_sqrt(double(variance)) : __builtin_sqrtf(float(variance)));
  for (int64_t u = 0; u < up; u += lanes) store(x + u, load(x + u) * inverse);
  return inverse;
}

template <class T>
static void normalise_into(T* y, T* hat, T* inverse, const CellShape<T>& s, int vector) {
  constexpr int64_t lanes = kLanes<T>;
  T* x = hat + vector * s.up;
  for (int64_t u = 0; u < s.up; u += lanes) store(x + u, load(y + u));
  inverse[vector] = normalise(x, s.units);
  const T *weight = s.v.ln_weight + vector * s.up, *bias = s.v.ln_bias + vector * s.up;
  for (int64_t u = 0; u < s.up; u += lanes) store(y + u, load(x + u) * load(weight + u) + load(bias + u));
}

// row.gates: pre-activations; c, h: the new state. `dropped`: whether row.keep counts.
template <class T>
static void cell_forward(CellRow<T>& row, const CellShape<T>& s, const T* c_before, T* c, T* h, bool dropped) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t up = s.up;
  if (s.cell != HyperLstmCell::lstm) {
    for (int64_t u = 0; u < up; u += lanes) {
      const Vec<T> pre = load(row.gates + u);
      const Vec<T> now = s.cell == HyperLstmCell::relu ? Relu().value<T>(pre, T(0)) : vtanh(pre);
      store(row.gates + u, now);
      store(h + u, now);
    }
    return;
  }
  if (s.layer_norm)
    for (int g = 0; g < kGates; ++g) normalise_into(row.gates + g * up, row.hat, row.inverse, s, g);
  for (int64_t u = 0; u < up; u += lanes) {
    T* at = row.gates + u;
    const Vec<T> i = vsigmoid(load(at)), f = vsigmoid(load(at + up) + s.forget_bias);
    const Vec<T> g = vtanh(load(at + 2 * up)), o = vsigmoid(load(at + 3 * up));
    store(at, i);
    store(at + up, f);
    store(at + 2 * up, g);
    store(at + 3 * up, o);
    const Vec<T> fresh = dropped ? g * load(row.keep + u) : g;
    const Vec<T> now = f * load(c_before + u) + i * fresh;
    store(c + u, now);
    store(row.shown + u, now);
  }
  if (s.layer_norm) normalise_into(row.shown, row.hat, row.inverse, s, 4);
  for (int64_t u = 0; u < up; u += lanes) {
    const Vec<T> t = vtanh(load(row.shown + u));
    store(row.shown + u, t);
    store(h + u, load(row.gates + 3 * up + u) * t);
  }
}

// d <- the gradient before layer norm, from that of its output; adds to the gradients of its gain and shift.
template <class T>
static void normalise_backward(T* d, const CellRow<T>& row, const CellShape<T>& s, int vector,
                               const CellVectors<T>& sums) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t at = vector * s.up;
  const T *hat = row.hat + at, *weight = s.v.ln_weight + at;
  T *gain = sums.ln_weight + at, *shift = sums.ln_bias + at;
  Vec<T> sum = {}, along = {};
  for (int64_t u = 0; u < s.up; u += lanes) {
    const Vec<T> dy = load(d + u), x = load(hat + u), v = dy * load(weight + u);
    store(gain + u, load(gain + u) + dy * x);
    store(shift + u, load(shift + u) + dy);
    sum += v;
    along += v * x;
  }
  const T mean = sum_of_lanes<T>(sum) / T(s.units), slope = sum_of_lanes<T>(along) / T(s.units);
  const T inverse = row.inverse[vector];
  for (int64_t u = 0; u < s.up; u += lanes) {
    const Vec<T> v = load(d + u) * load(weight + u);
    store(d + u, first_lanes<T>(inverse * (v - mean - load(hat + u) * slope), s.units - u));
  }
}

// From dh and dc, gradients of the new state, to those of the pre-activations, in row.gates, and of c_before, in dc.
template <class T>
static void cell_backward(CellRow<T>& row, const CellShape<T>& s, const T* c_before, const T* dh, T* dc, bool dropped,
                          const CellVectors<T>& sums) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t up = s.up;
  if (s.cell != HyperLstmCell::lstm) {
    for (int64_t u = 0; u < up; u += lanes) {
      const Vec<T> now = load(row.gates + u), g = load(dh + u);
      const Vec<T> d = s.cell == HyperLstmCell::relu ? (now <= T(0) ? splat(T(0)) : g) : g * (T(1) - now * now);
      store(row.gates + u, d);
      store(sums.bias + u, load(sums.bias + u) + d);
    }
    return;
  }
  T* output = row.gates + 3 * up;
  for (int64_t u = 0; u < up; u += lanes) {
    const Vec<T> t = load(row.shown + u), o = load(output + u), g = load(dh + u);
    store(row.shown + u, g * o * (T(1) - t * t));
    store(output + u, g * t * o * (T(1) - o));
  }
  if (s.layer_norm) normalise_backward(row.shown, row, s, 4, sums);
  for (int64_t u = 0; u < up; u += lanes) {
    T* at = row.gates + u;
    const Vec<T> i = load(at), f = load(at + up), g = load(at + 2 * up);
    const Vec<T> d = load(dc + u) + load(row.shown + u);
    const Vec<T> kept = dropped ? d * load(row.keep + u) : d;
    store(at, kept * g * i * (T(1) - i));
    store(at + up, d * load(c_before + u) * f * (T(1) - f));
    store(at + 2 * up, kept * i * (T(1) - g * g));
    store(dc + u, d * f);
  }
  if (s.layer_norm)
    for (int g = 0; g < kGates; ++g) normalise_backward(row.gates + g * up, row, s, g, sums);
  for (int64_t u = 0; u < kGates * up; u += lanes) store(sums.bias + u, load(sums.bias + u) + load(row.gates + u));
}

// keep[u] = 1 / (1 - p) or 0, for unit u of sequence b at step t.
template <class T>
static void fill_keep(T* keep, int64_t units, uint64_t seed, int64_t layer, double p, int64_t t, int64_t b) {
  const uint64_t below = uint64_t(__builtin_floor(p * 4294967296.0 + 0.5));
  const T factor = p < 1 ? T(1 / (1 - p)) : T(1);
  for (int64_t first = 0; first < padded<T>(units); first += kPhiloxWords) {
    uint32_t words[kPhiloxWords];
    philox(words, seed, uint32_t(first / 4), uint32_t(b), uint32_t(t), uint32_t(layer));
    const int64_t n = min64(kPhiloxWords, padded<T>(units) - first);
    for (int64_t i = 0; i < n; ++i) keep[first + i] = words[i] >= below ? factor : T(0);
  }
}

}  // namespace HF_ISA
}  // namespace hyperfast
