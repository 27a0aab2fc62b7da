// SPDX-License-Identifier: Apache-2.0
// The short picture of a few rows: a product with the axes, and the norm of what is left.
#pragma once
#include "kernels.h"
#include "vec-inl.h"

namespace {

using fundad::cpu::kPictureRows;
using fundad::cpu::PictureArgs;

inline double square_sum(const double* t, std::int64_t d) {
  constexpr int kWidth = kLanes / 2;
  Doubles sum[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kWidth <= d; i += 4 * kWidth)
    for (int v = 0; v < 4; ++v) {
      const Doubles w = load(t + i + v * kWidth);
      sum[v] = fma(w, w, sum[v]);
    }
  double lane[kWidth], total = 0;
  store(lane, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (int j = 0; j < kWidth; ++j) total += lane[j];
  for (; i < d; ++i) total += t[i] * t[i];
  return total;
}

inline double picture(const PictureArgs& a, std::int64_t lo, std::int64_t hi, double* scratch) {
  constexpr int kWidth = kLanes / 2;           // doubles of a vector
  constexpr int kWide = kLanes == 16 ? 4 : 2;  // 24 sums in 32 registers, 12 in 16
  const int rows = static_cast<int>(hi - lo);
  double norm2[kPictureRows] = {}, inside2[kPictureRows] = {};
  for (int r = 0; r < kPictureRows; ++r) {
    const float* x = a.x + (r < rows ? lo + r : lo) * a.d;  // what lacks a row repeats the first
    double* t = scratch + r * a.d;
    for (std::int64_t i = 0; i < a.d; ++i) t[i] = x[i] - a.center[i];
    norm2[r] = square_sum(t, a.d) / (a.scale * a.scale);
  }
  for (std::int64_t c = 0; c < a.p; c += kWide * kWidth) {
    Doubles sum[kPictureRows][kWide] = {};
    for (std::int64_t i = 0; i < a.d; ++i) {
      Doubles axis[kWide];
      for (int v = 0; v < kWide; ++v) axis[v] = load(a.axes + i * a.p + c + v * kWidth);
      for (int r = 0; r < kPictureRows; ++r) {
        const Doubles t = spread(scratch[r * a.d + i]);
        for (int v = 0; v < kWide; ++v) sum[r][v] = fma(t, axis[v], sum[r][v]);
      }
    }
    for (int r = 0; r < rows; ++r) {
      double y[kWide * kWidth];
      for (int v = 0; v < kWide; ++v) store(y + v * kWidth, sum[r][v]);
      for (int j = 0; j < kWide * kWidth; ++j) {
        inside2[r] += y[j] * y[j];
        a.z[(lo + r) * (a.p + 1) + c + j] = static_cast<float>(y[j]);
      }
    }
  }
  double largest2 = 0;
  for (int r = 0; r < rows; ++r) {
    const double rest2 = norm2[r] > inside2[r] ? norm2[r] - inside2[r] : 0;
    a.z[(lo + r) * (a.p + 1) + a.p] = static_cast<float>(__builtin_sqrt(rest2));
    largest2 = norm2[r] > largest2 ? norm2[r] : largest2;
  }
  return largest2;
}

}  // namespace
