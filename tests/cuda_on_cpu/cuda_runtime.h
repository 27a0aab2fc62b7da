// SPDX-License-Identifier: Apache-2.0
// Enough of CUDA to run the kernels' own text on a CPU, slowly: every thread of a block is a fibre
// that runs until it meets a barrier or an exchange between lanes. Blocks run one after another.
// Threads are resumed in an order that FUNDAD_FIBRE_ORDER (0, 1, 2) changes, so that a missing
// barrier shows. It knows nothing of memory models, of time, or of limits of a device.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#define FUNDAD_CUDA_ON_CPU
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

using std::isfinite;
using std::isnan;
using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct uint4 {
  unsigned x, y, z, w;
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration argument"; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace fibres {

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

struct Warp {
  Barrier barrier;
  double slot[2][32];                // what lanes hand over, by the parity of the exchange
  const char* kind[2][32];           // and in which kind of exchange: all lanes must be in the same
  std::uint32_t fragment[2][32][6];  // of a product: four of a, two of b
};

struct Thread {
  ucontext_t begin;  // where it starts; jumps do the rest, since they leave the signal mask alone
  jmp_buf here;
  bool started = false;
  std::vector<char> stack = std::vector<char>(64 << 10);
  dim3 index;
  bool done = false;
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Barrier barrier;
  int votes[2] = {};
  unsigned live = 0, now = 0;
  bool moved = false;
  jmp_buf scheduler;
  std::function<void()> body;
};

inline Block block;
inline std::int64_t exchanges = 0;  // by warps, so far: a measure of the work

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "cuda_on_cpu: %s\n", why);
  std::abort();
}

inline void yield() {
  if (_setjmp(block.threads[block.now]->here) == 0) _longjmp(block.scheduler, 1);
}

// Waits until `expected` threads have come; returns the parity of this meeting.
inline unsigned meet(Barrier& barrier, unsigned expected) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    block.moved = true;
  } else {
    while (barrier.generation == generation) yield();
  }
  return generation & 1;
}

inline void run_thread() {
  block.body();
  block.threads[block.now]->done = true;
  --block.live;
  block.moved = true;
  _longjmp(block.scheduler, 1);
}

inline void resume(Thread& thread) {
  threadIdx = thread.index;
  if (_setjmp(block.scheduler) != 0) return;
  if (thread.started) _longjmp(thread.here, 1);
  thread.started = true;
  setcontext(&thread.begin);
}

inline unsigned place(unsigned i, unsigned n) {
  static const char* order = std::getenv("FUNDAD_FIBRE_ORDER");
  const int kind = order ? std::atoi(order) : 0;
  if (kind == 1) return n - 1 - i;
  if (kind == 2) return (i * 37 + 11) % n;  // a permutation: n has no factor 37
  return i;
}

inline void run_block(const std::function<void()>& body) {
  const unsigned n = blockDim.x * blockDim.y * blockDim.z;
  if (n % 37 == 0) fail("choose another block size");
  block.body = body;
  while (block.threads.size() < n) block.threads.push_back(std::make_unique<Thread>());
  block.warps.assign((n + 31) / 32, {});
  block.barrier = {};
  block.live = n;
  for (unsigned i = 0; i < n; ++i) {
    Thread& t = *block.threads[i];
    t.done = t.started = false;
    t.index = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
    getcontext(&t.begin);
    t.begin.uc_stack = {t.stack.data(), 0, t.stack.size()};
    t.begin.uc_link = nullptr;
    makecontext(&t.begin, run_thread, 0);
  }
  while (block.live > 0) {
    block.moved = false;
    for (unsigned i = 0; i < n; ++i) {
      block.now = place(i, n);
      if (!block.threads[block.now]->done) resume(*block.threads[block.now]);
    }
    if (!block.moved && block.live > 0)
      fail("deadlock: a barrier or an exchange waits for threads that do not come");
  }
}

inline Warp& warp() { return block.warps[block.now / 32]; }
inline unsigned lane() { return block.now % 32; }

