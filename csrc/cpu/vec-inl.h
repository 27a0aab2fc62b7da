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
typedef std::int32_t Ints __attribute__((vector_size(kLanes * 4)));
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

// The first n lanes, zeros after them; no memory behind them is touched.
inline Floats load_some(const float* p, int n) {
  if (n == kLanes) return load(p);
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  Floats v{};
  std::memcpy(&v, p, n * sizeof(float));
  return v;
#endif
}

inline void store_some(float* p, Floats v, int n) {
  if (n == kLanes) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#else
  std::memcpy(p, &v, n * sizeof(float));
#endif
}

// The first n lanes the other way round, at the start of the vector; what follows them is of no
// use.
inline Floats reverse_some(Floats v, int n) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return __builtin_shuffle(v, (n - 1 - lane) & (kLanes - 1));
}

// A store past the caches, for what nobody reads soon: the old line need not be fetched first.
// end_stream makes such stores visible before those that come later.
inline void stream(float* p, Floats v) {
#if defined(__SSE2__)
  if (reinterpret_cast<__UINTPTR_TYPE__>(p) % sizeof v == 0) {
#if defined(__AVX512F__)
    return _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
    return _mm256_stream_ps(p, (__m256)v);
#else
    return _mm_stream_ps(p, (__m128)v);
#endif
  }
#endif
  store(p, v);
}

inline void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

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

// a0 b0 a1 b1 ... of the lower halves, and of the upper ones.
inline void interleave(Floats a, Floats b, Floats& low, Floats& high) {
#if defined(__AVX512F__)
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  low = (Floats)_mm512_permutex2var_ps((__m512)a, first, (__m512)b);
  high = (Floats)_mm512_permutex2var_ps((__m512)a, second, (__m512)b);
#elif defined(__AVX2__)
  const __m256 even = _mm256_unpacklo_ps((__m256)a, (__m256)b);
  const __m256 odd = _mm256_unpackhi_ps((__m256)a, (__m256)b);
  low = (Floats)_mm256_permute2f128_ps(even, odd, 0x20);
  high = (Floats)_mm256_permute2f128_ps(even, odd, 0x31);
#elif defined(__SSE2__)
  low = (Floats)_mm_unpacklo_ps((__m128)a, (__m128)b);
  high = (Floats)_mm_unpackhi_ps((__m128)a, (__m128)b);
#else
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i % 2 ? b[i / 2] : a[i / 2];
    high[i] = i % 2 ? b[(kLanes + i) / 2] : a[(kLanes + i) / 2];
  }
#endif
}

// Rows become columns: as often as the number of lanes can be halved, rows i and i + kLanes / 2
// are interleaved.
inline void transpose(Floats (&tile)[kLanes]) {
  for (int lanes = kLanes; lanes > 1; lanes /= 2) {
    Floats next[kLanes];
    for (int i = 0; i < kLanes / 2; ++i)
      interleave(tile[i], tile[i + kLanes / 2], next[2 * i], next[2 * i + 1]);
    for (int i = 0; i < kLanes; ++i) tile[i] = next[i];
  }
}

}  // namespace
