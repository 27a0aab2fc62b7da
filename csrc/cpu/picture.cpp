// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "fundad/kcenter.h"
#include "kernels.h"
#include "pages.h"

namespace fundad::cpu {

double short_picture(const PictureArgs& a, Isa isa, int threads) {
  const Kernels& run = kernels(isa);
  double largest2 = 0;
  large_pages(a.z, a.n * (a.p + 1) * sizeof(float));
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(max : largest2)
  {
    std::vector<double> scratch(kPictureRows * a.d);
#pragma omp for schedule(dynamic, 64)
    for (std::int64_t lo = 0; lo < a.n; lo += kPictureRows)
      largest2 =
          std::max(largest2, run.picture(a, lo, std::min(a.n, lo + kPictureRows), scratch.data()));
  }
  return std::sqrt(largest2);
}

}  // namespace fundad::cpu