// Every lane hands over a value of at most 8 bytes; `take` reads what the others gave.
template <class T, class Take>
auto exchange(const char* kind, unsigned mask, T value, const Take& take) {
  static_assert(sizeof(T) <= sizeof(double));
  if (mask != 0xffffffffu) fail("only exchanges of whole warps are known");
  Warp& w = warp();
  const unsigned parity = w.barrier.generation & 1, self = lane();
  std::memcpy(&w.slot[parity][self], &value, sizeof value);
  w.kind[parity][self] = kind;
  meet(w.barrier, 32);
  exchanges += self == 0;
  for (int i = 0; i < 32; ++i)
    if (w.kind[parity][i] != kind) fail("lanes of a warp are in different exchanges");
  return take([&](unsigned other) {
    T given;
    std::memcpy(&given, &w.slot[parity][other % 32], sizeof given);
    return given;
  });
}

inline float half_to_float(unsigned bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) fail("a product of float16 values that are not finite");
  const float size =
      exponent ? std::ldexp(1024.f + fraction, exponent - 25) : std::ldexp(1.f * fraction, -24);
  return bits & 0x8000 ? -size : size;
}

// The layout of PTX's mma.m16n8k16 for float16, from its tables.
inline void mma_16x8x16(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  Warp& w = warp();
  const unsigned parity = w.barrier.generation & 1, self = lane();
  const unsigned given[6] = {a[0], a[1], a[2], a[3], b0, b1};
  std::copy(given, given + 6, w.fragment[parity][self]);
  w.kind[parity][self] = "mma";
  meet(w.barrier, 32);
  const auto value = [&](unsigned from, unsigned word, unsigned which) {
    return half_to_float(w.fragment[parity][from][word] >> 16 * which & 0xffff);
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = self / 4 + (i >= 2 ? 8 : 0), column = self % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned from = k % 8 / 2, upper = k / 8;
      const float left = value(row % 8 * 4 + from, row / 8 + 2 * upper, k % 2);
      sum[i] += left * value(column * 4 + from, 4 + upper, k % 2);
    }
  }
}

}  // namespace fibres

inline void __syncthreads() { fibres::meet(fibres::block.barrier, fibres::block.live); }

inline int __syncthreads_or(int vote) {
  using namespace fibres;
  const unsigned parity = block.barrier.generation & 1;
  if (block.barrier.arrived == 0) block.votes[parity] = 0;
  block.votes[parity] |= vote != 0;
  meet(block.barrier, block.live);
  return block.votes[parity];
}

inline void __syncwarp() { fibres::meet(fibres::warp().barrier, 32); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
  const unsigned from = fibres::lane() ^ with;
  return fibres::exchange("shfl_xor", mask, value, [&](auto of) { return of(from); });
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  return fibres::exchange("shfl", mask, value, [&](auto of) { return of(from); });
}

inline unsigned __ballot_sync(unsigned mask, int vote) {
  return fibres::exchange("ballot", mask, vote, [](auto of) {
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; ++i) bits |= unsigned{of(i) != 0} << i;
    return bits;
  });
}

inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) == ~0u; }
inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }

inline unsigned atomicOr(unsigned* at, unsigned bits) {
  const unsigned before = *at;
  *at |= bits;
  return before;
}

inline double sinpi(double x) {  // exact reduction, as CUDA's
  const double r = std::remainder(x, 2.0);
  return std::sin(r * 3.141592653589793238462643383279502884);
}

template <class... Parameters>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Parameters... arguments) {
  const dim3 &grid = config->gridDim, &threads = config->blockDim;
  const std::uint64_t size = std::uint64_t{threads.x} * threads.y * threads.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || size == 0 || size > 1024 || grid.y > 65535 ||
      grid.z > 65535 || grid.x > 0x7fffffffu)
    return cudaErrorInvalidConfiguration;
  gridDim = grid;
  blockDim = threads;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        fibres::run_block([&] { kernel(arguments...); });
      }
  return cudaSuccess;
}
