// The contract of the native HyperLSTM and HyperRNN: one layer over all its time steps, forward and backward.
//
// Rows are those of all steps, one step after the other; step t has at most as many rows as step t - 1, the same
// sequences in the same order. The equations are those of hyperfast/reference/hyper_lstm.py, gates i, f, g, o; an
// RNN's, of one gate and without c, those of hyper_lstm_rnn.py.
//
// Inside, each gate's units are padded to whole panels of 64 bytes (Hp, Kp), pads zero; a row of products is
// [gates of the main cell, Hp each][gates of the hyper cell, Kp each]. What a forward saves for a row is such a row:
// W_h h for the main cell, and the hyper cell's pre-activation without its bias.
//
// The driver (csrc/ops/hyper_lstm.cpp) owns all memory and shares each phase out over the threads:
//     pack -> for each chunk of steps: inputs -> for each step: recurrent, rows
//     pack -> for each chunk, from the last: gather, for each step: backward_rows, backward_state; then weights, dx
#pragma once

#include "target_net.h"

namespace hyperfast {

// Indices of a layer's weights, in the order of hyperfast/ops/hyper_lstm.py, NAMES.
enum HyperLstmWeight : int {
  kWeightIh,
  kWeightHh,
  kBias,
  kLnWeight,
  kLnBias,
  kHyperWeightIh,
  kHyperWeightHh,
  kHyperBias,
  kHyperLnWeight,
  kHyperLnBias,
  kZhWeight,
  kZxWeight,
  kZbWeight,
  kZhBias,
  kZxBias,
  kDhWeight,
  kDxWeight,
  kDbWeight,
  kHyperLstmWeights
};

// What both cells of a layer make of their pre-activations; in the order of hyperfast/ops/hyper_lstm.py, CELLS.
enum class HyperLstmCell : int { lstm, tanh, relu };

struct HyperLstmLayer {
  HyperLstmCell cell;
  int64_t gates;                                  // 4 in an LSTM, 1 in an RNN
  DType data;                                     // of x, states, outputs
  DType weights;                                  // of all weights
  DType compute;                                  // f32, or f64 where data is
  int64_t inputs, units, hyper_units, embedding;  // hyper_units 0: an LSTM without scales
  const void* weight[kHyperLstmWeights];          // contiguous; null: the layer has none
  bool previous;                                  // embeddings from the hyper cell's last output, not its new one
  double forget_bias, drop, hyper_drop;           // drop: probabilities, 0 without a seed
  uint64_t seed;
  int64_t layer;
};

// A step's place: its rows lie at `row` of all rows and at `in_chunk` of its chunk.
struct HyperLstmStep {
  int64_t t, rows, row, in_chunk;
};

// Everything that the phases share. Pointers without a type are of the compute type.
struct HyperLstmRun {
  HyperLstmLayer l;
  int64_t batch, chunk_rows, slabs;
  bool backward, direct;  // direct: products read the weights where they lie
  // of the caller
  const void *x, *state[4];  // h, c, hyper_h, hyper_c
  void* out[4];              // the same after each step
  void* saved;               // all rows' products; null: those of one step, in `products`
  const void* grad[4];       // of out; null: none
  void* gx;                  // [R, I] of the data type; null: not wanted
  void* gstate[4];           // of the data type
  bool want_weights;
  // workspace
  void *packed_h, *packed_hyper_h, *packed_x, *packed_z, *packed_d, *vectors;
  void *h, *c, *hyper_h, *hyper_c;  // states now, padded; backward: their gradients
  void *products, *inputs;
  // backward: weights as they multiply gradients; panels of a chunk's gradients and operands; sums over rows
  void *back_h, *back_hyper_h, *back_x, *back_hyper_x, *back_z;
  void *panels_g, *panels_gx, *panels_h, *panels_hyper_h, *panels_x;
  void *sum_h, *sum_hyper_h, *sum_x, *slab;
};

struct HyperLstmKernels {
  // Sets the workspace pointers from `base` on; returns the bytes they take.
  int64_t (*layout)(HyperLstmRun&, char* base);
  int64_t (*saved_width)(const HyperLstmRun&);
  int64_t (*scratch)(const HyperLstmRun&);  // bytes that `rows` and `backward_rows` take besides
  // Tasks [begin, end) of pack_tasks().
  int64_t (*pack_tasks)(const HyperLstmRun&);
  void (*pack)(const HyperLstmRun&, int64_t begin, int64_t end);
  void (*load_state)(const HyperLstmRun&);
  // Products of rows [row, row + rows) of x, in tasks [begin, end) of product_tasks().
  int64_t (*product_tasks)(const HyperLstmRun&);
  void (*input_products)(const HyperLstmRun&, int64_t row, int64_t rows, int64_t begin, int64_t end);
  void (*recurrent_products)(const HyperLstmRun&, const HyperLstmStep&, int64_t begin, int64_t end);
  // Everything else of a step, for batch rows [begin, end).
  void (*rows)(const HyperLstmRun&, const HyperLstmStep&, int64_t begin, int64_t end, char* scratch);

  void (*clear_sums)(const HyperLstmRun&);
  // The operands of a step's weight gradients, into the chunk's panels.
  void (*gather)(const HyperLstmRun&, const HyperLstmStep&, int64_t rows_before);
  void (*backward_rows)(const HyperLstmRun&, const HyperLstmStep&, int64_t rows_before, int64_t begin, int64_t end,
                        int64_t slab, char* scratch);
  int64_t (*state_tasks)(const HyperLstmRun&);
  void (*backward_state)(const HyperLstmRun&, const HyperLstmStep&, int64_t begin, int64_t end);
  void (*store_state_gradients)(const HyperLstmRun&);
  int64_t (*weight_tasks)(const HyperLstmRun&);
  void (*weight_products)(const HyperLstmRun&, int64_t rows, int64_t begin, int64_t end);
  void (*input_gradients)(const HyperLstmRun&, int64_t row, int64_t begin, int64_t end);
  // A chunk's sums of all slabs into those of the chunks so far.
  int64_t (*slab_tasks)(const HyperLstmRun&);
  void (*add_slabs)(const HyperLstmRun&, int64_t begin, int64_t end);
  // The sums of all chunks into the gradients [kHyperLstmWeights] of the weights' type.
  void (*store_weights)(const HyperLstmRun&, void* const* gradients);
};

namespace generic {
extern const HyperLstmKernels hyper_lstm_kernels;
}
namespace avx2 {
extern const HyperLstmKernels hyper_lstm_kernels;
}
namespace avx512 {
extern const HyperLstmKernels hyper_lstm_kernels;
}

}  // namespace hyperfast
