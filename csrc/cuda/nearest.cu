// SPDX-License-Identifier: Apache-2.0
// Exact search in four launches. Products of short float16 pictures on tensor cores give a lower
// bound of every distance, at the cost of a fraction of the full product.
//   1. seeds: of each query and group of rows, the row with the smallest bound;
//   2. reach: the true distances of the k best seeds: the k-th smallest of all is no larger;
//   3. refine: the products again; whatever may be within reach is measured in float64;
//   4. merge: the k best of all shares of the bank.
// The products are made twice because to keep them would take n numbers per query.
#include <cmath>

#include "fundad/nearest_cuda.h"
#include "mma.cuh"

namespace fundad::cuda {
namespace {

constexpr int kQueries = kNearestQueries, kRows = kNearestRows, kGroups = kNearestGroups;
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kWords = kRows / 32;    // of a query's bits, one bit per row of a tile
constexpr int kMostSeeds = 32;        // for a larger k every row is measured until k are found
constexpr int kColumns = kRows / 16;  // products of 8 rows that a warp makes for its half of a tile

// A tile of pictures; 8 values more per row spread its columns over the banks of the memory.
template <int P>
struct Tile {
  static constexpr int kStride = P + 8;
  alignas(16) std::uint16_t z[kRows * kStride];
  float half2[kRows];
};

// Rows at or beyond the end repeat the last one; their half2 is infinite.
template <int P>
__device__ void load_tile(const NearestSearch& a, std::int64_t first, Tile<P>& tile) {
  constexpr int kPieces = P / 8;  // of 16 bytes, of a row
  for (int i = threadIdx.x; i < kRows * kPieces; i += kThreads) {
    const std::int64_t row = min(first + i / kPieces, a.n - 1);
    const auto* from = reinterpret_cast<const uint4*>(a.bank_z + row * P) + i % kPieces;
    *reinterpret_cast<uint4*>(tile.z + i / kPieces * Tile<P>::kStride + i % kPieces * 8) = *from;
  }
  for (int r = threadIdx.x; r < kRows; r += kThreads)
    tile.half2[r] = first + r < a.n ? a.half2[first + r] : INFINITY;
}

// A warp's part of a block of queries times a tile: 32 queries and 64 rows. Queries beyond the end
// repeat the last one.
template <int P>
struct Products {
  static constexpr int kSteps = P / 16;
  unsigned query[2][kSteps][4];

  // In the block: the query of sum[t][2h] and sum[t][2h + 1], and the row of sum[.][c] for column
  // j.
  static __device__ int query_of(int t, int h) {
    return static_cast<int>(threadIdx.x) / kWarp % 4 * 32 + t * 16 + h * 8 +
           static_cast<int>(threadIdx.x) % kWarp / 4;
  }
  static __device__ int row_of(int j, int c) {
    return static_cast<int>(threadIdx.x) / kWarp / 4 * (kRows / 2) + j * 8 +
           static_cast<int>(threadIdx.x) % 4 * 2 + c % 2;
  }

  __device__ void load_queries(const NearestSearch& a, std::int64_t first) {
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
    for (int t = 0; t < 2; ++t)
      for (int h = 0; h < 2; ++h) {
        const auto* z = a.q_z + min(first + query_of(t, h), a.m - 1) * P + column;
#pragma unroll
        for (int s = 0; s < kSteps; ++s) {
          query[t][s][h] = pair_at(z + s * 16);
          query[t][s][2 + h] = pair_at(z + s * 16 + 8);
        }
      }
  }

