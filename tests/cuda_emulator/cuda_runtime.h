// A GPU on the CPU, one block at a time, for tests of csrc/cuda without a device: every thread of a
// block is a fiber, barriers and shuffles switch between them. Loads must be aligned, as on a GPU,
// and a barrier that not all threads reach ends the program. No speed, no memory model.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned int x, y;
};
struct dim3 {
  unsigned int x, y, z;
  dim3(int64_t x = 1, int64_t y = 1, int64_t z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return ""; }

inline dim3 threadIdx, blockIdx, gridDim;

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 1 << 16;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool done;
};

struct Barrier {
  int arrived = 0;
  long round = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps;
  Barrier all;
  ucontext_t scheduler;
  int current = 0;
  bool progress = false;
  uint64_t mailbox[1024];
  const std::function<void()>* body = nullptr;
};
inline Block block;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated GPU: %s\n", what);
  std::abort();
}

inline void yield() { swapcontext(&block.fibers[block.current].context, &block.scheduler); }

inline void wait(Barrier& barrier, int threads) {
  const long round = barrier.round;
  block.progress = true;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.round;
    return;
  }
  while (barrier.round == round) {
    yield();
  }
}

inline void start() {
  (*block.body)();
  block.fibers[block.current].done = true;
  block.progress = true;
  yield();
}

inline void run_block(int threads) {
  block.fibers.resize(threads);
  block.warps.assign(threads / kWarp, {});
  block.all = {};
  for (Fiber& fiber : block.fibers) {
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, start, 0);
  }
  for (int left = threads; left > 0;) {
    block.progress = false;
    for (int i = 0; i < threads; ++i) {
      if (!block.fibers[i].done) {
        block.current = i;
        threadIdx = dim3(i);
        swapcontext(&block.scheduler, &block.fibers[i].context);
        left -= block.fibers[i].done;
      }
    }
    if (!block.progress) {
      fail("a barrier that some threads never reach");
    }
  }
  for (const Barrier& warp : block.warps) {
    if (warp.arrived != 0) {
      fail("a thread ended while its warp waits");
    }
  }
}

inline void launch(dim3 grid, int threads, size_t, cudaStream_t,
                   const std::function<void()>& body) {
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || threads % kWarp != 0 || threads > 1024) {
    fail("a grid that no device takes");
  }
  block.body = &body;
  gridDim = grid;
  for (unsigned int y = 0; y < grid.y; ++y) {
    for (unsigned int x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      run_block(threads);
    }
  }
}

}  // namespace emulator

inline void __syncthreads() {
  emulator::wait(emulator::block.all, static_cast<int>(emulator::block.fibers.size()));
}

template <typename T>
T __shfl_xor_sync(unsigned int, T value, int offset) {
  emulator::Block& block = emulator::block;
  const int me = block.current;
  std::memcpy(&block.mailbox[me], &value, sizeof(T));
  emulator::wait(block.warps[me / emulator::kWarp], emulator::kWarp);
  T other;
  std::memcpy(&other, &block.mailbox[me ^ offset], sizeof(T));
  emulator::wait(block.warps[me / emulator::kWarp], emulator::kWarp);
  return other;
}

template <typename T>
T __ldg(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) {
    emulator::fail("a misaligned load");
  }
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
T __ldcs(const T* from) {
  return __ldg(from);
}

inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
