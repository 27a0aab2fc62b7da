// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <vector>

#include "aligned.h"
#include "fundad/nearest.h"
#include "kdtree.h"
#include "kernels.h"

namespace fundad::cpu {
namespace {

struct Scratch {
  AlignedVector<double> picture;
  AlignedVector<float> z;
  AlignedVector<std::int16_t> coarse, fine;
  AlignedVector<std::int32_t> top, best, list;
  AlignedVector<TileQuery> bound;
  TileEffort effort;
  TileScratch view;

  Scratch(const NearestArgs& a, const NearestTiles& t, std::int64_t queries)
      : picture(kPictureRows * a.d),
        z(queries * (t.kAxes + 1)),
        coarse(queries * t.kCoarse),
        fine(queries * 2 * t.kFine),
        top(t.tiles * queries),
        best(3 * queries),
        list(queries + kQueryGroup),
        bound(queries),
        view{queries,    picture.data(), z.data(),    coarse.data(), fine.data(),
             top.data(), best.data(),    list.data(), bound.data(),  &effort} {}
};

}  // namespace

TileEffort nearest_tiles(const NearestArgs& a, const NearestTiles& t, Isa isa, int threads) {
  // Queries of a block: enough to make good use of a tile once it is in the cache, and no more than
  // 8 MiB of what is kept of every pair.
  constexpr std::int64_t kMost = 10 * kQueryStrip, kKept = 2 << 20;
  if (a.m == 0) return {};
  const Kernels& run = kernels(isa);
  const std::int64_t strips = (a.m + kQueryStrip - 1) / kQueryStrip;
  const std::int64_t most =
      std::clamp<std::int64_t>(kKept / t.tiles / kQueryStrip, 1, kMost / kQueryStrip);
  const std::int64_t blocks =
      std::max<std::int64_t>((strips + most - 1) / most, std::min<std::int64_t>(threads, strips));
  const std::int64_t block = (strips + blocks - 1) / blocks * kQueryStrip;
  std::vector<Scratch> scratch;
  scratch.reserve(threads);
  for (int i = 0; i < threads; ++i) scratch.emplace_back(a, t, block);
  std::atomic<int> arrived{0};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const TileScratch& mine = scratch[arrived.fetch_add(1)].view;
#pragma omp for schedule(dynamic)
    for (std::int64_t lo = 0; lo < a.m; lo += block)
      run.nearest_in_tiles(a, t, lo, std::min(a.m, lo + block), mine);
  }
  TileEffort total;
  for (const Scratch& one : scratch) {
    total.tiles += one.effort.tiles;
    total.fine_rows += one.effort.fine_rows;
    total.measured_rows += one.effort.measured_rows;
  }
  return total;
}

void tile_order(const float* z, std::int64_t n, std::int64_t stride, std::int64_t axes,
                std::int64_t* order, int threads) {
  const auto found = kdtree_order(z, n, stride, axes, NearestTiles::kRows, threads);
  std::copy(found.begin(), found.end(), order);
}

}  // namespace fundad::cpu