  // sum = half2 - <query, row>: half the squared distance, less half the query's squared norm; for
  // eight of the rows at a time.
  __device__ void multiply(const Tile<P>& tile, int j, float (&sum)[2][4]) const {
    const int lane = threadIdx.x % kWarp;
    for (int t = 0; t < 2; ++t)
      for (int c = 0; c < 4; ++c) sum[t][c] = 0;
    const auto* z =
        tile.z + (row_of(j, 0) - lane % 4 * 2 + lane / 4) * Tile<P>::kStride + lane % 4 * 2;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const unsigned b0 = pair_at(z + s * 16), b1 = pair_at(z + s * 16 + 8);
      mma_16x8x16(sum[0], query[0][s], b0, b1);
      mma_16x8x16(sum[1], query[1][s], b0, b1);
    }
    for (int t = 0; t < 2; ++t)
      for (int c = 0; c < 4; ++c) sum[t][c] = tile.half2[row_of(j, c)] - sum[t][c];
  }
};

// The tiles [first, last) of a share.
struct Share {
  std::int64_t first, last;
};

__device__ Share share(const NearestSearch& a) {
  const std::int64_t tiles = (a.n + kRows - 1) / kRows;
  return {tiles * blockIdx.y / a.splits, tiles * (blockIdx.y + 1) / a.splits};
}

template <int P>
__global__ void __launch_bounds__(kThreads) nearest_seeds(NearestSearch a) {
  __shared__ Tile<P> tile;
  const std::int64_t first = blockIdx.x * std::int64_t{kQueries};
  Products<P> products;
  products.load_queries(a, first);
  float value[2][2] = {{INFINITY, INFINITY}, {INFINITY, INFINITY}};
  std::int64_t row[2][2] = {{-1, -1}, {-1, -1}};
  const Share mine = share(a);
  for (std::int64_t t = mine.first; t < mine.last; ++t) {
    __syncthreads();
    load_tile(a, t * kRows, tile);
    __syncthreads();
    int best[2][2] = {{-1, -1}, {-1, -1}};
#pragma unroll 4
    for (int j = 0; j < kColumns; ++j) {
      float sum[2][4];
      products.multiply(tile, j, sum);
      for (int i = 0; i < 2; ++i)
        for (int c = 0; c < 4; ++c)
          if (sum[i][c] < value[i][c / 2]) {
            value[i][c / 2] = sum[i][c];
            best[i][c / 2] = products.row_of(j, c);
          }
    }
    for (int i = 0; i < 2; ++i)
      for (int h = 0; h < 2; ++h)
        if (best[i][h] >= 0) row[i][h] = t * kRows + best[i][h];
  }
  const int group = static_cast<int>(threadIdx.x) / kWarp / 4 * 4 + threadIdx.x % 4;
  for (int i = 0; i < 2; ++i)
    for (int h = 0; h < 2; ++h) {
      const std::int64_t query = first + products.query_of(i, h);
      if (query >= a.m) continue;
      const std::int64_t to = (query * a.splits + blockIdx.y) * kGroups + group;
      a.seed_value[to] = value[i][h];
      a.seed_row[to] = row[i][h];
    }
}

// A warp per query. The largest of the distances of any k rows is an upper bound of the k-th
// smallest; the k seeds that look nearest make it a close one.
__global__ void __launch_bounds__(kThreads) nearest_reach(NearestSearch a) {
  const std::int64_t i = blockIdx.x * std::int64_t{kWarps} + threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (i >= a.m) return;
  const std::int64_t seeds = a.splits * kGroups;
  float* value = a.seed_value + i * seeds;
  std::int64_t* row = a.seed_row + i * seeds;
  double worst = a.k <= kMostSeeds && !isnan(a.reach[i]) ? 0 : INFINITY;
  for (std::int64_t taken = 0; taken < a.k && worst < INFINITY; ++taken) {
    float best = INFINITY;
    std::int64_t best_row = -1, place = -1;
    for (std::int64_t s = lane; s < seeds; s += kWarp)
      if (row[s] >= 0 && (best_row < 0 || value[s] < best)) {
        best = value[s];
        best_row = row[s];
        place = s;
      }
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best, step);
      const std::int64_t other_row = __shfl_xor_sync(kAllLanes, best_row, step);
      const std::int64_t other_place = __shfl_xor_sync(kAllLanes, place, step);
      const bool nearer = other < best || (other == best && other_row < best_row);
      if (other_row >= 0 && (best_row < 0 || nearer)) {
        best = other;
        best_row = other_row;
        place = other_place;
      }
    }
    if (best_row < 0) {
      worst = INFINITY;
    } else {
      worst = max(worst, warp_sqdist(a.q + i * a.d, a.bank + best_row * a.d, a.d));
      if (place % kWarp == lane) row[place] = -1;  // the lane that reads it again
    }
  }
  if (lane == 0) a.worst[i] = worst;
}

// A product above this belongs to a row that is certainly farther than the squared distance
// `worst`; the last factor covers the rounding of the limit itself.
__device__ float limit_of(const NearestSearch& a, std::int64_t i, double worst) {
  if (isnan(a.reach[i])) return -INFINITY;
  const double reach = sqrt(worst) * a.unit + a.reach[i];
  const double limit = (reach * reach - a.q_norm2[i]) / 2 + a.loss[i];
  return static_cast<float>(limit + fabs(limit) * 5e-7);
}

// Puts a row into its place among the k best. Rows come in ascending order: equals go behind.
__device__ void insert(double* best, std::int64_t* rows, std::int64_t k, double dist2,
                       std::int64_t row) {
  std::int64_t j = k - 1;
  if (dist2 >= best[j]) return;
  for (; j > 0 && dist2 < best[j - 1]; --j) {
    best[j] = best[j - 1];
    rows[j] = rows[j - 1];
  }
  best[j] = dist2;
  rows[j] = row;
}

