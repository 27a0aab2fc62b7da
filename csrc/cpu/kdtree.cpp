// SPDX-License-Identifier: Apache-2.0
#include "kdtree.h"

#include <algorithm>
#include <numeric>

namespace fundad::cpu {
namespace {

struct Part {
  std::int64_t begin, end;
};

struct Key {  // beside its row, so that sorting does not go back to z for every comparison
  float value;
  std::int64_t row;
};

// The column with the largest variance, judged by a few hundred rows.
std::int64_t widest(const float* z, std::int64_t stride, std::int64_t axes,
                    const std::vector<std::int64_t>& order, Part part) {
  const std::int64_t step = std::max<std::int64_t>(1, (part.end - part.begin) / 512);
  std::vector<double> sum(axes), square(axes);
  double count = 0;
  for (std::int64_t i = part.begin; i < part.end; i += step, ++count) {
    const float* row = z + order[i] * stride;
    for (std::int64_t a = 0; a < axes; ++a) {
      sum[a] += row[a];
      square[a] += static_cast<double>(row[a]) * row[a];
    }
  }
  std::int64_t best = 0;
  const auto variance = [&](std::int64_t a) { return square[a] - sum[a] * sum[a] / count; };
  for (std::int64_t a = 1; a < axes; ++a)
    if (variance(a) > variance(best)) best = a;
  return best;
}

}  // namespace

std::vector<std::int64_t> kdtree_order(const float* z, std::int64_t n, std::int64_t stride,
                                       std::int64_t axes, std::int64_t leaf, int threads) {
  std::vector<std::int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::vector<Key> keys(n);
  std::vector<Part> parts{{0, n}};
  while (!parts.empty()) {  // one level of the tree at a time, its parts in parallel
    std::vector<Part> halves(2 * parts.size());
    const auto count = static_cast<std::int64_t>(parts.size());
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (std::int64_t i = 0; i < count; ++i) {
      const Part part = parts[i];
      const std::int64_t leaves = (part.end - part.begin + leaf - 1) / leaf;
      const std::int64_t middle = part.begin + leaves / 2 * leaf;  // a full number of leaves
      if (leaves > 1) {
        const std::int64_t axis = widest(z, stride, axes, order, part);
        const auto begin = keys.begin() + part.begin;
        for (std::int64_t r = part.begin; r < part.end; ++r)
          keys[r] = {z[order[r] * stride + axis], order[r]};
        std::nth_element(begin, keys.begin() + middle, keys.begin() + part.end,
                         [](const Key& a, const Key& b) { return a.value < b.value; });
        for (std::int64_t r = part.begin; r < part.end; ++r) order[r] = keys[r].row;
      }
      halves[2 * i] = {part.begin, leaves > 1 ? middle : part.begin};
      halves[2 * i + 1] = {leaves > 1 ? middle : part.end, part.end};
    }
    parts.clear();
    for (const Part& half : halves)
      if (half.end - half.begin > leaf) parts.push_back(half);
  }
  return order;
}

}  // namespace fundad::cpu
