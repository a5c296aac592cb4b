// Weights packed once for all steps: panels of outputs for forward, panels of inputs for backward.
#pragma once

#include "hyper_lstm.h"

namespace hyperfast {
namespace HF_ISA {

// Panel `panel` of a gate-padded matrix: [in][lanes].
template <class T>
static void pack_outputs(T* to, const Stored& m, DType type, int64_t panel) {
  constexpr int64_t lanes = kPanel<T>, most = 128;
  const int64_t panels = padded<T>(m.units) / lanes, gate = panel / panels, first = panel % panels * lanes;
  const int64_t height = min64(lanes, m.units - first);
  T rows[lanes * most];
  for (int64_t k = 0; k < m.in; k += most) {
    const int64_t n = min64(most, m.in - k);
    for (int64_t lane = 0; lane < height; ++lane) {
      const int64_t at = (gate * m.units + first + lane) * m.row_stride + m.column + k;
      load_row(rows + lane * n, element(m.data, type, at), type, n);
    }
    pack_transposed(to + k * lanes, rows, height, n);
  }
}

// Panel `panel` of the inputs: [gates * padded units][lanes], zero in pads.
template <class T>
static void pack_inputs(T* to, const Stored& m, DType type, int64_t panel) {
  constexpr int64_t lanes = kPanel<T>;
  const int64_t up = padded<T>(m.units), first = panel * lanes, n = min64(lanes, m.in - first);
  for (int64_t row = 0; row < m.gates * up; ++row, to += lanes) {
    const int64_t gate = row / up, unit = row % up;
    if (unit < m.units)
      load_row(to, element(m.data, type, (gate * m.units + unit) * m.row_stride + m.column + first), type, n);
    for (int64_t i = unit < m.units ? n : 0; i < lanes; ++i) to[i] = T(0);
  }
}

template <class T>
static void pack_vectors(const HyperLstmRun& r, const Sizes<T>& s) {
  const HyperLstmLayer& l = r.l;
  const Vectors<T> v = Vectors<T>::at(r.vectors, s);
  const auto cell = [&](const CellVectors<T>& to, int first, int64_t units) {
    load_padded(to.bias, l.weight[first], l.weights, s.gates, units);
    load_padded(to.ln_weight, l.weight[first + 1], l.weights, s.norms, units);
    load_padded(to.ln_bias, l.weight[first + 2], l.weights, s.norms, units);
  };
  cell(v.main, kBias, s.units);
  cell(v.hyper, kHyperBias, s.hyper);
  if (!s.scaled()) return;
  const int64_t n = s.gates * s.embedding;
  load_row(v.embedding, l.weight[kZhBias], l.weights, n);
  load_row(v.embedding + n, l.weight[kZxBias], l.weights, n);
  for (int64_t i = 2 * n; i < s.zp; ++i) v.embedding[i] = T(0);
}

// Map `map` (kind * gates + gate) to scales, [panel][element][lanes].
template <class T>
static void pack_map(const HyperLstmRun& r, const Sizes<T>& s, int64_t map) {
  const int64_t gate = map % s.gates;
  const void* of_gate = element(r.l.weight[kDhWeight + map / s.gates], r.l.weights, gate * s.units * s.embedding);
  const Stored m = {of_gate, 1, s.units, s.embedding, s.embedding, 0};
  T* to = static_cast<T*>(r.packed_d) + map * s.embedding * s.hp;
  for (int64_t panel = 0; panel < s.hp / kPanel<T>; ++panel)
    pack_outputs(to + panel * s.embedding * kPanel<T>, m, r.l.weights, panel);
}

template <class T>
static int64_t pack_tasks(const HyperLstmRun& r) {
  const Sizes<T> s(r.l);
  const int64_t panels = panels_of(s), inputs = (s.hp + s.kp + 2 * s.ip) / kPanel<T>;
  return 1 + (s.scaled() ? s.maps : 0) + (r.direct ? 0 : panels) + (r.backward ? inputs : 0);
}

// Vectors and embeddings; each map; each panel of outputs; each panel of inputs, for backward.
template <class T>
static void pack_one(const HyperLstmRun& r, const Sizes<T>& s, int64_t task) {
  constexpr int64_t lanes = kPanel<T>;
  const HyperLstmLayer& l = r.l;
  if (task == 0) {
    pack_vectors(r, s);
    if (!s.scaled()) return;
    T* to = static_cast<T*>(r.packed_z);
    const int64_t n = s.gates * s.embedding;
    for (int64_t panel = 0; panel < s.zp / lanes; ++panel)
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t e = panel * lanes + lane;
        for (int64_t k = 0; k < s.hyper; ++k) {
          T value = T(0);
          if (e < s.embeddings)
            load_row(&value, element(l.weight[kZhWeight + e / n], l.weights, e % n * s.hyper + k), l.weights, 1);
          to[(panel * s.hyper + k) * lanes + lane] = value;
          if (r.backward && e < s.embeddings)
            static_cast<T*>(r.back_z)[(k / lanes * s.embeddings + e) * lanes + k % lanes] = value;
        }
        for (int64_t k = s.hyper; r.backward && e < s.embeddings && k < s.kp; ++k)
          static_cast<T*>(r.back_z)[(k / lanes * s.embeddings + e) * lanes + k % lanes] = T(0);
      }
    return;
  }
  task -= 1;
  if (s.scaled() && task < s.maps) return pack_map(r, s, task);
  task -= s.scaled() ? s.maps : 0;
  const int64_t main = s.main / lanes;
  if (!r.direct) {
    if (task < panels_of(s)) {
      const bool hyper = task >= main;
      const int64_t panel = hyper ? task - main : task;
      T *x = static_cast<T*>(r.packed_x) + task * s.inputs * lanes, *h = static_cast<T*>(r.packed_h);
      pack_outputs(x, hyper ? hyper_weight_x(l) : weight_ih(l), l.weights, panel);
      if (r.backward) return;
      pack_outputs(h + task * s.units * lanes, hyper ? hyper_weight_h(l) : weight_hh(l), l.weights, panel);
      if (hyper)
        pack_outputs(static_cast<T*>(r.packed_hyper_h) + panel * s.hyper * lanes, hyper_weight_hh(l), l.weights, panel);
      return;
    }
    task -= panels_of(s);
  }
  T* h = static_cast<T*>(r.back_h);
  if (task < s.hp / lanes) {
    pack_inputs(h + task * s.width * lanes, weight_hh(l), l.weights, task);
    if (s.scaled()) pack_inputs(h + (task * s.width + s.main) * lanes, hyper_weight_h(l), l.weights, task);
    return;
  }
  task -= s.hp / lanes;
  const int64_t hyper_rows = s.gates * s.kp;
  if (task < s.kp / lanes)
    return pack_inputs(static_cast<T*>(r.back_hyper_h) + task * hyper_rows * lanes, hyper_weight_hh(l), l.weights,
                       task);
  task -= s.kp / lanes;
  if (task < s.ip / lanes)
    return pack_inputs(static_cast<T*>(r.back_x) + task * s.main * lanes, weight_ih(l), l.weights, task);
  task -= s.ip / lanes;
  if (s.scaled())
    pack_inputs(static_cast<T*>(r.back_hyper_x) + task * hyper_rows * lanes, hyper_weight_x(l), l.weights, task);
}

template <class T>
static void pack_all(const HyperLstmRun& r, int64_t begin, int64_t end) {
  const Sizes<T> s(r.l);
  for (int64_t task = begin; task < end; ++task) pack_one(r, s, task);
}

}  // namespace HF_ISA
}  // namespace hyperfast
