// SPDX-License-Identifier: Apache-2.0
#include "fundad/self_attention.h"

#include <algorithm>
#include <memory>

#include "aligned.h"
#include "kernels.h"
#include "pages.h"

namespace fundad::cpu {
namespace {

struct Release {
  void operator()(float* p) const { CacheAligned<float>{}.deallocate(p, 0); }
};

// Not initialised: the first to touch it are the threads.
std::unique_ptr<float, Release> scratch(std::int64_t floats) {
  std::unique_ptr<float, Release> memory(CacheAligned<float>{}.allocate(floats));
  large_pages(memory.get(), floats * sizeof(float));
  return memory;
}

}  // namespace

void self_attention(const SelfAttentionArgs& a, Isa isa, int threads) {
  constexpr std::int64_t kRows = 192;  // that share one pass over all keys and values
  if (a.b * a.n * a.d == 0) return;
  const Kernels& run = kernels(isa);
  const std::int64_t panel = run.attention_panel;
  const std::int64_t key_panels = (a.n + panel - 1) / panel;
  const std::int64_t value_panels = (a.d + panel - 1) / panel;
  const std::int64_t share = (a.n + threads - 1) / threads;  // enough blocks for all threads
  const std::int64_t rows = std::min(kRows, (share + 7) / 8 * 8);
  const auto keys = scratch(key_panels * panel * a.d), values = scratch(value_panels * panel * a.n);
  large_pages(a.out, a.b * a.n * a.d * sizeof(float));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const auto weights = scratch(rows * key_panels * panel);
    const auto mixed = scratch(rows * value_panels * panel), sums = scratch(rows);
    const AttentionScratch s{keys.get(), values.get(), weights.get(), mixed.get(), sums.get()};
    for (std::int64_t map = 0; map < a.b; ++map) {
#pragma omp for schedule(dynamic) nowait
      for (std::int64_t p = 0; p < key_panels; ++p)
        run.attention_pack_keys(a.key + map * a.n * a.d, a.n, a.d, p, keys.get());
#pragma omp for schedule(dynamic)
      for (std::int64_t p = 0; p < value_panels; ++p)
        run.attention_pack_values(a.value + map * a.n * a.d, a.n, a.d, p, values.get());
#pragma omp for schedule(dynamic)
      for (std::int64_t lo = 0; lo < a.n; lo += rows)
        run.attention_rows(a, map, lo, std::min(a.n, lo + rows), s);
    }
  }
}

}  // namespace fundad::cpu
