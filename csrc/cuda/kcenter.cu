// SPDX-License-Identifier: Apache-2.0
// Greedy k-centre, one launch per pick. Each thread asks of one leaf of 64 near rows whether the
// pick can matter to it; a warp then works through those of its leaves that it can. Every block
// leaves its farthest row behind, and the next launch begins with the farthest of those: the next
// pick. So nothing comes back to the host, and the end of a launch is the only barrier.
#include "common.cuh"
#include "fundad/kcenter_cuda.h"

namespace fundad::cuda {
namespace {

constexpr int kThreads = kCenterLeavesPerBlock;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = kCenterLeafRows;
constexpr int kMostCoordinates = 512;  // of a short picture, its last one included
constexpr int kStep = 8;               // coordinates between two looks at whether to go on

// A squared distance in the short picture that proves a true squared distance of at least reach2
// from a point no more than `ball` away; -1, which every distance reaches, where nothing can be
// nearer. The factor covers float32 sums of up to 129 squares and more.
__device__ float proof2(const KCenterArgs& a, double reach2, double ball) {
  if (!(reach2 > 0)) return -1;
  const double r = sqrt(reach2) * a.unit + a.slack + ball;
  return static_cast<float>(r * r * (1 + 1e-4));
}

__device__ bool beats(const KCenterTop& a, const KCenterTop& b) {
  return a.reach2 > b.reach2 || (a.reach2 == b.reach2 && a.row < b.row);
}

__device__ KCenterTop warp_top(KCenterTop top) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const KCenterTop other = {__shfl_xor_sync(kAllLanes, top.reach2, step),
                              __shfl_xor_sync(kAllLanes, top.row, step),
                              __shfl_xor_sync(kAllLanes, top.slot, step)};
    if (beats(other, top)) top = other;
  }
  return top;
}

// The best of what all threads of a block have; for every thread. Between two calls a barrier is
// wanted.
__device__ KCenterTop block_top(KCenterTop top) {
  __shared__ KCenterTop of_warp[kWarps];
  top = warp_top(top);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = top;
  __syncthreads();
  top = of_warp[0];
  for (int w = 1; w < kWarps; ++w)
    if (beats(of_warp[w], top)) top = of_warp[w];
  return top;
}

// A warp applies a pick to the rows of a leaf, two per lane, and finds the farthest again.
__device__ KCenterTop meet(const KCenterArgs& a, std::int64_t leaf, std::int64_t pick,
                           const float* pick_z) {
  const int lane = threadIdx.x % kWarp;
  const float* z = a.z + leaf * (a.p + 1) * kRows;
  const float* pick_x = a.x + a.row[pick] * a.d;
  float limit2[2], sum[2] = {0, 0};
  double reach2[2];
  std::int64_t row[2];
  for (int h = 0; h < 2; ++h) {
    const std::int64_t slot = leaf * kRows + h * kWarp + lane;
    row[h] = a.row[slot];
    reach2[h] = a.reach2[slot];
    limit2[h] = a.limit2[slot];
    if (slot == pick) {  // below every distance: never picked again, also among duplicates
      a.reach2[slot] = reach2[h] = -1;
      a.limit2[slot] = limit2[h] = -1;
    }
  }
  bool open = true;
  for (std::int64_t c = 0; c < a.p && open; c += kStep) {
    for (int i = 0; i < kStep; ++i)
      for (int h = 0; h < 2; ++h) {
        const float t = z[(c + i) * kRows + h * kWarp + lane] - pick_z[c + i];
        sum[h] += t * t;
      }
    open = __any_sync(kAllLanes, !(sum[0] >= limit2[0]) || !(sum[1] >= limit2[1]));
  }
  for (int h = 0; h < 2 && open; ++h) {
    const float t = z[a.p * kRows + h * kWarp + lane] - pick_z[a.p];
    sum[h] += t * t;
    unsigned unproved = __ballot_sync(kAllLanes, !(sum[h] >= limit2[h]));
    for (; unproved; unproved &= unproved - 1) {
      const int owner = __ffs(unproved) - 1;
      const std::int64_t other = __shfl_sync(kAllLanes, row[h], owner);
      const double dist2 = warp_sqdist(a.x + other * a.d, pick_x, a.d);
      if (lane == owner && dist2 < reach2[h]) {
        const std::int64_t slot = leaf * kRows + h * kWarp + lane;
        a.reach2[slot] = reach2[h] = dist2;
        a.limit2[slot] = proof2(a, dist2, 0);
      }
    }
  }
  const std::int64_t slot = leaf * kRows + lane;
  const KCenterTop low = {reach2[0], row[0], slot}, high = {reach2[1], row[1], slot + kWarp};
  return warp_top(beats(high, low) ? high : low);
}

__global__ void __launch_bounds__(kThreads)
    kcenter_step(KCenterArgs a, std::int64_t number, bool given) {
  __shared__ float pick_z[kMostCoordinates];
  const KCenterTop nothing = {-2, INT64_MAX, 0};
  const KCenterTop* before = a.tops + (number + 1) % 2 * gridDim.x;
  std::int64_t pick;
  if (given) {
    pick = a.picks[number];
  } else {
    KCenterTop best = nothing;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads)
      if (beats(before[i], best)) best = before[i];
    pick = block_top(best).slot;
    if (blockIdx.x == 0 && threadIdx.x == 0) a.picks[number] = pick;
  }
  const std::int64_t home = pick / kRows;
  for (std::int64_t c = threadIdx.x; c <= a.p; c += kThreads)
    pick_z[c] = a.z[(home * (a.p + 1) + c) * kRows + pick % kRows];
  __syncthreads();

  const std::int64_t leaf = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  KCenterTop top = nothing;
  bool concerned = false;
  if (leaf < a.leaves) {
    top.reach2 = a.top2[leaf];
    top.slot = a.top_slot[leaf];
    top.row = a.row[top.slot];
    const float limit2 = proof2(a, top.reach2, a.ball[leaf]);
    float sum = 0;
    concerned = !(sum >= limit2);
    for (std::int64_t c = 0; c < a.p && concerned; c += kStep) {
      for (int i = 0; i < kStep; ++i) {
        const float t = a.center[(c + i) * a.leaves + leaf] - pick_z[c + i];
        sum += t * t;
      }
      concerned = !(sum >= limit2);
    }
    concerned = concerned || leaf == home;
  }
  unsigned leaves = __ballot_sync(kAllLanes, concerned);
  for (; leaves; leaves &= leaves - 1) {
    const int owner = __ffs(leaves) - 1;
    const KCenterTop now = meet(a, __shfl_sync(kAllLanes, leaf, owner), pick, pick_z);
    if (static_cast<int>(threadIdx.x) % kWarp != owner) continue;
    top = now;
    a.top2[leaf] = top.reach2;
    a.top_slot[leaf] = top.slot;
  }
  top = block_top(top);
  if (threadIdx.x == 0) a.tops[number % 2 * gridDim.x + blockIdx.x] = top;
}

}  // namespace

void kcenter(const KCenterArgs& a, std::int64_t first, std::int64_t last, bool given,
             void* stream) {
  if (a.p % kStep != 0 || a.p >= kMostCoordinates)
    throw std::invalid_argument("kcenter: a short picture has a multiple of 8 coordinates, < 512");
  const std::int64_t blocks = (a.leaves + kThreads - 1) / kThreads;
  for (std::int64_t number = first; number < last && blocks > 0; ++number)
    launch("kcenter_step", kcenter_step, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
           stream, a, number, given);
}

}  // namespace fundad::cuda
