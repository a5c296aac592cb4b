// Registers the native HyperLSTM and HyperRNN: walks over the steps and shares each phase out over the threads.
// Arguments were checked in hyperfast/ops/hyper_lstm.py.
#include "../hyper_lstm.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "../cpu/common/isa.h"
#include "tensors.h"
#include "workspace.h"

namespace hyperfast {
namespace {

using torch::stable::parallel_for;
using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;
using Doubles = std::vector<double>;

constexpr size_t kState = 1, kWeights = 5;  // first places in the 23 tensors
constexpr int64_t kBlockRows = 6;           // rows that the kernels take at once
// Below so many rows or steps the weights are read where they lie: packing them costs as much as a few steps of 16
// rows.
constexpr int64_t kPackedRows = 5, kPackedSteps = 4;
constexpr int64_t kForwardChunk = 128, kBackwardChunk = 512;
// Batch rows are shared out in slabs of a fixed size, each with its sums: results do not depend on the number of
// threads.
constexpr int64_t kSlabs = 16, kSlabsOfFewRows = 4, kSlabsOfLargeMaps = 8, kLargeMaps = 1 << 18;
constexpr int64_t kFlopsPerTask = 1 << 16;

const HyperLstmKernels& kernels() {
#ifdef HYPERFAST_X86
  return for_isa(generic::hyper_lstm_kernels, avx2::hyper_lstm_kernels, avx512::hyper_lstm_kernels);
#else
  return generic::hyper_lstm_kernels;
#endif
}

struct Chunk {
  int64_t row, rows;
  std::vector<HyperLstmStep> steps;
};

// A call: the run, its steps in chunks, and what keeps its pointers alive.
struct Call {
  Tensors tensors;
  HyperLstmRun r{};
  std::vector<Chunk> chunks;
  int64_t slab_rows = 1;
  const HyperLstmKernels& kernel = kernels();

  Call(const Tensors& given, const Tensor& batch_sizes, const Tensor& seed, const Ints& ints, const Doubles& floats,
       bool backward) {
    for (const Tensor& t : given) tensors.push_back(torch::stable::contiguous(t));
    const Tensor &x = tensors[0], &h = tensors[1], &hyper_h = tensors[3];
    HyperLstmLayer& l = r.l;
    l.cell = HyperLstmCell(ints[2]);
    l.gates = l.cell == HyperLstmCell::lstm ? 4 : 1;
    l.data = dtype_of(x);
    l.weights = dtype_of(tensors[kWeights]);
    l.compute = l.data == DType::f64 ? DType::f64 : DType::f32;
    l.inputs = x.size(1);
    l.units = h.size(1);
    l.hyper_units = hyper_h.size(1);
    l.embedding = l.hyper_units ? tensors[kWeights + kZhWeight].size(1) : 0;
    for (size_t i = 0; i < kHyperLstmWeights; ++i) {
      const Tensor& t = tensors[kWeights + i];
      l.weight[i] = t.numel() ? t.const_data_ptr() : nullptr;
    }
    l.previous = ints[0] != 0;
    l.layer = ints[1];
    l.forget_bias = floats[0];
    if (seed.numel()) {
      l.seed = uint64_t(*static_cast<const int64_t*>(seed.const_data_ptr()));
      l.drop = floats[1];
      l.hyper_drop = floats[2];
    }
    r.backward = backward;
    r.batch = h.size(0);
    r.x = x.const_data_ptr();
    for (size_t i = 0; i < 4; ++i) r.state[i] = tensors[kState + i].const_data_ptr();
    const int64_t slabs = l.embedding * l.units * 3 * l.gates > kLargeMaps ? kSlabsOfLargeMaps : kSlabs;
    slab_rows = r.batch <= kSlabs ? (r.batch + kSlabsOfFewRows - 1) / kSlabsOfFewRows : (r.batch + slabs - 1) / slabs;
    if (slab_rows > kBlockRows / 2) slab_rows = (slab_rows + kBlockRows - 1) / kBlockRows * kBlockRows;
    slab_rows = std::max<int64_t>(1, slab_rows);
    r.slabs = std::max<int64_t>(1, (r.batch + slab_rows - 1) / slab_rows);
    divide(x.size(0), batch_sizes, backward ? kBackwardChunk : kForwardChunk);
  }

