// SPDX-License-Identifier: Apache-2.0
#include "fundad/distance_filter.h"

#include <algorithm>
#include <vector>

#include "aligned.h"
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

}  // namespace

void distance_filter(const DistanceFilterArgs& a, Isa isa, int threads) {
  const std::int64_t groups = (a.c + kFilterChannels - 1) / kFilterChannels;
  if (a.b * a.c * a.h * a.w == 0) return;
  const Kernels& run = kernels(isa);
  const std::vector<Fold> folds = folds_of(a);
  large_pages(a.out, a.b * a.c * a.h * a.w * sizeof(float));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    AlignedVector<float> scratch(filter_floats(a));
#pragma omp for schedule(dynamic)
    for (std::int64_t i = 0; i < a.b * groups; ++i)
      run.filter_channels(a, folds.data(), folds.size(), i / groups, i % groups * kFilterChannels,
                          scratch.data());
  }
}

}  // namespace fundad::cpu
