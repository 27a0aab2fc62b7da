// SPDX-License-Identifier: Apache-2.0
#include "fundad/spline_sample.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

namespace fundad::cpu {

namespace {

constexpr std::int64_t kPoints = 1024;  // taken at a time
constexpr float kReach = 2;             // cells beyond an image where points may be

// The pole of the filter that turns values into coefficients of cubic B-splines: sqrt(3) - 2.
constexpr float kPole = -0.26794919243112270647f;
constexpr int kFar = 28;   // the filter's answer after so many cells is 1e-16 of what it was
constexpr int kLanes = 8;  // lines filtered side by side: a line's steps wait for each other

std::int64_t mirrored(std::int64_t i, std::int64_t n) {
  if (n == 1) return 0;
  const std::int64_t period = 2 * n - 2, at = i % period;
  return std::min(at, period - at);
}

// Filters `lanes` lines of n values in place, `step` from value to value and `apart` from line to
// line, and goes on for kSplineMargin cells on both sides. Unser 1999, with the sums beyond the
// ends in closed form: beyond an edge all values are the outermost one; else the line is mirrored.
template <class Lanes, class Apart>
void filter_lanes(float* first, Lanes lanes, std::int64_t n, std::int64_t step, Apart apart,
                  bool mirror) {
  constexpr float z = kPole, constant = 1 / (1 - z), gain = 6;
  float before[kLanes], sum[kLanes], last[kLanes];
  for (int l = 0; l < lanes; ++l) {
    const float* p = first + l * apart;
    last[l] = p[(n - 1) * step];
    before[l] = p[0] * constant;
    if (mirror && n > 1) {
      float power = 1, total = 0;
      for (int k = 0; k < kFar; ++k, power *= z) total += power * p[mirrored(k, n) * step];
      before[l] = total;
    }
    sum[l] = before[l];
    first[l * apart] = sum[l];
  }
  const std::int64_t end = mirror ? n : n + kSplineMargin;
  for (std::int64_t i = 1; i < n; ++i)
    for (int l = 0; l < lanes; ++l) {
      float& value = first[i * step + l * apart];
      value = sum[l] = value + z * sum[l];
    }
  for (std::int64_t i = n; i < end; ++i)
    for (int l = 0; l < lanes; ++l) first[i * step + l * apart] = sum[l] = last[l] + z * sum[l];
  for (int l = 0; l < lanes; ++l) {
    if (!mirror || n == 1) {
      const float rest = last[l] * constant;
      sum[l] = -z * (rest * constant + (sum[l] - rest) * (1 / (1 - z * z)));
    } else {
      sum[l] = z / (z * z - 1) * (sum[l] + z * first[(n - 2) * step + l * apart]);
    }
    first[(end - 1) * step + l * apart] = gain * sum[l];
  }
  for (std::int64_t i = end - 2; i >= 0; --i)
    for (int l = 0; l < lanes; ++l) {
      float& value = first[i * step + l * apart];
      sum[l] = z * (sum[l] - value);
      value = gain * sum[l];
    }
  for (std::int64_t i = 1; i <= kSplineMargin; ++i)
    for (int l = 0; l < lanes; ++l) {
      float* p = first + l * apart;
      if (mirror) {
        p[-i * step] = p[mirrored(i, n) * step];
        p[(n - 1 + i) * step] = p[mirrored(n - 1 + i, n) * step];
      } else {
        sum[l] = z * (sum[l] - before[l]);
        p[-i * step] = gain * sum[l];
      }
    }
}

// The coefficients of a channel.
void fill_table(const SplineImage& s, bool mirror, std::int64_t channel) {
  // Three axes; those that are missing come first, and have one cell.
  std::int64_t n[3] = {1, 1, 1}, wide[3] = {1, 1, 1}, low[3] = {0, 0, 0};
  const auto missing = static_cast<int>(3 - s.axes);
  for (int axis = missing; axis < 3; ++axis) {
    n[axis] = s.size[axis - missing];
    wide[axis] = n[axis] + 2 * kSplineMargin;
    low[axis] = kSplineMargin;
  }
  const std::int64_t step[3] = {wide[1] * wide[2], wide[2], 1};
  float* table = s.table + channel * wide[0] * step[0];
  const float* image = s.image + channel * n[0] * n[1] * n[2];
  const auto row_at = [&](std::int64_t z, std::int64_t y) {
    return table + (z + low[0]) * step[0] + (y + low[1]) * step[1];
  };
  for (std::int64_t z = 0; z < n[0]; ++z)
    for (std::int64_t y = 0; y < n[1]; ++y) {
      const float* from = image + (z * n[1] + y) * n[2];
      std::copy(from, from + n[2], row_at(z, y) + low[2]);
    }
  // From the last axis to the first: an axis that is done has its margins, the others do not.
  for (std::int64_t z = 0; z < n[0]; ++z)
    for (std::int64_t y = 0; y < n[1]; y += kLanes) {
      const auto lanes = static_cast<int>(std::min<std::int64_t>(kLanes, n[1] - y));
      filter_lanes(row_at(z, y) + low[2], lanes, n[2], 1, step[1], mirror);
    }
  const std::integral_constant<std::int64_t, 1> next{};
  const std::integral_constant<int, kLanes> all{};
  for (int axis = 1; axis >= missing; --axis) {
    const std::int64_t planes = axis == 1 ? n[0] : 1, lines = axis == 1 ? wide[2] : step[0];
    for (std::int64_t plane = 0; plane < planes; ++plane) {
      float* first = table + low[axis] * step[axis];
      if (axis == 1) first += (plane + low[0]) * step[0];
      for (std::int64_t j = 0; j < lines; j += kLanes) {
        const auto lanes = static_cast<int>(std::min<std::int64_t>(kLanes, lines - j));
        if (lanes == kLanes) {  // known when it is compiled: vectors
          filter_lanes(first + j, all, n[axis], step[axis], next, mirror);
        } else {
          filter_lanes(first + j, lanes, n[axis], step[axis], next, mirror);
        }
      }
    }
  }
}

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

// A channel of an image, or points from `lo` on.
struct Part {
  std::int64_t image, lo;
};

}  // namespace

void spline_sample(const SplineImage* images, std::int64_t count, bool zero, int threads) {
  std::vector<Part> tables, parts;
  for (std::int64_t i = 0; i < count; ++i) {
    for (std::int64_t channel = 0; channel < images[i].channels; ++channel)
      tables.push_back({i, channel});
    for (std::int64_t lo = 0; lo < images[i].n; lo += kPoints) parts.push_back({i, lo});
  }
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(dynamic)
    for (std::size_t i = 0; i < tables.size(); ++i)
      fill_table(images[tables[i].image], zero, tables[i].lo);
#pragma omp for schedule(dynamic)
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const SplineImage& s = images[parts[i].image];
      const std::int64_t lo = parts[i].lo, hi = std::min(s.n, lo + kPoints);
      if (s.axes == 1) sample<1>(s, zero, lo, hi);
      if (s.axes == 2) sample<2>(s, zero, lo, hi);
      if (s.axes == 3) sample<3>(s, zero, lo, hi);
    }
  }
}

}  // namespace fundad::cpu
