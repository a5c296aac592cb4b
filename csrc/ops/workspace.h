// Scratch that a thread keeps: fresh pages cost 2.2 us each, more than small problems take to compute.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hyperfast {

// 64-byte aligned, at least `bytes` long, valid until this thread's next call.
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

// Asks for 2 MB pages for a large result that is about to be written: its 4 KB pages would cost a third of a
// small problem's backward. Only whole huge pages inside [data, data + bytes) are named.
inline void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t page = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

inline int64_t aligned64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace hyperfast
