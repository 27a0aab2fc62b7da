// SPDX-License-Identifier: Apache-2.0
// A few rows of attention: logits, weights, and the weighted mean of the values.
//
// Both products multiply rows with panels of kAttentionPanel columns, packed so that what is read
// next stands next. Sums are short: kAttentionDepth products, and then a sum of these.
#pragma once
#include "kernels.h"
#include "vec-inl.h"

namespace {

using fundad::SelfAttentionArgs;
using fundad::cpu::AttentionScratch;

// 24 sums in 32 registers, 12 or 8 in 16.
constexpr int kAttentionRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;
constexpr int kAttentionWide = kLanes == 16 ? 3 : 2;
constexpr std::int64_t kAttentionPanel = kAttentionWide * kLanes;
constexpr std::int64_t kAttentionDepth =
    128;  // a panel's part of this depth stays in the first cache

// e^x for x <= 0, within 2 units in the last place; 0 where that is no normal number; NaN for NaN.
inline Floats exp_negative(Floats x) {
  typedef std::int32_t Ints __attribute__((vector_size(kLanes * 4)));
  const Floats magic = spread(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Floats shifted = fma(x, spread(1.44269504f), magic);
  const Floats whole = shifted - magic;
  Floats r = fma(whole, spread(-0.693359375f), x);  // ln 2 in two parts, the first of 9 bits
  r = fma(whole, spread(2.12194440e-4f), r);
  Floats p = spread(1.9875691500e-4f);  // Cephes' expf
  p = fma(p, r, spread(1.3981999507e-3f));
  p = fma(p, r, spread(8.3334519073e-3f));
  p = fma(p, r, spread(4.1665795894e-2f));
  p = fma(p, r, spread(1.6666665459e-1f));
  p = fma(p, r, spread(5.0000001201e-1f));
  p = fma(p, r * r, r) + spread(1.0f);
  const Ints power = ((Ints)shifted << 23) + (Ints)spread(1.0f);  // 2^whole: only 9 bits survive
  const Floats result = p * (Floats)power;
  return x < spread(-87.0f) ? Floats{} : result;
}

// Rows [0, rows) of a product with a part of a panel, put into c or added to it.
inline void panel_product(const float* const (&a)[kAttentionRows], const float* panel,
                          std::int64_t depth, bool add, int rows, float* c, std::int64_t stride) {
  Floats sum[kAttentionRows][kAttentionWide] = {};
  for (std::int64_t k = 0; k < depth; ++k) {
    Floats b[kAttentionWide];
    for (int v = 0; v < kAttentionWide; ++v) b[v] = load(panel + k * kAttentionPanel + v * kLanes);
    for (int r = 0; r < kAttentionRows; ++r) {
      const Floats w = spread(a[r][k]);
      for (int v = 0; v < kAttentionWide; ++v) sum[r][v] = fma(w, b[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kAttentionRows; ++r) {
    if (r >= rows) break;
    for (int v = 0; v < kAttentionWide; ++v) {
      float* to = c + r * stride + v * kLanes;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
    }
  }
}

// c [rows, panels * kAttentionPanel] = a [rows, depth] * packed [panels][depth][kAttentionPanel].
inline void packed_product(const float* a, std::int64_t a_stride, std::int64_t rows,
                           const float* packed, std::int64_t depth, std::int64_t panels, float* c) {
  const std::int64_t stride = panels * kAttentionPanel;
  for (std::int64_t p = 0; p < panels; ++p)
    for (std::int64_t k = 0; k < depth; k += kAttentionDepth) {
      const std::int64_t part = depth - k < kAttentionDepth ? depth - k : kAttentionDepth;
      for (std::int64_t i = 0; i < rows; i += kAttentionRows) {
        const int some = static_cast<int>(rows - i < kAttentionRows ? rows - i : kAttentionRows);
        const float* row[kAttentionRows];
        for (int r = 0; r < kAttentionRows; ++r)  // what lacks a row repeats the last
          row[r] = a + (i + (r < some ? r : some - 1)) * a_stride + k;
        panel_product(row, packed + (p * depth + k) * kAttentionPanel, part, k > 0, some,
                      c + i * stride + p * kAttentionPanel, stride);
      }
    }
}

// Logits become weights that still have to be divided by their sum, which is returned.
inline float attention_weights(float* row, std::int64_t n, std::int64_t width) {
  for (std::int64_t j = n; j < width; ++j) row[j] = -__builtin_inff();
  Floats most = load(row);
  for (std::int64_t j = kLanes; j < width; j += kLanes) {
    const Floats x = load(row + j);
    most = x > most ? x : most;
  }
  float largest = most[0];
  for (int i = 1; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
  float total = 0;
  for (std::int64_t first = 0; first < width; first += kAttentionDepth * kLanes) {
    const std::int64_t end =
        first + kAttentionDepth * kLanes < width ? first + kAttentionDepth * kLanes : width;
    Floats sum{};
    for (std::int64_t j = first; j < end; j += kLanes) {
      const Floats e = exp_negative(load(row + j) - spread(largest));
      store(row + j, e);
      sum += e;
    }
    for (int i = 0; i < kLanes; ++i) total += sum[i];
  }
  return total;
}

// Panel p of the keys: their coordinates, kAttentionPanel keys beside each other, zeros after the
// last.
inline void attention_pack_keys(const float* key, std::int64_t n, std::int64_t d, std::int64_t p,
                                float* packed) {
  float* to = packed + p * d * kAttentionPanel;
  for (std::int64_t j = 0; j < kAttentionPanel; j += kLanes) {
    const std::int64_t first = p * kAttentionPanel + j;
    for (std::int64_t k = 0; k < d; k += kLanes) {
      const int some = static_cast<int>(d - k < kLanes ? d - k : kLanes);
      Floats tile[kLanes];
      for (int i = 0; i < kLanes; ++i)
        tile[i] = first + i < n ? load_some(key + (first + i) * d + k, some) : Floats{};
      transpose(tile);
      for (int i = 0; i < some; ++i) store(to + (k + i) * kAttentionPanel + j, tile[i]);
    }
  }
}

// Panel p of the values: kAttentionPanel features of every row, zeros after the last.
inline void attention_pack_values(const float* value, std::int64_t n, std::int64_t d,
                                  std::int64_t p, float* packed) {
  for (std::int64_t r = 0; r < n; ++r)
    for (std::int64_t j = 0; j < kAttentionPanel; j += kLanes) {
      const std::int64_t left = d - p * kAttentionPanel - j;
      const int some = static_cast<int>(left < 0 ? 0 : left < kLanes ? left : kLanes);
      store(packed + (p * n + r) * kAttentionPanel + j,
            load_some(value + r * d + p * kAttentionPanel + j, some));
    }
}

// Rows [lo, hi) of a map.
inline void attention_rows(const SelfAttentionArgs& a, std::int64_t map, std::int64_t lo,
                           std::int64_t hi, const AttentionScratch& s) {
  const std::int64_t rows = hi - lo;
  const std::int64_t key_panels = (a.n + kAttentionPanel - 1) / kAttentionPanel,
                     width = key_panels * kAttentionPanel;
  const std::int64_t value_panels = (a.d + kAttentionPanel - 1) / kAttentionPanel;
  const std::int64_t first = (map * a.n + lo) * a.d;
  packed_product(a.query + first, a.d, rows, s.keys, a.d, key_panels, s.weights);
  for (std::int64_t i = 0; i < rows; ++i)
    s.sums[i] = attention_weights(s.weights + i * width, a.n, width);
  packed_product(s.weights, width, rows, s.values, a.n, value_panels, s.mixed);
  for (std::int64_t i = 0; i < rows; ++i) {
    const float* mixed = s.mixed + i * value_panels * kAttentionPanel;
    const float share = 1 / s.sums[i];
    for (std::int64_t j = 0; j < a.d; ++j) a.out[first + i * a.d + j] = mixed[j] * share;
  }
}

}  // namespace
