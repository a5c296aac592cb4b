#include "isa.h"

#include <atomic>
#include <stdexcept>

namespace hyperfast {
namespace {

constexpr Isa kAll[] = {Isa::generic, Isa::avx2, Isa::avx512};

bool has(Isa isa) {
#ifdef HYPERFAST_X86
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && has(Isa::avx2);
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    default: return true;
  }
#else
  return isa == Isa::generic;
#endif
}

Isa best() {
  Isa found = Isa::generic;
  for (Isa isa : kAll)
    if (has(isa)) found = isa;
  return found;
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{best()};
  return isa;
}

}  // namespace

Isa current_isa() { return current().load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "generic"; }

std::string available_isas() {
  std::string names;
  for (Isa isa : kAll)
    if (has(isa)) names.append(names.empty() ? "" : " ").append(isa_name(isa));
  return names;
}

void force_isa(const std::string& name) {
  if (name == "auto") return current().store(best());
  for (Isa isa : kAll)
    if (name == isa_name(isa) && has(isa)) return current().store(isa);
  throw std::invalid_argument("instruction set must be one of: auto " + available_isas() + "; got " + name);
}

}  // namespace hyperfast
