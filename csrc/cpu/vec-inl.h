// SPDX-License-Identifier: Apache-2.0
// A vector of the widest kind that this instruction set has.
//
// -inl.h files are compiled once per instruction set. All of it stands in an anonymous namespace
// and no standard container or algorithm is used: of an inline function with external linkage the
// linker keeps one copy for everybody, and that copy may be the one with AVX-512 in it.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef float HalfFloats __attribute__((vector_size(kLanes * 2)));
typedef double Doubles __attribute__((vector_size(kLanes * 4)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Doubles load(const double* p) {
  Doubles v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline void store(double* p, Doubles v) { std::memcpy(p, &v, sizeof v); }

inline Floats spread(float x) { return x - Floats{}; }

inline Doubles spread(double x) { return x - Doubles{}; }

// kLanes / 2 floats, as doubles.
inline Doubles widen(const float* p) {
#if defined(__AVX512F__)
  // The form with a mask: without one GCC 12 warns of its own header.
  return (Doubles)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return (Doubles)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  HalfFloats v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Doubles);
#endif
}

// a * b + c, in one rounding where the instruction set can: for bounds and products, never for a
// distance that must have the same bits everywhere.
inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Doubles fma(Doubles a, Doubles b, Doubles c) {
#if defined(__AVX512F__)
  return (Doubles)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  return (Doubles)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// Bit i is set where a[i] >= b[i] does not hold; NaN sets it.
inline std::uint64_t not_reaching(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NGE_UQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(
      _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NGE_UQ)));
#elif defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_ps(_mm_cmpnge_ps((__m128)a, (__m128)b)));
#else
  std::uint64_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= std::uint64_t{!(a[i] >= b[i])} << i;
  return bits;
#endif
}

}  // namespace
