// What a grid-wide exchange costs: the floor of a recurrence that keeps its weights in one persistent grid.
//
//     nvcc -std=c++17 -O3 -arch=native -o hyper_lstm_barrier benchmarks/hyper_lstm_barrier.cu && ./hyper_lstm_barrier
//
// One block of 512 threads a multiprocessor, launched cooperatively. Measured are
//
//   barriers, after which every block sees what all others wrote before:
//     groups     cooperative_groups' grid.sync()
//     counter    one word that every block adds to and waits for
//     flags      a word of its own for every block; thread i of each block waits for block i's
//
//   sums of (x, x^2) over all blocks for each of R rows, what a layer norm needs of a row whose columns are spread
//   over the grid. A word of 64 bits carries a float and the number of the exchange, so that data and arrival are one
//   store, and no fence is needed:
//     all        every block reads the parts of all blocks: 16 R blocks^2 bytes from L2
//     owners     a row's parts go to one block, which gives all the total: 16 R blocks bytes, twice, but two waits
//
// Sums are checked against what they must be. A step of HyperLSTM with layer norms has three exchanges of rows.

#include <cooperative_groups.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda/atomic>

namespace {

namespace groups = cooperative_groups;

constexpr int THREADS = 512, WARPS = THREADS / 32, WARMUP = 200, EXCHANGES = 20'000, MOST_ROWS = 128;
using Word = unsigned long long;
using Shared = cuda::atomic_ref<Word, cuda::thread_scope_device>;

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

// ---- a float and the exchange that it belongs to, in one word ------------------------------------------

__device__ void send(Word* place, unsigned exchange, float value) {
  Shared(*place).store(Word(exchange) << 32 | __float_as_uint(value), cuda::memory_order_relaxed);
}

__device__ float receive(Word* place, unsigned exchange) {
  Word word;
  do {
    word = Shared(*place).load(cuda::memory_order_relaxed);
  } while (word >> 32 != exchange);
  return __uint_as_float(unsigned(word));
}

__device__ float summed(float value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  return value;
}

// The sum of `count` words of this exchange, by one warp.
__device__ float gathered(Word* places, int count, unsigned exchange) {
  float sum = 0;
  for (int i = threadIdx.x % 32; i < count; i += 32) sum += receive(places + i, exchange);
  return summed(sum);
}

// ---- barriers ------------------------------------------------------------------------------------------

struct Groups {
  static __device__ void run(Word*, unsigned) { groups::this_grid().sync(); }
};

struct Counter {
  static __device__ void run(Word* words, unsigned exchange) {
    __syncthreads();
    if (threadIdx.x == 0) {
      Shared arrived(words[0]);
      arrived.fetch_add(1, cuda::memory_order_acq_rel);
      while (arrived.load(cuda::memory_order_acquire) < Word(exchange) * gridDim.x) {
      }
    }
    __syncthreads();
  }
};

struct Flags {
  static __device__ void run(Word* words, unsigned exchange) {
    __syncthreads();
    if (threadIdx.x == 0) Shared(words[blockIdx.x]).store(exchange, cuda::memory_order_release);
    for (int i = threadIdx.x; i < gridDim.x; i += THREADS) {
      while (Shared(words[i]).load(cuda::memory_order_acquire) < exchange) {
      }
    }
    __syncthreads();
  }
};

// ---- sums over the grid --------------------------------------------------------------------------------
// Words are kept twice: a block that is an exchange ahead writes where nobody reads any more. It can't be two ahead,
// as it waits for all others.

// What block b adds to row r: small integers, whose sums are exact in any order.
__device__ float part(int row, int block) { return float((row + 3 * block) % 8); }

// This block's parts and their squares into [2,rows,blocks].
__device__ void send_parts(Word* places, unsigned exchange, int rows) {
  const int blocks = gridDim.x;
  for (int row = threadIdx.x; row < rows; row += THREADS) {
    const float x = part(row, blockIdx.x);
    send(places + row * blocks + blockIdx.x, exchange, x);
    send(places + (rows + row) * blocks + blockIdx.x, exchange, x * x);
  }
}

// totals [2,rows] in shared memory, of this exchange.
__device__ bool right(const float* totals, int rows) {
  bool same = true;
  for (int row = threadIdx.x; row < rows; row += THREADS) {
    float sum = 0, squares = 0;
    for (int block = 0; block < gridDim.x; ++block) {
      const float x = part(row, block);
      sum += x, squares += x * x;
    }
    same &= totals[row] == sum && totals[rows + row] == squares;
  }
  return same;
}

struct All {
  static __device__ void run(Word* words, unsigned exchange, int rows, float* totals) {
    const int blocks = gridDim.x;
    words += (exchange % 2) * 2 * rows * blocks;  // [2,rows,blocks]
    send_parts(words, exchange, rows);
    for (int line = threadIdx.x / 32; line < 2 * rows; line += WARPS) {
      const float total = gathered(words + line * blocks, blocks, exchange);
      if (threadIdx.x % 32 == 0) totals[line] = total;
    }
    __syncthreads();
  }
};

struct Owners {
  static __device__ void run(Word* words, unsigned exchange, int rows, float* totals) {
    const int blocks = gridDim.x;
    Word* parts = words + (exchange % 2) * 2 * rows * (blocks + 1);  // [2,rows,blocks]
    Word* sums = parts + 2 * rows * blocks;                          // [2,rows]
    send_parts(parts, exchange, rows);
    for (int line = blockIdx.x + threadIdx.x / 32 * blocks; line < 2 * rows; line += WARPS * blocks) {
      const float total = gathered(parts + line * blocks, blocks, exchange);
      if (threadIdx.x % 32 == 0) send(sums + line, exchange, total);
    }
    for (int line = threadIdx.x; line < 2 * rows; line += THREADS) totals[line] = receive(sums + line, exchange);
    __syncthreads();
  }
};

// ---- measuring -----------------------------------------------------------------------------------------

template <class Barrier>
__global__ void __launch_bounds__(THREADS) barriers(Word* words, unsigned first, unsigned count) {
  for (unsigned exchange = first; exchange < first + count; ++exchange) Barrier::run(words, exchange);
}

template <class Sums>
__global__ void __launch_bounds__(THREADS)
    sums(Word* words, unsigned first, unsigned count, int rows, unsigned* wrong) {
  __shared__ float totals[2 * MOST_ROWS];
  for (unsigned exchange = first; exchange < first + count; ++exchange) {
    Sums::run(words, exchange, rows, totals);
    __syncthreads();  // before the next exchange's totals
  }
  if (!right(totals, rows)) atomicAdd(wrong, 1u);
}

// Microseconds an exchange. launch(first, count) starts the kernel; exchanges are numbered from 1.
template <class Launch>
float measured(Launch launch) {
  cudaEvent_t begun, ended;
  check(cudaEventCreate(&begun), "cudaEventCreate");
  check(cudaEventCreate(&ended), "cudaEventCreate");
  launch(1, WARMUP);
  check(cudaEventRecord(begun), "cudaEventRecord");
  launch(1 + WARMUP, EXCHANGES);
  check(cudaEventRecord(ended), "cudaEventRecord");
  check(cudaEventSynchronize(ended), "an exchange");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begun, ended), "cudaEventElapsedTime");
  return 1e3f * milliseconds / EXCHANGES;
}

