// SPDX-License-Identifier: Apache-2.0
// A tile of attention: logits of a block of rows and a block of keys, weights, and the weighted
// sums of the values. Logits are symmetric, so that a tile's serve the rows of both blocks.
//
// Both products multiply rows with panels of kAttentionPanel columns, packed so that what is read
// next stands next. Sums are short: kAttentionDepth products, and then a sum of these.
#pragma once
#include "kernels.h"
#include "vec-inl.h"

namespace {

using fundad::SelfAttentionArgs;
using fundad::cpu::AttentionMap;
using fundad::cpu::AttentionTile;
using fundad::cpu::kAttentionBlock;

// 24 sums in 32 registers, 12 or 8 in 16.
constexpr int kAttentionRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;
constexpr int kAttentionWide = kLanes == 16 ? 3 : 2;
constexpr std::int64_t kAttentionPanel = kAttentionWide * kLanes;
constexpr std::int64_t kAttentionDepth =
    128;  // a panel's part of this depth stays in the first cache
static_assert(kAttentionBlock % kAttentionPanel == 0 && kAttentionBlock % kLanes == 0);

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

// Rows [0, rows) of a product with a part of a panel, put into the first `columns` of c or added to
// them.
inline void panel_product(const float* const (&a)[kAttentionRows], const float* panel,
                          std::int64_t depth, bool add, int rows, std::int64_t columns, float* c,
                          std::int64_t stride) {
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
#pragma GCC unroll 3
    for (int v = 0; v < kAttentionWide; ++v) {
      const std::int64_t left = columns - v * kLanes;
      if (left <= 0) break;
      const int some = static_cast<int>(left < kLanes ? left : kLanes);
      float* to = c + r * stride + v * kLanes;
      store_some(to, add ? load_some(to, some) + sum[r][v] : sum[r][v], some);
    }
  }
}

// A matrix in panels [panels][stride][kAttentionPanel]: of each `depth` lines are used.
struct AttentionPanels {
  const float* data;
  std::int64_t stride, depth, columns;
};

// c [rows, columns] = or += a [rows, depth] * b, for panels [from, to) of b.
inline void packed_product(const float* a, std::int64_t a_stride, std::int64_t rows,
                           const AttentionPanels& b, std::int64_t from, std::int64_t to, bool add,
                           float* c, std::int64_t stride) {
  for (std::int64_t p = from; p < to; ++p)
    for (std::int64_t k = 0; k < b.depth; k += kAttentionDepth) {
      const std::int64_t part = b.depth - k < kAttentionDepth ? b.depth - k : kAttentionDepth;
      for (std::int64_t i = 0; i < rows; i += kAttentionRows) {
        const int some = static_cast<int>(rows - i < kAttentionRows ? rows - i : kAttentionRows);
        const float* row[kAttentionRows];
        for (int r = 0; r < kAttentionRows; ++r)  // what lacks a row repeats the last
          row[r] = a + (i + (r < some ? r : some - 1)) * a_stride + k;
        panel_product(row, b.data + (p * b.stride + k) * kAttentionPanel, part, add || k > 0, some,
                      b.columns - p * kAttentionPanel, c + i * stride + p * kAttentionPanel,
                      stride);
      }
    }
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

// Logits of rows [lo, hi) of a tile and its panels [from, to) of keys, and the same turned.
inline void attention_logits(const AttentionMap& m, const AttentionTile& t, std::int64_t lo,
                             std::int64_t hi, std::int64_t from, std::int64_t to) {
  const AttentionPanels keys{m.keys + t.second * m.d, m.d, m.d, kAttentionBlock};
  packed_product(m.query + (t.first + lo) * m.d, m.d, hi - lo, keys, from, to, false,
                 t.logits + lo * kAttentionBlock, kAttentionBlock);
  if (t.first == t.second) return;
  for (std::int64_t i = lo; i < hi; i += kLanes)
    for (std::int64_t j = from * kAttentionPanel; j < to * kAttentionPanel; j += kLanes) {
      Floats part[kLanes];
      for (int r = 0; r < kLanes; ++r) part[r] = load(t.logits + (i + r) * kAttentionBlock + j);
      transpose(part);
      for (int r = 0; r < kLanes; ++r) store(t.turned + (j + r) * kAttentionBlock + i, part[r]);
    }
}

// n logits of a row become weights: e^(logit - the largest so far). If one is larger than all
// before, what is known of the row shrinks by as much.
inline void attention_weights(float* row, std::int64_t n, bool begin, float* most, float* sum,
                              float* out, std::int64_t d) {
  const std::int64_t width = (n + kLanes - 1) / kLanes * kLanes;
  for (std::int64_t j = n; j < width; ++j) row[j] = -__builtin_inff();
  Floats high = load(row);
  for (std::int64_t j = kLanes; j < width; j += kLanes) {
    const Floats x = load(row + j);
    high = x > high ? x : high;
  }
  float largest = high[0];
  for (int i = 1; i < kLanes; ++i) largest = high[i] > largest ? high[i] : largest;
  float total = 0;
  if (!begin && !(largest > *most)) {
    largest = *most;
    total = *sum;
  } else if (!begin) {
    const Floats shrink = spread(exp_negative(spread(*most - largest))[0]);
    total = *sum * shrink[0];
    for (std::int64_t k = 0; k < d; k += kLanes) {
      const int some = static_cast<int>(d - k < kLanes ? d - k : kLanes);
      store_some(out + k, load_some(out + k, some) * shrink, some);
    }
  }
  Floats each{};
  for (std::int64_t j = 0; j < width; j += kLanes) {
    const Floats e = exp_negative(load(row + j) - spread(largest));
    store(row + j, e);
    each += e;
  }
  for (int i = 0; i < kLanes; ++i) total += each[i];
  *most = largest;
  *sum = total;
}

// Rows [lo, hi) of a tile, or of a turned one, are weighed.
inline void attention_weigh(const AttentionMap& m, const AttentionTile& t, bool turned,
                            std::int64_t lo, std::int64_t hi) {
  const std::int64_t first = turned ? t.second : t.first;
  const bool begin = t.first == 0 && (turned || t.second == 0);
  for (std::int64_t i = lo; i < hi; ++i)
    attention_weights((turned ? t.turned : t.logits) + i * kAttentionBlock,
                      turned ? t.rows : t.columns, begin, m.most + first + i, m.sums + first + i,
                      m.out + (first + i) * m.d, m.d);
}

// Rows [lo, hi) of the result get what a tile adds to the features of panels [from, to) of values.
inline void attention_mix(const AttentionMap& m, const AttentionTile& t, bool turned,
                          std::int64_t lo, std::int64_t hi, std::int64_t from, std::int64_t to) {
  const std::int64_t first = turned ? t.second : t.first, other = turned ? t.first : t.second;
  const bool begin = t.first == 0 && (turned || t.second == 0);
  const AttentionPanels values{m.values + other * kAttentionPanel, m.n, turned ? t.rows : t.columns,
                               m.d};
  packed_product((turned ? t.turned : t.logits) + lo * kAttentionBlock, kAttentionBlock, hi - lo,
                 values, from, to, !begin, m.out + (first + lo) * m.d, m.d);
}

// Rows [lo, hi) of the result are divided by the sums of their weights.
inline void attention_end(const AttentionMap& m, std::int64_t lo, std::int64_t hi) {
  for (std::int64_t i = lo; i < hi; ++i) {
    const float share = 1 / m.sums[i];
    for (std::int64_t j = 0; j < m.d; ++j) m.out[i * m.d + j] *= share;
  }
}

}  // namespace
