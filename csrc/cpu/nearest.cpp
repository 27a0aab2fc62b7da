// SPDX-License-Identifier: Apache-2.0
#include "fundad/nearest.h"

#include <algorithm>

#include "aligned.h"
#include "kernels.h"

namespace fundad::cpu {

void nearest(const NearestArgs& a, Isa isa, int threads) {
  constexpr std::int64_t kQueries = 16 * kQueryGroup;  // of a block: their rows stay in the cache
  constexpr std::int64_t kPanelFloats = 2 << 20;       // of tiles that are packed at a time
  if (a.m == 0) return;
  const Kernels& run = kernels(isa);
  const std::int64_t tiles = (a.n + kTileRows - 1) / kTileRows;
  const std::int64_t tile_size = tile_floats(a.d), query_size = query_floats(a.d);
  const std::int64_t panel = std::clamp<std::int64_t>(kPanelFloats / tile_size, 1, tiles);
  AlignedVector<float> packed(panel * tile_size), queries(a.m * query_size);

#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (std::int64_t lo = 0; lo < a.m; lo += kQueries)
      run.nearest_begin(a, lo, std::min(a.m, lo + kQueries), queries.data() + lo * query_size);
    for (std::int64_t first = 0; first < tiles; first += panel) {
      const std::int64_t count = std::min(panel, tiles - first);
#pragma omp for schedule(static)
      for (std::int64_t t = 0; t < count; ++t)
        run.nearest_pack(a, (first + t) * kTileRows, packed.data() + t * tile_size);
#pragma omp for schedule(dynamic)
      for (std::int64_t lo = 0; lo < a.m; lo += kQueries)
        run.nearest_search(a, queries.data() + lo * query_size, lo, std::min(a.m, lo + kQueries),
                           packed.data(), first * kTileRows, count);
    }
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < a.m * a.k; ++i) a.dist2[i] = static_cast<float>(a.scratch[i]);
  }
}

}  // namespace fundad::cpu
