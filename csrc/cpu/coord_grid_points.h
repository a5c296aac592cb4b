// The points of a network: blocks of coordinates in the panels that the MLP's kernels read, and windows.
#pragma once

#include "../coord_grid.h"
#include "common/arena.h"
#include "common/panels.h"

namespace hyperfast {
namespace HF_ISA {

// The points of one network as a box: along axis d the indices [first, first + size), point i at
// start + step * i.
template <class T>
struct Box {
  int64_t axes;
  int64_t* size;
  int64_t* first;
  double* start;
  double* step;
  int64_t* index;     // of the next point, while a block is filled
  const T* constant;  // a row of the inputs, padded: zeros for the axes, then extra
  int64_t inputs;

  int64_t count() const {
    int64_t n = 1;
    for (int64_t d = 0; d < axes; ++d) n *= size[d];
    return n;
  }
};

static int64_t box_bytes(const GridProblem& p) { return 64 * 6 + 5 * 8 * p.axes + 8 * (p.axes + p.extras + 64); }

// All points of a network. Of a patch, those in rows [top, bottom) of the image; its indices count from the patch's
// own corner, so that a pixel's coordinates do not depend on the rows that are asked for.
template <class T>
static Box<T> box_of(const GridProblem& p, int64_t network, int64_t top, int64_t bottom, Arena& arena) {
  Box<T> box;
  box.axes = p.axes;
  box.inputs = p.axes + p.extras;
  box.size = arena.take<int64_t>(p.axes);
  box.first = arena.take<int64_t>(p.axes);
  box.index = arena.take<int64_t>(p.axes);
  box.start = arena.take<double>(p.axes);
  box.step = arena.take<double>(p.axes);
  if (p.kind == GridKind::render) {
    const int32_t* rect = p.rects + 4 * network;
    const int64_t from = max64(rect[0], top), to = min64(rect[1], bottom);
    box.size[0] = max64(to - from, 0);
    box.size[1] = max64(rect[3] - rect[2], 0);
    box.first[0] = from - rect[0];
    box.first[1] = 0;
    for (int d = 0; d < 2; ++d) {
      box.start[d] = p.starts[2 * network + d];
      box.step[d] = p.step[d];
    }
  } else {
    for (int64_t d = 0; d < p.axes; ++d) {
      box.size[d] = p.sizes[d];
      box.first[d] = 0;
      box.start[d] = 1 / double(p.sizes[d]) - 1;
      box.step[d] = 2 / double(p.sizes[d]);
    }
  }
  const int64_t padded_inputs = round_up(box.inputs, kPanel<T>);
  T* constant = arena.take<T>(padded_inputs);
  for (int64_t i = 0; i < padded_inputs; ++i) constant[i] = T(0);
  for (int64_t e = 0; e < p.extras; ++e) constant[p.axes + e] = static_cast<const T*>(p.extra)[network * p.extras + e];
  box.constant = constant;
  return box;
}

// Points [begin, begin + rows) of the box.
template <class T>
static void fill_points(const Box<T>& box, int64_t begin, int64_t rows, T* panels) {
  for (int64_t d = box.axes - 1, n = begin; d >= 0; n /= box.size[d], --d) box.index[d] = n % box.size[d];
  for (int64_t f = 0; f < box.inputs; f += kPanel<T>)
    for (int64_t r = 0; r < rows; ++r)
      HF_UNROLL for (int j = 0; j < kPanel<T>; j += kLanes<T>)
          store(panels + f / kPanel<T> * kPanelStride<T> + r * kPanel<T> + j, load(box.constant + f + j));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t d = 0; d < box.axes; ++d) {
      const double at = double(box.first[d] + box.index[d]);
      panels[d / kPanel<T> * kPanelStride<T> + r * kPanel<T> + d % kPanel<T>] = T(box.start[d] + box.step[d] * at);
    }
    for (int64_t d = box.axes - 1; d >= 0 && ++box.index[d] == box.size[d]; --d) box.index[d] = 0;
  }
}

// The window's weights along the rows and columns of a patch's box.
template <class T>
struct Weights {
  T* rows;
  T* columns;
};
static int64_t weight_bytes(const GridProblem& p) {
  return p.kind == GridKind::render ? 64 * 2 + 8 * (p.sizes[0] + p.sizes[1]) : 0;
}

template <class T>
static Weights<T> weights_of(const GridProblem& p, const Box<T>& box, Arena& arena) {
  T* weights[2];
  for (int d = 0; d < 2; ++d) {
    weights[d] = arena.take<T>(box.size[d]);
    for (int64_t i = 0; i < box.size[d]; ++i) {
      const double u = box.start[d] + box.step[d] * double(box.first[d] + i);
      const double hann = 0.5 * (1 + __builtin_cos(3.14159265358979323846 * u)) + 1e-3;
      weights[d][i] = p.window == Window::flat ? T(1) : T(hann);
    }
  }
  return {weights[0], weights[1]};
}

}  // namespace HF_ISA
}  // namespace hyperfast
