// SPDX-License-Identifier: Apache-2.0
// What the arithmetic units and the memory of this machine can do; compiled for this very machine.
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int kLanes = 16;
constexpr int kSums = 24;
#else
constexpr int kLanes = 8;
constexpr int kSums = 12;
#endif
typedef float Floats __attribute__((vector_size(kLanes * 4)));

namespace {

#if defined(__AVX512F__)
inline Floats fma(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps(a, b, c); }
#elif defined(__FMA__)
inline Floats fma(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps(a, b, c); }
#else
inline Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }
#endif

// One sum depends on itself; with this many the units are never idle.
__attribute__((noinline)) float sums(std::int64_t steps) {
  Floats sum[kSums];
  const Floats factor = Floats{} + 0.999f, shift = Floats{} + 1e-3f;
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sum[i] = Floats{} + static_cast<float>(i);
  for (std::int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
    for (int i = 0; i < kSums; ++i) sum[i] = fma(sum[i], factor, shift);
  }
  Floats total = {};
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) total += sum[i];
  return total[0];
}

}  // namespace

extern "C" {

// Runs multiply-adds on every thread and returns how many floating-point operations these were.
double multiply_add(std::int64_t steps, int threads, float* out) {
#pragma omp parallel num_threads(threads)
  {
    const float total = sums(steps);
#pragma omp critical
    *out += total;
  }
  return 2.0 * kLanes * kSums * static_cast<double>(steps) * threads;
}

// Reads n floats once, with all threads; n is a multiple of 1024.
void read_once(const float* x, std::int64_t n, int threads, float* out) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t block = 0; block < n; block += 1024) {
    Floats sum[8] = {};
    for (int i = 0; i < 1024; i += 8 * kLanes)
      for (int v = 0; v < 8; ++v) {
        Floats one;
        __builtin_memcpy(&one, x + block + i + v * kLanes, sizeof one);
        sum[v] += one;
      }
    for (int v = 1; v < 8; ++v) sum[0] += sum[v];
    if (sum[0][0] == 12345.0f) *out = 1;  // never: so that nothing is left out
  }
}
}
