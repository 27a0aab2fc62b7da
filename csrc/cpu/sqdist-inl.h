// SPDX-License-Identifier: Apache-2.0
// The squared distance that decides.
#pragma once
#include "vec-inl.h"

namespace {

// sum (a_i - b_i)^2 in float64. Sixteen partial sums, coordinate i in sum i % 16, added up as a
// tree, no fused multiply-add: the same bits for every width of vector.
inline double sqdist(const float* a, const float* b, std::int64_t d) {
  constexpr int kSums = 16, kWidth = kLanes / 2;
  Doubles sum[kSums / kWidth] = {};
  std::int64_t i = 0;
  for (; i + kSums <= d; i += kSums)
    for (int v = 0; v < kSums / kWidth; ++v) {
      const Doubles t = widen(a + i + v * kWidth) - widen(b + i + v * kWidth);
      sum[v] += t * t;
    }
  double s[kSums];
  std::memcpy(s, sum, sizeof s);
  for (int j = 0; i < d; ++i, ++j) {
    const double t = static_cast<double>(a[i]) - b[i];
    s[j] += t * t;
  }
  for (int half = kSums / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) s[j] += s[j + half];
  return s[0];
}

// Rows that are measured lie far apart in memory: asking for the next one early saves a third.
inline void fetch(const float* row, std::int64_t d) {
  constexpr std::int64_t kLine = 16, kMost = 64 * kLine;
  for (std::int64_t i = 0; i < d && i < kMost; i += kLine) __builtin_prefetch(row + i);
}

}  // namespace
