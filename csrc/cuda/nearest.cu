// SPDX-License-Identifier: Apache-2.0
#include <cstdint>

#include "common.cuh"
#include "fundad/nearest.h"

namespace fundad::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 4;

// One query per warp, one bank row at a time, in float64. Right and simple; made to be measured
// against.
__global__ void nearest_rows(NearestArgs a) {
  const std::int64_t i = blockIdx.x * std::int64_t{kWarpsPerBlock} + threadIdx.y;
  if (i >= a.m) return;
  const float* q = a.q + i * a.d;
  double* best = a.scratch + i * a.k;
  std::int64_t* index = a.index + i * a.k;
  bool finite = true;
  for (std::int64_t c = threadIdx.x; c < a.d; c += kWarp) finite = finite && isfinite(q[c]);
  finite = __all_sync(0xffffffffu, finite);

  for (std::int64_t row = 0; finite && row < a.n; ++row) {
    double dist2 = 0;
    for (std::int64_t c = threadIdx.x; c < a.d; c += kWarp) {
      const double t = static_cast<double>(q[c]) - a.bank[row * a.d + c];
      dist2 += t * t;
    }
    for (int step = kWarp / 2; step > 0; step /= 2)
      dist2 += __shfl_xor_sync(0xffffffffu, dist2, step);
    const std::int64_t found = row < a.k ? row : a.k;  // so many are in the list
    if (threadIdx.x != 0 || (found == a.k && dist2 >= best[a.k - 1])) continue;
    std::int64_t j = found < a.k ? found : a.k - 1;
    for (; j > 0 && dist2 < best[j - 1]; --j) {  // strictly: the lowest index wins ties
      best[j] = best[j - 1];
      index[j] = index[j - 1];
    }
    best[j] = dist2;
    index[j] = row;
  }
  if (threadIdx.x != 0) return;
  for (std::int64_t j = 0; j < a.k; ++j) {
    a.dist2[i * a.k + j] = finite ? static_cast<float>(best[j]) : nanf("");
    if (!finite) index[j] = j;
  }
}

}  // namespace

void nearest(const NearestArgs& a, void* stream) {
  if (a.m == 0) return;  // a grid of zero blocks is an error
  const auto blocks = static_cast<unsigned>((a.m + kWarpsPerBlock - 1) / kWarpsPerBlock);
  nearest_rows<<<blocks, dim3(kWarp, kWarpsPerBlock), 0, static_cast<cudaStream_t>(stream)>>>(a);
  check_launch("nearest_rows");
}

}  // namespace fundad::cuda
