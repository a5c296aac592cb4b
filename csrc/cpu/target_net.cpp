// Batched MLP on the CPU: all layers of one network over a block of kBlock rows at a time, so that the
// activations stay in L1 and L2. Weights are packed once per network, into [panel][k][lanes].
//
// Per row of one network, FLOPs: 2 * sum(in * out) forward; backward three times that (recomputed
// activations, gradient to the inputs of every layer, gradient to theta). Bytes of main memory: x, theta
// once, y forward; and gy, gx, gtheta backward. Nothing between the layers reaches main memory.
#include "common/table.h"
#include "target_net_backward.h"

namespace hyperfast {
namespace HF_ISA {

// ---- backward -----------------------------------------------------------------------------------

template <class T>
static void backward(const MlpProblem& p, const Gradients& g, int64_t network, int64_t begin, int64_t end,
                     void* gradient_values, void* scratch) {
  T* gradient = static_cast<T*>(gradient_values);
  const int64_t layers = p.num_layers;
  Arena arena{static_cast<char*>(scratch)};
  int64_t largest = 0;
  for (int64_t l = 0; l < layers; ++l) largest = max64(largest, p.layers[l].in * p.layers[l].out);
  T* converted = arena.take<T>(largest);
  PackedLayer<T>* packed = arena.take<PackedLayer<T>>(layers);
  T** h = arena.take<T*>(layers + 1);  // h[0] = x; h[l] = output of layer l - 1, in panels
  T** slope = arena.take<T*>(layers + 1);
  h[0] = arena.take<T>(padded<T>(p.layers[0].in) * kBlock);
  slope[0] = nullptr;
  for (int64_t l = 0; l < layers; ++l) {
    const Layer& layer = p.layers[l];
    pack_layer(packed + l, p, l, network, l > 0 || g.gx, converted, arena);
    h[l + 1] = arena.take<T>(padded<T>(layer.out) * kBlock);
    slope[l + 1] = layer.activation == Activation::identity ? nullptr : arena.take<T>(padded<T>(layer.out) * kBlock);
  }
  const int64_t width = padded<T>(widest(p));
  T* gz = arena.take<T>(width * kBlock);
  T* below = arena.take<T>(width * kBlock);
  const int64_t in = p.layers[0].in, out = p.layers[layers - 1].out;

  if (g.want_theta && begin == end)
    for (int64_t i = 0; i < gradient_size<T>(p); ++i) gradient[i] = T(0);
  Ahead ahead(p, network, end - begin);
  for (int64_t r = begin; r < end; r += kBlock) {
    const int64_t rows = min64(kBlock, end - r);
    rows_to_panels(h[0], element(p.x.data, p.x.type, network * p.x.network_stride + r * p.x.row_stride), p.x.type,
                   p.x.row_stride, rows, in);
    for (int64_t l = 0; l < layers; ++l)
      forward_layer<T>(p, l, packed[l], in_panels<T>(h[l]), h[l + 1], slope[l + 1], rows, ahead);

    rows_to_panels(gz, element(g.gy.data, g.gy.type, network * g.gy.network_stride + r * g.gy.row_stride), g.gy.type,
                   g.gy.row_stride, rows, out);
    if (slope[layers]) multiply_panels(gz, slope[layers], padded<T>(out) / kPanel<T>, rows);
    for (int64_t l = layers - 1; l >= 0; --l) {
      const Layer& layer = p.layers[l];
      if (g.want_theta) {
        T* to = gradient + gradient_offset<T>(p, l);
        const int64_t stride = padded<T>(layer.in);
        for_tiles(WeightGradient<T>{gz, h[l], to, stride, rows, r > begin}, stride / kPanel<T>, layer.out);
        bias_gradient(gz, to + layer.out * stride, padded<T>(layer.out), rows, r > begin);
      }
      if (l == 0 && !g.gx) break;
      for_tiles(InputGradient<T>{layer, packed[l], gz, below, slope[l]}, padded<T>(layer.in) / kPanel<T>, rows);
      T* swap = gz;
      gz = below;
      below = swap;
    }
    if (g.gx)
      panels_to_rows(element(g.gx, g.gx_type, network * g.gx_network_stride + r * in), g.gx_type, gz, rows, in,
                     g.add_to_gx);
  }
}

template <class T>
static int64_t saved_bytes(const MlpProblem&) {
  return 0;  // recomputing a layer takes less time than writing and reading its output
}

// ---- the table ----------------------------------------------------------------------------------

HF_KERNEL_TABLE(MlpProblem, mlp_kernels);

}  // namespace HF_ISA
}  // namespace hyperfast
