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

// Tiles follow one another, and all threads share the work of one: the order of a row's sums is
// that of the tiles, whoever adds them.
void self_attention(const SelfAttentionArgs& a, Isa isa, int threads) {
  constexpr std::int64_t kBlock = kAttentionBlock;
  if (a.b * a.n * a.d == 0) return;
  const Kernels& run = kernels(isa);
  const std::int64_t panel = run.attention_panel;
  const std::int64_t key_panels = (a.n + panel - 1) / panel;
  const std::int64_t value_panels = (a.d + panel - 1) / panel;
  // Rows that share one pass over the panels of a block: as many as leave two portions to a thread.
  // Where threads outnumber portions, panels are shared out too.
  const std::int64_t rows = std::clamp<std::int64_t>(kBlock / 2 / threads / 48 * 48, 48, 192);
  const std::int64_t cuts = threads * rows > kBlock ? 4 : 1;
  const auto keys = scratch(key_panels * panel * a.d);
  const auto values = scratch(value_panels * panel * a.n);
  const auto logits = scratch(kBlock * kBlock), turned = scratch(kBlock * kBlock);
  const auto most = scratch(a.n), sums = scratch(a.n);
  large_pages(a.out, a.b * a.n * a.d * sizeof(float));
#pragma omp parallel num_threads(threads) if (threads > 1)
  for (std::int64_t map = 0; map < a.b; ++map) {
    const std::int64_t start = map * a.n * a.d;
    const AttentionMap m{a.query + start, keys.get(), values.get(), a.out + start,
                         most.get(),      sums.get(), a.n,          a.d};
#pragma omp for schedule(dynamic) nowait
    for (std::int64_t p = 0; p < key_panels; ++p)
      run.attention_pack_keys(a.key + start, a.n, a.d, p, keys.get());
#pragma omp for schedule(dynamic)
    for (std::int64_t p = 0; p < value_panels; ++p)
      run.attention_pack_values(a.value + start, a.n, a.d, p, values.get());
    for (std::int64_t first = 0; first < a.n; first += kBlock)
      for (std::int64_t second = first; second < a.n; second += kBlock) {
        const AttentionTile t{logits.get(), turned.get(),
                              first,        std::min(kBlock, a.n - first),
                              second,       std::min(kBlock, a.n - second)};
        const std::int64_t panels = (t.columns + panel - 1) / panel;
        const std::int64_t tall = (t.rows + rows - 1) / rows, wide = (t.columns + rows - 1) / rows;
        const std::int64_t both = first == second ? tall : tall + wide;
#pragma omp for schedule(dynamic) collapse(2)
        for (std::int64_t i = 0; i < tall; ++i)
          for (std::int64_t c = 0; c < cuts; ++c)
            run.attention_logits(m, t, i * rows, std::min(t.rows, (i + 1) * rows),
                                 panels * c / cuts, panels * (c + 1) / cuts);
#pragma omp for schedule(dynamic)
        for (std::int64_t i = 0; i < both; ++i) {
          const bool other = i >= tall;
          const std::int64_t lo = (other ? i - tall : i) * rows;
          run.attention_weigh(m, t, other, lo, std::min(other ? t.columns : t.rows, lo + rows));
        }
#pragma omp for schedule(dynamic) collapse(2)
        for (std::int64_t i = 0; i < both; ++i)
          for (std::int64_t c = 0; c < cuts; ++c) {
            const bool other = i >= tall;
            const std::int64_t lo = (other ? i - tall : i) * rows;
            run.attention_mix(m, t, other, lo, std::min(other ? t.columns : t.rows, lo + rows),
                              value_panels * c / cuts, value_panels * (c + 1) / cuts);
          }
      }
#pragma omp for
    for (std::int64_t lo = 0; lo < a.n; lo += 48) run.attention_end(m, lo, std::min(a.n, lo + 48));
  }
}

}  // namespace fundad::cpu
