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

// The same in float32 and in any order: off by a rounding for each of d / 16 + 64 steps at most.
inline float rough_sqdist(const float* a, const float* b, std::int64_t d) {
  constexpr int kSums = 4;
  Floats sum[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums * kLanes <= d; i += kSums * kLanes)
    for (int v = 0; v < kSums; ++v) {
      const Floats t = load(a + i + v * kLanes) - load(b + i + v * kLanes);
      sum[v] = fma(t, t, sum[v]);
    }
  for (; i < d; i += kLanes) {
    const int n = d - i < kLanes ? static_cast<int>(d - i) : kLanes;
    const Floats t = load_some(a + i, n) - load_some(b + i, n);
    sum[0] = fma(t, t, sum[0]);
  }
  float lane[kLanes], total = 0;
  store(lane, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (int j = 0; j < kLanes; ++j) total += lane[j];
  return total;
}

// Rows that are measured lie far apart in memory: asking for the next one early saves a third.
inline void fetch(const float* row, std::int64_t d) {
  constexpr std::int64_t kLine = 16, kMost = 64 * kLine;
  for (std::int64_t i = 0; i < d && i < kMost; i += kLine) __builtin_prefetch(row + i);
}

}  // namespace