  void divide(int64_t rows, const Tensor& batch_sizes, int64_t most) {
    const Tensor sizes = torch::stable::contiguous(batch_sizes);
    const int64_t given = sizes.numel(), steps = given ? given : r.batch ? rows / r.batch : 0;
    const int64_t* each = given ? static_cast<const int64_t*>(sizes.const_data_ptr()) : nullptr;
    r.direct = !r.backward && (r.batch < kPackedRows || steps < kPackedSteps);
    for (int64_t t = 0, row = 0; t < steps; ++t) {
      const int64_t n = each ? each[t] : r.batch;
      if (chunks.empty() || chunks.back().rows + n > most) chunks.push_back({row, 0, {}});
      Chunk& chunk = chunks.back();
      chunk.steps.push_back({t, n, row, chunk.rows});
      chunk.rows += n;
      row += n;
      r.chunk_rows = std::max(r.chunk_rows, chunk.rows);
    }
  }

  // Memory of the run, and `slots` scratch areas behind it.
  char* allocate(int64_t slots) {
    HyperLstmRun trial = r;
    const int64_t bytes = aligned64(kernel.layout(trial, reinterpret_cast<char*>(64)));
    char* base = thread_workspace(bytes + slots * kernel.scratch(r));
    kernel.layout(r, base);
    return base + bytes;
  }

