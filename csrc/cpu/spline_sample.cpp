// SPDX-License-Identifier: Apache-2.0
#include "fundad/spline_sample.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

namespace fundad::cpu {

namespace {

constexpr std::int64_t kPoints = 1024;  // taken at a time
constexpr float kReach = 2;             // cells beyond an image where points may be

// The four coefficients of a line that reach a point: the narrowest vector, which every x86 has.
typedef float Four __attribute__((vector_size(16)));

Four load(const float* p) {
  Four v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The splines of the four cells around a point that lies t beyond the second one.
Four splines(float t) {
  constexpr float s = 1.0f / 6;
  const Four cubic{-s, 3 * s, -3 * s, s}, square{3 * s, -6 * s, 3 * s, 0};
  const Four linear{-3 * s, 0, 3 * s, 0}, constant{s, 4 * s, s, 0};
  return ((cubic * t + square) * t + linear) * t + constant;
}

template <int kAxes>
void sample(const SplineImage& s, bool zero, std::int64_t lo, std::int64_t hi) {
  std::int64_t step[kAxes], cells = 1;
  for (int axis = kAxes - 1; axis >= 0; --axis) {
    step[axis] = cells;
    cells *= s.size[axis] + 2 * kSplineMargin;
  }
  for (std::int64_t i = lo; i < hi; ++i) {
    Four weight[kAxes];
    std::int64_t first = 0;
    bool outside = false, number = true;
    for (int axis = 0; axis < kAxes; ++axis) {
      const float last = static_cast<float>(s.size[axis] - 1), x = s.points[axis * s.n + i];
      number &= x == x;
      outside |= x < 0 || x > last;
      const float lowest = zero ? 0 : -kReach, highest = zero ? last : last + kReach;
      const float at = std::min(std::max(lowest, x), highest);  // the lowest if it is no number
      // Cut towards zero, then down: the rounding instruction is not in the narrowest set.
      const auto cut = static_cast<std::int32_t>(at);
      const float down = static_cast<float>(cut - (at < static_cast<float>(cut)));
      const float whole = std::min(down, last + kReach - 1);
      weight[axis] = splines(at - whole);
      first += (static_cast<std::int32_t>(whole) + kSplineMargin - 1) * step[axis];
    }
    for (std::int64_t channel = 0; channel < s.channels; ++channel) {
      const float* table = s.table + channel * cells + first;
      Four sum{};
      if constexpr (kAxes == 1) {
        sum = load(table);
      } else if constexpr (kAxes == 2) {
        for (int y = 0; y < 4; ++y) sum += weight[0][y] * load(table + y * step[0]);
      } else {
        for (int z = 0; z < 4; ++z) {
          const float* plane = table + z * step[0];
          Four part{};
          for (int y = 0; y < 4; ++y) part += weight[1][y] * load(plane + y * step[1]);
          sum += weight[0][z] * part;
        }
      }
      sum *= weight[kAxes - 1];
      float value = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      if (zero && outside) value = 0;
      if (!number) value = std::numeric_limits<float>::quiet_NaN();
      s.out[channel * s.n + i] = value;
    }
  }
}

struct Part {
  std::int64_t image, lo;
};

}  // namespace

void spline_sample(const SplineImage* images, std::int64_t count, bool zero, int threads) {
  std::vector<Part> parts;
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t lo = 0; lo < images[i].n; lo += kPoints) parts.push_back({i, lo});
  const auto total = static_cast<std::int64_t>(parts.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < total; ++i) {
    const SplineImage& s = images[parts[i].image];
    const std::int64_t lo = parts[i].lo, hi = std::min(s.n, lo + kPoints);
    if (s.axes == 1) sample<1>(s, zero, lo, hi);
    if (s.axes == 2) sample<2>(s, zero, lo, hi);
    if (s.axes == 3) sample<3>(s, zero, lo, hi);
  }
}

}  // namespace fundad::cpu
