// The instruction set that the CPU kernels run on: the best that this machine has, unless one is forced.
#pragma once

#include <string>

namespace hyperfast {

enum class Isa : int { generic, avx2, avx512 };

Isa current_isa();
// Names of the sets that were compiled and that this machine has, worst first, e.g. "generic avx2".
std::string available_isas();
// Forces one of available_isas(), or with "auto" the best. Throws std::invalid_argument otherwise.
void force_isa(const std::string& name);
const char* isa_name(Isa isa);

// Kernels of one family for the current set; Table is a struct of function pointers.
template <class Table>
const Table& for_isa(const Table& generic, [[maybe_unused]] const Table& avx2, [[maybe_unused]] const Table& avx512) {
  switch (current_isa()) {
    case Isa::avx512: return avx512;
    case Isa::avx2: return avx2;
    default: return generic;
  }
}

}  // namespace hyperfast
