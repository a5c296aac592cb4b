// Scratch that a thread keeps: fresh pages cost 2.2 us each, more than small problems take to compute.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace hyperfast {

// What the memory is for: a thread that shares out its own memory among others also needs scratch as one of them.
enum class Use { scratch, shared };

// 64-byte aligned, at least `bytes` long, valid until this thread's next call for the same use.
template <Use = Use::scratch>
inline char* thread_workspace(int64_t bytes) {
  struct Buffer {
    void* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.size = (bytes + bytes / 4 + 63) / 64 * 64;
    buffer.data = std::aligned_alloc(64, size_t(buffer.size));
    if (!buffer.data) {
      buffer.size = 0;
      throw std::bad_alloc();
    }
  }
  return static_cast<char*>(buffer.data);
}

inline int64_t aligned64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace hyperfast