void start(const void* kernel, int blocks, void** arguments) {
  check(cudaLaunchCooperativeKernel(kernel, dim3(blocks), dim3(THREADS), arguments, 0, nullptr), "launch");
}

struct Grid {
  int blocks;
  Word* words;
  unsigned* wrong;

  void clear() const {
    check(cudaMemset(words, 0, bytes(blocks)), "cudaMemset");
    check(cudaMemset(wrong, 0, sizeof(unsigned)), "cudaMemset");
  }
  static size_t bytes(int blocks) { return sizeof(Word) * 4 * MOST_ROWS * (blocks + 1); }
};

template <class Barrier>
void barrier(const Grid& grid, const char* name) {
  grid.clear();
  const float time = measured([&](unsigned first, unsigned count) {
    Word* words = grid.words;
    void* arguments[] = {&words, &first, &count};
    start(reinterpret_cast<const void*>(barriers<Barrier>), grid.blocks, arguments);
  });
  std::printf("%-8s %-8s %8.3f us\n", "barrier", name, time);
}

template <class Sums>
bool sum(const Grid& grid, const char* name, int rows) {
  grid.clear();
  const float time = measured([&](unsigned first, unsigned count) {
    Word* words = grid.words;
    unsigned* wrong = grid.wrong;
    void* arguments[] = {&words, &first, &count, &rows, &wrong};
    start(reinterpret_cast<const void*>(sums<Sums>), grid.blocks, arguments);
  });
  unsigned wrong = 0;
  check(cudaMemcpy(&wrong, grid.wrong, sizeof wrong, cudaMemcpyDeviceToHost), "cudaMemcpy");
  std::printf("%-8s %-8s %8.3f us   %d rows%s\n", "sums", name, time, rows, wrong ? "   WRONG" : "");
  return wrong == 0;
}

}  // namespace

int main() {
  cudaDeviceProp about{};
  check(cudaGetDeviceProperties(&about, 0), "cudaGetDeviceProperties");
  if (!about.cooperativeLaunch) {
    std::fprintf(stderr, "%s has no cooperative launches\n", about.name);
    return 1;
  }
  Grid grid{about.multiProcessorCount, nullptr, nullptr};
  check(cudaMalloc(&grid.words, Grid::bytes(grid.blocks)), "cudaMalloc");
  check(cudaMalloc(&grid.wrong, sizeof(unsigned)), "cudaMalloc");
  std::printf("%s: %d blocks of %d threads, %d exchanges\n", about.name, grid.blocks, THREADS, EXCHANGES);
  barrier<Groups>(grid, "groups");
  barrier<Counter>(grid, "counter");
  barrier<Flags>(grid, "flags");
  bool all_right = true;
  for (int rows : {1, 16, 64, 128}) {
    all_right &= sum<All>(grid, "all", rows);
    all_right &= sum<Owners>(grid, "owners", rows);
  }
  return all_right ? 0 : 1;
}
