// Registers the native batched MLP and CNN: schemas, and a problem from the arguments of a call.
// Arguments were checked in hyperfast/ops/target_net.py.
#include "../target_net.h"

#include "../cpu/common/isa.h"
#include "networks.h"

namespace hyperfast {
namespace {

#ifdef HYPERFAST_X86
const Kernels<MlpProblem>& mlp_kernels() {
  return for_isa(generic::mlp_kernels, avx2::mlp_kernels, avx512::mlp_kernels);
}
const Kernels<ConvProblem>& conv_kernels() {
  return for_isa(generic::conv_kernels, avx2::conv_kernels, avx512::conv_kernels);
}
#else
const Kernels<MlpProblem>& mlp_kernels() { return generic::mlp_kernels; }
const Kernels<ConvProblem>& conv_kernels() { return generic::conv_kernels; }
#endif

// ---- MLP ----------------------------------------------------------------------------------------

// layers: (in, out, activation, has a bias) of each.
struct MlpCall : Call<MlpProblem> {
  MlpCall(const Tensor& x, const Tensor& theta, const OptionalTensor& bias, const Ints& ints,
          const std::vector<double>& parameters)
      : Call(x, theta, bias, 1) {
    rows_per_task = 192;
    rows_per_part = 2048;
    int64_t offset = 0;
    for (size_t l = 0; l < parameters.size(); ++l) {
      const int64_t* i = &ints[4 * l];
      Layer layer{i[0], i[1], 0, 0, Activation(i[2]), parameters[l]};
      place(layer, layer.in * layer.out, i[3], offset);
      layers.push_back(layer);
    }
    set_layers();
  }
};

std::tuple<Tensor, Tensor> mlp(const Tensor& x, const Tensor& theta, const OptionalTensor& bias, const Ints& layers,
                               const std::vector<double>& parameters, bool save) {
  MlpCall call(x, theta, bias, layers, parameters);
  return run_forward(call, mlp_kernels(), {call.layers.back().out}, save);
}

std::tuple<Tensor, Tensor, Tensor> mlp_backward(const Tensor& gy, const Tensor& x, const Tensor& theta,
                                                const OptionalTensor& bias, const Tensor& saved, const Ints& layers,
                                                const std::vector<double>& parameters, bool want_x, bool want_theta,
                                                bool want_bias) {
  MlpCall call(x, theta, bias, layers, parameters);
  return Backward(call, mlp_kernels(), gy, saved, want_x, want_theta, want_bias).run();
}

// ---- CNN ----------------------------------------------------------------------------------------

// layers: (in, out, kernel_y, kernel_x, stride_y, stride_x, pad_y, pad_x, pool, activation, has a bias) of each.
struct ConvCall : Call<ConvProblem> {
  ConvCall(const Tensor& x, const Tensor& theta, const OptionalTensor& bias, const Ints& ints,
           const std::vector<double>& parameters)
      : Call(x, theta, bias, 3) {
    rows_per_task = 8;
    rows_per_part = 256;
    int64_t offset = 0, height = this->x.size(this->x.dim() - 2), width = this->x.size(this->x.dim() - 1);
    for (size_t l = 0; l < parameters.size(); ++l) {
      const int64_t* i = &ints[11 * l];
      ConvLayer layer{};
      layer.in = i[0];
      layer.height = height;
      layer.width = width;
      layer.out = i[1];
      layer.kernel_y = i[2];
      layer.kernel_x = i[3];
      layer.stride_y = i[4];
      layer.stride_x = i[5];
      layer.pad_y = i[6];
      layer.pad_x = i[7];
      layer.pool = i[8];
      layer.activation = Activation(i[9]);
      layer.parameter = parameters[l];
      height = layer.out_height = ((height + 2 * layer.pad_y - layer.kernel_y) / layer.stride_y + 1) / layer.pool;
      width = layer.out_width = ((width + 2 * layer.pad_x - layer.kernel_x) / layer.stride_x + 1) / layer.pool;
      place(layer, layer.in * layer.out * layer.kernel_y * layer.kernel_x, i[10], offset);
      layers.push_back(layer);
    }
    set_layers();
  }
};

std::tuple<Tensor, Tensor> cnn(const Tensor& x, const Tensor& theta, const OptionalTensor& bias, const Ints& layers,
                               const std::vector<double>& parameters, bool save) {
  ConvCall call(x, theta, bias, layers, parameters);
  const ConvLayer& last = call.layers.back();
  return run_forward(call, conv_kernels(), {last.out, last.out_height, last.out_width}, save);
}

std::tuple<Tensor, Tensor, Tensor> cnn_backward(const Tensor& gy, const Tensor& x, const Tensor& theta,
                                                const OptionalTensor& bias, const Tensor& saved, const Ints& layers,
                                                const std::vector<double>& parameters, bool want_x, bool want_theta,
                                                bool want_bias) {
  ConvCall call(x, theta, bias, layers, parameters);
  return Backward(call, conv_kernels(), gy, saved, want_x, want_theta, want_bias).run();
}

std::string cpu_isa(const std::string& force) {
  if (!force.empty()) force_isa(force);
  return isa_name(current_isa());
}
std::string cpu_isas() { return available_isas(); }

}  // namespace
}  // namespace hyperfast

#define FORWARD \
  "(Tensor x, Tensor theta, Tensor? bias, int[] layers, float[] parameters, bool save) -> (Tensor, Tensor)"
#define BACKWARD                                                                                                    \
  "(Tensor gy, Tensor x, Tensor theta, Tensor? bias, Tensor saved, int[] layers, float[] parameters, bool want_x, " \
  "bool want_theta, bool want_bias) -> (Tensor, Tensor, Tensor)"

STABLE_TORCH_LIBRARY_FRAGMENT(hyperfast, m) {
  m.def("batched_mlp_cpp" FORWARD);
  m.def("batched_mlp_backward_cpp" BACKWARD);
  m.def("batched_cnn_cpp" FORWARD);
  m.def("batched_cnn_backward_cpp" BACKWARD);
  m.def("cpu_isa(str force) -> str");
  m.def("cpu_isas() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CPU, m) {
  m.impl("batched_mlp_cpp", TORCH_BOX(&hyperfast::mlp));
  m.impl("batched_mlp_backward_cpp", TORCH_BOX(&hyperfast::mlp_backward));
  m.impl("batched_cnn_cpp", TORCH_BOX(&hyperfast::cnn));
  m.impl("batched_cnn_backward_cpp", TORCH_BOX(&hyperfast::cnn_backward));
}

STABLE_TORCH_LIBRARY_IMPL(hyperfast, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&hyperfast::cpu_isa));
  m.impl("cpu_isas", TORCH_BOX(&hyperfast::cpu_isas));
}
