// SPDX-License-Identifier: Apache-2.0
// Integers in vectors: as many 32-bit lanes as there are floats in a vector.
#pragma once
#include "vec-inl.h"

namespace {

typedef std::int32_t Ints __attribute__((vector_size(kLanes * 4)));

inline Ints load(const std::int32_t* p) {
  Ints v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(std::int32_t* p, Ints v) { std::memcpy(p, &v, sizeof v); }

inline Ints spread(std::int32_t x) { return x - Ints{}; }

// Four bytes, or two 16-bit numbers, as they lie in memory: one lane of a factor.
inline Ints spread_word(const void* p) {
  std::int32_t word;
  std::memcpy(&word, p, sizeof word);
  return spread(word);
}

inline Ints larger(Ints a, Ints b) { return a > b ? a : b; }

// Bit i is set where a[i] >= b[i].
inline std::uint64_t reaching(Ints a, Ints b) {
#if defined(__AVX512F__)
  return _mm512_cmpge_epi32_mask((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps((__m256)(a >= b)));
#elif defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_ps((__m128)(a >= b)));
#else
  std::uint64_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= std::uint64_t{a[i] >= b[i]} << i;
  return bits;
#endif
}

// Adds to each lane the products of its two pairs of signed 16-bit numbers. No product may be
// (-32768)^2 twice in a lane; the sum wraps, so only the last one has to fit.
inline Ints add_pairs(Ints sum, Ints a, Ints b) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
  return sum + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return sum + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return sum + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  const Ints low = ((a << 16) >> 16) * ((b << 16) >> 16);
  return sum + low + (a >> 16) * (b >> 16);
#endif
}

#if defined(__AVX512VNNI__)
// Adds to each lane the products of its four unsigned bytes of a and signed bytes of b.
inline Ints add_quads(Ints sum, Ints a, Ints b) {
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#endif

}  // namespace
