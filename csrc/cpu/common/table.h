// The table of a kind of network: every function of Kernels<P> for the compute type that x asks for.
#pragma once

#include "../../target_net.h"

// Defines `name`; needs the templates workspace<T>, forward<T>, ... of this unit.
#define HF_KERNEL_TABLE(P, name)                                                                                       \
  extern const Kernels<P> name = {                                                                                     \
      [](const P& p) { return p.x.type == DType::f64 ? saved_bytes<double>(p) : saved_bytes<float>(p); },              \
      [](const P& p, bool backward) {                                                                                  \
        return p.x.type == DType::f64 ? workspace<double>(p, backward) : workspace<float>(p, backward);                \
      },                                                                                                               \
      [](const P& p, int64_t network, int64_t begin, int64_t end, void* y, void* scratch) {                            \
        p.x.type == DType::f64 ? forward<double>(p, network, begin, end, y, scratch)                                   \
                               : forward<float>(p, network, begin, end, y, scratch);                                   \
      },                                                                                                               \
      [](const P& p) { return p.x.type == DType::f64 ? gradient_size<double>(p) : gradient_size<float>(p); },          \
      [](const P& p, const Gradients& g, int64_t network, int64_t begin, int64_t end, void* gradient, void* scratch) { \
        p.x.type == DType::f64 ? backward<double>(p, g, network, begin, end, gradient, scratch)                        \
                               : backward<float>(p, g, network, begin, end, gradient, scratch);                        \
      },                                                                                                               \
      [](const P& p, void* total, const void* part) {                                                                  \
        p.x.type == DType::f64 ? add<double>(p, total, part) : add<float>(p, total, part);                             \
      },                                                                                                               \
      [](const P& p, const void* gradient, void* gtheta, void* gbias) {                                                \
        p.x.type == DType::f64 ? emit<double>(p, gradient, gtheta, gbias) : emit<float>(p, gradient, gtheta, gbias);   \
      }}