  template <class Work>
  void share(int64_t tasks, int64_t flops, const Work& work) const {
    if (tasks == 0) return;
    const int64_t grain = std::max<int64_t>(1, kFlopsPerTask * tasks / std::max<int64_t>(1, flops));
    parallel_for(0, tasks, grain, work);
  }
  int64_t row_flops() const {  // of the rows' part of a step, in round figures
    return r.l.gates * (50 + 6 * r.l.embedding) * (r.l.units + r.l.hyper_units);
  }
  int64_t width() const { return kernel.saved_width(r); }
  void pack() const {
    share(kernel.pack_tasks(r), width() * r.l.units, [&](int64_t begin, int64_t end) { kernel.pack(r, begin, end); });
  }
  void input_products(const Chunk& chunk) const {
    share(kernel.product_tasks(r), 2 * chunk.rows * width() * r.l.inputs,
          [&](int64_t begin, int64_t end) { kernel.input_products(r, chunk.row, chunk.rows, begin, end); });
  }
  int64_t step_flops(const HyperLstmStep& step) const {
    return 2 * step.rows * width() * (r.l.units + r.l.hyper_units);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> hyper_lstm(const Tensors& tensors, const Tensor& batch_sizes,
                                                              const Tensor& seed, const Ints& ints,
                                                              const Doubles& floats, bool save) {
  Call call(tensors, batch_sizes, seed, ints, floats, false);
  HyperLstmRun& r = call.r;
  const Tensor& x = call.tensors[0];
  const int64_t rows = x.size(0);
  Tensors out;
  for (size_t i = 0; i < 4; ++i) out.push_back(torch::stable::new_empty(x, {rows, call.tensors[kState + i].size(1)}));
  Tensor saved = torch::stable::new_empty(x, {save ? rows : 0, save ? call.width() : 0}, compute_type(x));
  if (rows > 0) {
    for (size_t i = 0; i < 4; ++i) r.out[i] = out[i].mutable_data_ptr();
    r.saved = save ? saved.mutable_data_ptr() : nullptr;
    const HyperLstmKernels& kernel = call.kernel;
    const int64_t scratch = kernel.scratch(r);
    char* memory = call.allocate(r.slabs);
    call.pack();
    kernel.load_state(r);
    for (const Chunk& chunk : call.chunks) {
      call.input_products(chunk);
      for (const HyperLstmStep& step : chunk.steps) {
        call.share(kernel.product_tasks(r), call.step_flops(step),
                   [&](int64_t begin, int64_t end) { kernel.recurrent_products(r, step, begin, end); });
        call.share(r.slabs, step.rows * call.row_flops(), [&](int64_t begin, int64_t end) {
          for (int64_t slab = begin; slab < end; ++slab)
            kernel.rows(r, step, std::min(slab * call.slab_rows, step.rows),
                        std::min((slab + 1) * call.slab_rows, step.rows), memory + begin * scratch);
        });
      }
    }
  }
  return {out[0], out[1], out[2], out[3], saved};
}

Tensors hyper_lstm_backward(const Tensors& grads, const Tensors& tensors, const Tensors& outputs,
                            const Tensor& batch_sizes, const Tensor& seed, const Ints& ints, const Doubles& floats,
                            bool want_x, bool want_weights) {
  Call call(tensors, batch_sizes, seed, ints, floats, true);
  HyperLstmRun& r = call.r;
  Tensors found, kept;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const bool want = i == 0 ? want_x : i < kWeights || want_weights;
    found.push_back(want ? torch::stable::new_empty(tensors[i], sizes(tensors[i]))
                         : torch::stable::new_empty(tensors[i], {0}));
  }
  for (size_t i = 0; i < 4; ++i) {
    kept.push_back(torch::stable::contiguous(grads[i]));
    r.grad[i] = kept.back().numel() ? kept.back().const_data_ptr() : nullptr;
    kept.push_back(torch::stable::contiguous(outputs[i]));
    r.out[i] = const_cast<void*>(kept.back().const_data_ptr());
    r.gstate[i] = found[kState + i].mutable_data_ptr();
  }
  kept.push_back(torch::stable::contiguous(outputs[4]));
  r.saved = const_cast<void*>(kept.back().const_data_ptr());
  r.gx = want_x ? found[0].mutable_data_ptr() : nullptr;
  r.want_weights = want_weights;

  const HyperLstmKernels& kernel = call.kernel;
  const int64_t scratch = kernel.scratch(r);
  char* memory = call.allocate(r.slabs);
  call.pack();
  kernel.clear_sums(r);
  for (size_t at = call.chunks.size(); at-- > 0;) {
    const Chunk& chunk = call.chunks[at];
    call.input_products(chunk);
    for (size_t i = chunk.steps.size(); i-- > 0;) {
      const HyperLstmStep& step = chunk.steps[i];
      const Chunk* before = i ? &chunk : at ? &call.chunks[at - 1] : nullptr;
      const int64_t row_before = !before ? -1 : i ? chunk.steps[i - 1].row : before->steps.back().row;
      if (want_weights) kernel.gather(r, step, row_before);
      call.share(r.slabs, 3 * step.rows * call.row_flops(), [&](int64_t begin, int64_t end) {
        for (int64_t slab = begin; slab < end; ++slab)
          kernel.backward_rows(r, step, row_before, std::min(slab * call.slab_rows, step.rows),
                               std::min((slab + 1) * call.slab_rows, step.rows), slab, memory + begin * scratch);
      });
      call.share(kernel.state_tasks(r), call.step_flops(step),
                 [&](int64_t begin, int64_t end) { kernel.backward_state(r, step, begin, end); });
    }
    const int64_t flops = 2 * chunk.rows * call.width() * (r.l.units + r.l.inputs);
    if (want_weights) {
      call.share(kernel.weight_tasks(r), flops,
                 [&](int64_t begin, int64_t end) { kernel.weight_products(r, chunk.rows, begin, end); });
      call.share(kernel.slab_tasks(r), r.slabs * call.row_flops(),
                 [&](int64_t begin, int64_t end) { kernel.add_slabs(r, begin, end); });
    }
    if (want_x)
      call.share(chunk.rows, flops,
                 [&](int64_t begin, int64_t end) { kernel.input_gradients(r, chunk.row, begin, end); });
  }
  kernel.store_state_gradients(r);
  if (want_weights) {
    void* gradients[kHyperLstmWeights];
    for (size_t i = 0; i < kHyperLstmWeights; ++i)
      gradients[i] = found[kWeights + i].numel() ? found[kWeights + i].mutable_data_ptr() : nullptr;
    kernel.store_weights(r, gradients);
  }
  return found;
}

}  // namespace
}  // namespace hyperfast

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def(
      "hyper_lstm_cpp(Tensor[] tensors, Tensor batch_sizes, Tensor seed, int[] ints, float[] floats, bool save) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "hyper_lstm_backward_cpp(Tensor[] grads, Tensor[] tensors, Tensor[] outputs, Tensor batch_sizes, Tensor seed, "
      "int[] ints, float[] floats, bool want_x, bool want_weights) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) {
  m.impl("hyper_lstm_cpp", TORCH_BOX(&hyperfast::hyper_lstm));
  m.impl("hyper_lstm_backward_cpp", TORCH_BOX(&hyperfast::hyper_lstm_backward));
}
