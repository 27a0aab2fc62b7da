// SPDX-License-Identifier: Apache-2.0
#include "fundad/distance_transform.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace fundad::cpu {

namespace {

// Squared distances along a row.
void along_row(const bool* mask, float* out, std::int64_t n) {
  float steps = 0;
  for (std::int64_t i = 0; i < n; ++i) out[i] = steps = mask[i] ? steps + 1 : 0;
  steps = 0;
  for (std::int64_t i = n - 1; i >= 0; --i) {
    steps = mask[i] ? steps + 1 : 0;
    const float nearer = std::min(steps, out[i]);
    out[i] = nearer * nearer;
  }
}

// The least of in[i + k] + k^2 for each i of an axis of `n` rows of `inner` cells; rows beyond the
// ends are 0. Shapes are small: to look only as far as distances reach takes less than the lower
// envelope of all parabolas (Felzenszwalb and Huttenlocher 2012), and goes cell by cell of a row.
void along_axis(const float* in, float* out, std::int64_t n, std::int64_t inner) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float* here = in + i * inner;
    float* to = out + i * inner;
    const std::int64_t edge = std::min(i + 1, n - i);  // so many rows away lies what is beyond
    const auto most = static_cast<float>(edge * edge);
    float farthest = 0;
    for (std::int64_t j = 0; j < inner; ++j) {
      to[j] = most < here[j] ? most : here[j];
      farthest = std::max(farthest, to[j]);
    }
    for (std::int64_t k = 1; k < edge && static_cast<float>(k * k) < farthest; ++k) {
      const float *low = here - k * inner, *high = here + k * inner;
      const auto square = static_cast<float>(k * k);
      for (std::int64_t j = 0; j < inner; ++j) {
        const float least = low[j] < high[j] ? low[j] : high[j];
        to[j] = least + square < to[j] ? least + square : to[j];
      }
    }
  }
}

void transform(const DepthBox& box) {
  std::int64_t n[3] = {1, 1, 1};
  for (std::int64_t axis = 0; axis < box.axes; ++axis) n[3 - box.axes + axis] = box.size[axis];
  const std::int64_t plane = n[1] * n[2], cells = n[0] * plane;
  for (std::int64_t row = 0; row < n[0] * n[1]; ++row)
    along_row(box.mask + row * n[2], box.out + row * n[2], n[2]);
  std::vector<float> before;
  if (box.axes >= 2) {
    before.assign(box.out, box.out + cells);
    for (std::int64_t z = 0; z < n[0]; ++z)
      along_axis(before.data() + z * plane, box.out + z * plane, n[1], n[2]);
  }
  if (box.axes >= 3) {
    before.assign(box.out, box.out + cells);
    along_axis(before.data(), box.out, n[0], plane);
  }
  for (std::int64_t i = 0; i < cells; ++i) box.out[i] = std::sqrt(box.out[i]);
}

}  // namespace

void distance_transform(const DepthBox* boxes, std::int64_t count, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < count; ++i) transform(boxes[i]);
}

}  // namespace fundad::cpu
