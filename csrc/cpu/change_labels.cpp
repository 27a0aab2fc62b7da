// SPDX-License-Identifier: Apache-2.0
#include "fundad/change_labels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "fundad/clean_labels.h"

namespace fundad::cpu {

namespace {

// 1 - exp(-u) for u >= 0, also where it is small: a loop of it becomes vectors, which std::expm1
// does not.
inline float lost(float u) {
  const float t = -(u < 80 ? u : 80);
  const float k = (t * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded to a whole number
  const float r = (t - k * 0.693359375f) + k * 2.12194440e-4f;    // t less k times log 2
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r;  // exp(r) - 1
  const std::int32_t bits = (static_cast<std::int32_t>(k) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return -(power * p + (power - 1));
}

// One box; three axes, of which those that are missing come first and have one cell.
void label(const ChangeLabelsArgs& a, const std::int64_t* box) {
  std::int64_t size[3] = {1, 1, 1}, corner[3] = {0, 0, 0}, n[3] = {1, 1, 1};
  for (std::int64_t axis = 0; axis < a.axes; ++axis) {
    const std::int64_t at = 3 - a.axes + axis;
    size[at] = a.size[axis];
    corner[at] = box[1 + axis];
    n[at] = box[1 + a.axes + axis];
  }
  const std::int64_t image = size[0] * size[1] * size[2], cells = n[0] * n[1] * n[2];
  const auto place = [&](std::int64_t z, std::int64_t y) {
    return ((corner[0] + z) * size[1] + corner[1] + y) * size[2] + corner[2];
  };
  std::vector<float> values(cells), cleaned(a.clean ? cells : 0);
  std::vector<char> inside(cells);
  const auto share = static_cast<float>(1.0 / a.channels);
  const auto scale = static_cast<float>(0.5 / (static_cast<double>(a.sigma) * a.sigma));
  for (std::int64_t z = 0; z < n[0]; ++z)
    for (std::int64_t y = 0; y < n[1]; ++y) {
      float* row = values.data() + (z * n[1] + y) * n[2];
      char* in = inside.data() + (z * n[1] + y) * n[2];
      std::memcpy(in, a.mask + box[0] * image + place(z, y), n[2]);
      std::int64_t lo = 0, hi = n[2];  // beyond them all is outside
      while (lo < hi && !in[lo]) ++lo;
      while (lo < hi && !in[hi - 1]) --hi;
      for (std::int64_t channel = 0; channel < a.channels; ++channel) {
        const std::int64_t first = (box[0] * a.channels + channel) * image + place(z, y);
        const float *after = a.after + first, *before = a.before + first;
        for (std::int64_t x = lo; x < hi; ++x) row[x] += std::fabs(after[x] - before[x]);
      }
      for (std::int64_t x = lo; x < hi; ++x) {
        const float change = row[x] * share;
        row[x] = lost(change * change * scale);
      }
      for (std::int64_t x = lo; x < hi; ++x) row[x] = in[x] ? row[x] : 0;
    }
  const float* result = values.data();
  if (a.clean) {
    LabelBox one{
        values.data(), reinterpret_cast<const bool*>(inside.data()), cleaned.data(), a.axes, {}};
    std::copy(box + 1 + a.axes, box + 1 + 2 * a.axes, one.size);
    clean_labels(&one, 1, 1);
    result = cleaned.data();
  }
  for (std::int64_t z = 0; z < n[0]; ++z)
    for (std::int64_t y = 0; y < n[1]; ++y) {
      const float* row = result + (z * n[1] + y) * n[2];
      std::copy(row, row + n[2], a.out + box[0] * image + place(z, y));
    }
}

}  // namespace

void change_labels(const ChangeLabelsArgs& args, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < args.count; ++i) label(args, args.boxes + i * (1 + 2 * args.axes));
}

}  // namespace fundad::cpu
