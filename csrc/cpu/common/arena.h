// Pieces of the scratch memory that a caller hands to a kernel, each 64-byte aligned.
#pragma once

#include "vec.h"

namespace hyperfast {
namespace HF_ISA {

struct Arena {
  char* at;

  template <class T>
  T* take(int64_t n) {
    char* begin = at;
    at += round_up(n * int64_t(sizeof(T)), 64);
    return reinterpret_cast<T*>(begin);
  }
};

}  // namespace HF_ISA
}  // namespace hyperfast
