// SPDX-License-Identifier: Apache-2.0
#include "fundad/distance_filter.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels.h"
#include "pages.h"

namespace fundad::cpu {
namespace {

std::vector<Fold> folds_of(const DistanceFilterArgs& a) {
  const std::int64_t half = (a.taps + 1) / 2;
  std::vector<Fold> folds;
  for (std::int64_t first = 0; first < half; first += kFoldRows) {
    Fold fold{a.half + first,
              half,
              first,
              static_cast<int>(std::min<std::int64_t>(half - first, kFoldRows)),
              {}};
    for (int rows = 1; rows <= fold.rows; ++rows)
      while (fold.end[rows] < half && a.reach[fold.end[rows]] - first >= rows) ++fold.end[rows];
    folds.push_back(fold);
  }
  return folds;
}

constexpr double kPi = 3.14159265358979323846;

// The filter by transforms: its tables, if it is the faster way.
struct Transform {
  std::vector<float> weight, turns;
  std::vector<std::int64_t> order;
  FilterSpectrum view{};

  explicit Transform(const DistanceFilterArgs& a) {
    choose_length(a);
    if (!view.length) return;
    const std::int64_t strips = (a.w + kStrip - 1) / kStrip;
    view.strip = (a.w + strips - 1) / strips;
    // Odd numbers: rows must not share lines of the cache.
    view.known_row = (view.strip + a.taps - 1) | 1;
    view.mixed_row = view.strip | 1;
    fill_order();
    fill_turns();
    fill_weight(a);
    view.weight = weight.data();
    view.turns = turns.data();
    view.order = order.data();
  }

 private:
  // Columns whose transforms, with those of the taps around them, stay in the second cache.
  static constexpr std::int64_t kStrip = 28;

  void choose_length(const DistanceFilterArgs& a) {
    const std::int64_t reach = (a.taps - 1) / 2;
    if (a.taps % 2 == 0) return;  // such a kernel is not even about a cell
    bool zeros = true;            // outside the map, above and below
    for (std::int64_t i = 0; i < reach; ++i)
      zeros = zeros && a.row[i] < 0 && a.row[a.h + a.taps - 2 - i] < 0;
    std::int64_t fewest = 0;  // rows transformed
    for (const std::int64_t length : {32, 64, 128}) {
      // A circle may share its zeros above and below the map.
      const std::int64_t rows = zeros && a.h + reach <= length ? a.h : length - 2 * reach;
      if (rows < 1) continue;
      const std::int64_t all = (a.h + rows - 1) / rows * length;
      if (fewest && all >= fewest) continue;
      fewest = all;
      view.length = length;
      view.rows = rows;
    }
    // Both ways, one thread, 98 x 98 and 28 x 28 cells: transforms took 0.5 to 0.95 of the time of
    // sums where less than half of what is transformed is zeros, from 7 taps a side on; where it is
    // more, 1.1 at 11 taps and 0.9 at 25 with AVX-512, less with narrower vectors.
    if (a.taps < 7 || fewest >= (a.taps < 15 ? 2 : 3) * a.h) view.length = 0;
  }

  void fill_order() {
    order.assign(view.length, 0);
    for (std::int64_t i = 1; i < view.length; ++i)
      order[i] = order[i / 2] / 2 + i % 2 * (view.length / 2);
  }

  void fill_turns() {
    std::int64_t n = view.length;
    while (n > 8) n /= 4;
    for (; n < view.length; n *= 4)
      for (std::int64_t k = 1; k < n / 2; ++k)
        for (const std::int64_t circle : {2 * n, 4 * n}) {
          const double angle = 2 * kPi * static_cast<double>(k) / static_cast<double>(circle);
          turns.push_back(static_cast<float>(std::cos(angle)));
          turns.push_back(static_cast<float>(std::sin(angle)));
        }
  }

  // A quarter of the kernel is even in both axes, so that its transform is a sum of cosines.
  void fill_weight(const DistanceFilterArgs& a) {
    const std::int64_t n = view.length, half = (a.taps + 1) / 2;
    std::vector<double> cosine(n);
    for (std::int64_t i = 0; i < n; ++i)
      cosine[i] = std::cos(2 * kPi * static_cast<double>(i) / static_cast<double>(n));
    for (std::int64_t k = 0; k < n; ++k)
      for (std::int64_t t = 0; t < half; ++t) {
        double sum = 0;
        for (std::int64_t i = 0; i < half; ++i) sum += a.half[i * half + t] * cosine[k * i % n];
        weight.push_back(static_cast<float>(2 * sum / static_cast<double>(n)));
      }
  }
};

// Channels that a thread takes at a time. Of channels that come last a cell has but a few lines of
// the cache next to each other, and cells lie on different pages: 64 channels are read in a third
// of the time of four times 16, and written in a sixth.
std::int64_t channels_together(const DistanceFilterArgs& a, int threads) {
  std::int64_t channels = 64;
  while (channels > 16 && a.b * a.c < 2 * threads * channels) channels /= 2;
  return channels;
}

}  // namespace

void distance_filter(const DistanceFilterArgs& a, Isa isa, int threads) {
  if (a.b * a.c * a.h * a.w == 0) return;
  const Kernels& run = kernels(isa);
  const std::vector<Fold> folds = folds_of(a);
  const Transform transform(a);
  const std::int64_t together = channels_together(a, threads);
  const std::int64_t groups = (a.c + together - 1) / together;
  const LargePages pages(a.out, a.b * a.c * a.h * a.w * sizeof(float));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(dynamic) nowait
    for (std::int64_t page = 0; page < pages.count(); ++page) pages.clear(page);
    const LargeScratch scratch(filter_floats(a, transform.view, together));
#pragma omp for schedule(dynamic)
    for (std::int64_t i = 0; i < a.b * groups; ++i) {
      const std::int64_t channel = i % groups * together;
      run.filter_channels(a, folds.data(), folds.size(), transform.view, i / groups, channel,
                          static_cast<int>(std::min(together, a.c - channel)), scratch.data());
    }
  }
}

}  // namespace fundad::cpu