template <int P>
__global__ void __launch_bounds__(kThreads) nearest_refine(NearestSearch a) {
  __shared__ Tile<P> tile;
  __shared__ unsigned near[kQueries][kWords];  // one bit per row that has to be measured
  __shared__ float limits[kQueries];
  constexpr int kOwn = kQueries / kWarps;  // queries whose lists a warp keeps
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const std::int64_t first = blockIdx.x * std::int64_t{kQueries};
  const auto list_of = [&](int local) { return (blockIdx.y * a.m + first + local) * a.k; };

  for (int local = warp * kOwn; local < (warp + 1) * kOwn; ++local) {
    const bool there = first + local < a.m;
    if (lane < kWords) near[local][lane] = 0;
    if (lane == 0)
      limits[local] = there ? limit_of(a, first + local, a.worst[first + local]) : -INFINITY;
    for (std::int64_t j = lane; j < a.k && there; j += kWarp) {
      a.found_dist2[list_of(local) + j] = INFINITY;
      a.found_row[list_of(local) + j] = a.n;
    }
  }
  Products<P> products;
  products.load_queries(a, first);
  const Share mine = share(a);
  for (std::int64_t t = mine.first; t < mine.last; ++t) {
    load_tile(a, t * kRows, tile);
    __syncthreads();
    float limit[2][2];
    for (int i = 0; i < 2; ++i)
      for (int h = 0; h < 2; ++h) limit[i][h] = limits[products.query_of(i, h)];
    bool any = false;
#pragma unroll 4
    for (int j = 0; j < kColumns; ++j) {
      float sum[2][4];
      products.multiply(tile, j, sum);
      for (int i = 0; i < 2; ++i)
        for (int c = 0; c < 4; ++c) {
          if (sum[i][c] > limit[i][c / 2]) continue;
          const int r = products.row_of(j, c);
          atomicOr(&near[products.query_of(i, c / 2)][r / 32], 1u << r % 32);
          any = true;
        }
    }
    if (!__syncthreads_or(any)) continue;

    for (int local = warp * kOwn; local < (warp + 1) * kOwn; ++local) {
      const std::int64_t i = first + local;
      bool looked = false;
      for (int w = 0; w < kWords; ++w) {
        unsigned bits = near[local][w];
        looked = looked || bits;
        for (; bits; bits &= bits - 1) {
          const std::int64_t row = t * kRows + w * 32 + __ffs(bits) - 1;
          if (row >= a.n) break;
          const double dist2 = warp_sqdist(a.q + i * a.d, a.bank + row * a.d, a.d);
          if (lane == 0)
            insert(a.found_dist2 + list_of(local), a.found_row + list_of(local), a.k, dist2, row);
        }
      }
      if (!looked) continue;
      __syncwarp();  // every lane has read the bits
      if (lane < kWords) near[local][lane] = 0;
      if (lane == 0)
        limits[local] = limit_of(a, i, min(a.worst[i], a.found_dist2[list_of(local) + a.k - 1]));
    }
  }
}

// A thread per query.
__global__ void __launch_bounds__(kThreads) nearest_merge(NearestSearch a) {
  const std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x;
  if (i >= a.m) return;
  for (std::int64_t s = 0; s < a.splits; ++s) a.head[s * a.m + i] = 0;
  for (std::int64_t j = 0; j < a.k; ++j) {
    double dist2 = INFINITY;
    std::int64_t row = a.n, from = 0;
    for (std::int64_t s = 0; s < a.splits; ++s) {
      const std::int64_t at = (s * a.m + i) * a.k + a.head[s * a.m + i];
      if (a.head[s * a.m + i] == a.k) continue;
      const double other = a.found_dist2[at];
      if (other < dist2 || (other == dist2 && a.found_row[at] < row)) {
        dist2 = other;
        row = a.found_row[at];
        from = s;
      }
    }
    ++a.head[from * a.m + i];
    const bool usable = !isnan(a.reach[i]);
    a.dist2[i * a.k + j] = usable ? static_cast<float>(dist2) : NAN;
    a.index[i * a.k + j] = usable ? row : j;
  }
}

unsigned blocks(std::int64_t things, std::int64_t of_a_block) {
  return static_cast<unsigned>((things + of_a_block - 1) / of_a_block);
}

template <int P>
void run(const NearestSearch& a, void* stream) {
  const dim3 grid(blocks(a.m, kQueries), static_cast<unsigned>(a.splits)), threads(kThreads);
  launch("nearest_seeds", nearest_seeds<P>, grid, threads, stream, a);
  launch("nearest_reach", nearest_reach, dim3(blocks(a.m, kWarps)), threads, stream, a);
  launch("nearest_refine", nearest_refine<P>, grid, threads, stream, a);
  launch("nearest_merge", nearest_merge, dim3(blocks(a.m, kThreads)), threads, stream, a);
}

}  // namespace

void nearest(const NearestSearch& a, void* stream) {
  if (a.m == 0) return;  // a grid of zero blocks is an error
  switch (a.p) {
    case 32:
      return run<32>(a, stream);
    case 64:
      return run<64>(a, stream);
    case 128:
      return run<128>(a, stream);
    default:
      throw std::invalid_argument("nearest: a short picture has 32, 64 or 128 values");
  }
}

}  // namespace fundad::cuda
