// SPDX-License-Identifier: Apache-2.0
// The rival of the lazy k-centre: every row against every pick, distance, minimum and maximum in
// one pass over memory. In float64 it is the reference, quick enough for real sizes.
#include <cmath>
#include <cstdint>

namespace {

template <class Sum>
void kcenter(const float* x, std::int64_t n, std::int64_t d, std::int64_t k, std::int64_t start,
             Sum* reach2, std::int64_t* picks, int threads) {
  for (std::int64_t i = 0; i < n; ++i) reach2[i] = INFINITY;
  std::int64_t pick = start;
  for (std::int64_t step = 0; step < k; ++step) {
    picks[step] = pick;
    const float* p = x + pick * d;
    const std::int64_t newest = pick;
    Sum best = -2;
    std::int64_t best_row = n;
#pragma omp parallel num_threads(threads)
    {
      Sum mine = -2;
      std::int64_t mine_row = n;
#pragma omp for schedule(static) nowait
      for (std::int64_t i = 0; i < n; ++i) {
        const float* row = x + i * d;
        Sum sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int64_t c = 0; c < d; ++c) {
          const Sum t = static_cast<Sum>(row[c]) - p[c];
          sum += t * t;
        }
        if (sum < reach2[i]) reach2[i] = sum;
        if (i == newest) reach2[i] = -1;
        if (reach2[i] > mine) {
          mine = reach2[i];
          mine_row = i;
        }
      }
#pragma omp critical
      if (mine > best || (mine == best && mine_row < best_row)) {
        best = mine;
        best_row = mine_row;
      }
    }
    pick = best_row;
  }
}

}  // namespace

extern "C" void kcenter_float32(const float* x, std::int64_t n, std::int64_t d, std::int64_t k,
                                std::int64_t start, float* reach2, std::int64_t* picks,
                                int threads) {
  kcenter(x, n, d, k, start, reach2, picks, threads);
}

extern "C" void kcenter_float64(const float* x, std::int64_t n, std::int64_t d, std::int64_t k,
                                std::int64_t start, double* reach2, std::int64_t* picks,
                                int threads) {
  kcenter(x, n, d, k, start, reach2, picks, threads);
}
