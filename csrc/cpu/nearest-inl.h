// SPDX-License-Identifier: Apache-2.0
// Products of queries with a tile of the bank decide which rows need a closer look; those rows are
// then measured exactly. A row is passed over only if rounding cannot have hidden it.
#pragma once
#include "kernels.h"
#include "sqdist-inl.h"

namespace {

using fundad::NearestArgs;
using fundad::cpu::kQueryGroup;
using fundad::cpu::kTileRows;
using fundad::cpu::query_floats;
using fundad::cpu::tile_floats;

constexpr double kUnit = 1.0 / (1 << 24);  // relative rounding error of float32

inline bool finite(double x) { return x - x == 0; }

inline void nearest_pack(const NearestArgs& a, std::int64_t first, float* tile) {
  float* half_norm2 = tile + a.d * kTileRows;
  float largest = 0;
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    double norm2 = 0;
    const bool is_row = first + r < a.n;
    const float* row = is_row ? a.bank + (first + r) * a.d : a.center;
    for (std::int64_t i = 0; i < a.d; ++i) {
      const float z = row[i] - a.center[i];
      tile[i * kTileRows + r] = z;
      norm2 += static_cast<double>(z) * z;
    }
    half_norm2[r] = is_row ? static_cast<float>(norm2 / 2) : __builtin_inff();
    const float norm = static_cast<float>(__builtin_sqrt(norm2) * (1 + 2e-7));
    if (!(norm <= largest)) largest = norm;
  }
  half_norm2[kTileRows] = largest;
}

// Empties the results of a query; returns whether it is finite.
inline bool nearest_reset(const NearestArgs& a, std::int64_t i) {
  const float* q = a.q + i * a.d;
  bool usable = true;
  for (std::int64_t c = 0; c < a.d; ++c) usable = usable && finite(q[c]);
  for (std::int64_t j = 0; j < a.k; ++j) {
    a.scratch[i * a.k + j] = usable ? __builtin_inf() : __builtin_nan("");
    a.index[i * a.k + j] = usable ? a.n : j;  // n: an equal distance replaces it
  }
  return usable;
}

inline void nearest_begin(const NearestArgs& a, std::int64_t lo, std::int64_t hi, float* queries) {
  for (std::int64_t i = lo; i < hi; ++i) {
    float* z = queries + (i - lo) * query_floats(a.d);
    const float* q = a.q + i * a.d;
    const bool usable = nearest_reset(a, i);
    double norm2 = usable ? 0 : __builtin_nan("");
    for (std::int64_t c = 0; c < a.d; ++c) {
      z[c] = usable ? a.center[c] - q[c] : 0;
      norm2 += static_cast<double>(z[c]) * z[c];
    }
    z[a.d] = static_cast<float>(__builtin_sqrt(norm2) * (1 + 2e-7));
  }
}

// Half |row|^2 - <query, row>, for kQueryGroup queries and a whole tile.
inline void nearest_products(const float* const* query, const float* tile, std::int64_t d,
                             float* out) {
  constexpr int kWide = kLanes == 16 ? 4 : 2;  // 24 sums in 32 registers, or 12 in 16
  for (std::int64_t r = 0; r < kTileRows; r += kWide * kLanes) {
    Floats sum[kQueryGroup][kWide];
    for (int v = 0; v < kWide; ++v) {
      const Floats start = load(tile + d * kTileRows + r + v * kLanes);
      for (int j = 0; j < kQueryGroup; ++j) sum[j][v] = start;
    }
    for (std::int64_t i = 0; i < d; ++i) {
      Floats row[kWide];
      for (int v = 0; v < kWide; ++v) row[v] = load(tile + i * kTileRows + r + v * kLanes);
      for (int j = 0; j < kQueryGroup; ++j) {
        const Floats w = spread(query[j][i]);
        for (int v = 0; v < kWide; ++v) sum[j][v] = fma(w, row[v], sum[j][v]);
      }
    }
    for (int j = 0; j < kQueryGroup; ++j)
      for (int v = 0; v < kWide; ++v) store(out + j * kTileRows + r + v * kLanes, sum[j][v]);
  }
}

// A product at or above this belongs to a row whose squared distance is certainly above `worst`;
// NaN if there is no such product. Rounding of the centred vectors moves a distance by kUnit of
// their norms (slack); a sum of d + 1 terms is off by d + 2 units of the sum of their sizes, or by
// some smallest numbers where they vanish (loss).
inline float nearest_limit(double worst, double query_norm, double largest, std::int64_t d) {
  const double slack = 2 * kUnit * (query_norm + largest);
  const double loss = 1.01 * (d + 8) * (kUnit * (query_norm + largest) * largest + 1.2e-38);
  const double reach = __builtin_sqrt(worst) + slack;
  const double limit = (reach * reach - query_norm * query_norm * (1 - 6e-7)) / 2 + loss;
  if (!finite(limit) || !(query_norm + largest < 1e18)) return __builtin_nanf("");
  return static_cast<float>(limit + (limit > 0 ? limit : -limit) * 2 * kUnit);
}

// Puts a row into its place among the k best, ordered by distance and then by index.
inline void nearest_insert(const NearestArgs& a, std::int64_t i, double dist2, std::int64_t row) {
  double* best = a.scratch + i * a.k;
  std::int64_t* index = a.index + i * a.k;
  std::int64_t j = a.k - 1;
  if (dist2 > best[j] || (dist2 == best[j] && row > index[j])) return;
  for (; j > 0 && (dist2 < best[j - 1] || (dist2 == best[j - 1] && row < index[j - 1])); --j) {
    best[j] = best[j - 1];
    index[j] = index[j - 1];
  }
  best[j] = dist2;
  index[j] = row;
}

inline void nearest_search(const NearestArgs& a, const float* queries, std::int64_t lo,
                           std::int64_t hi, const float* tiles, std::int64_t first_row,
                           std::int64_t tile_count) {
  float product[kQueryGroup * kTileRows];
  for (std::int64_t t = 0; t < tile_count; ++t) {
    const float* tile = tiles + t * tile_floats(a.d);
    const double largest = tile[(a.d + 1) * kTileRows];
    const std::int64_t first = first_row + t * kTileRows;
    for (std::int64_t i = lo; i < hi; i += kQueryGroup) {
      const float* query[kQueryGroup];
      for (int j = 0; j < kQueryGroup; ++j)  // the last group asks its last query again
        query[j] = queries + ((i + j < hi ? i + j : hi - 1) - lo) * query_floats(a.d);
      nearest_products(query, tile, a.d, product);
      for (std::int64_t j = 0; j < kQueryGroup && i + j < hi; ++j) {
        if (query[j][a.d] != query[j][a.d]) continue;
        const double* worst = a.scratch + (i + j) * a.k + a.k - 1;
        const auto limit = [&] { return nearest_limit(*worst, query[j][a.d], largest, a.d); };
        const float* p = product + j * kTileRows;
        std::uint64_t bits = 0;
        const Floats all = spread(limit());
        for (int g = 0; g < kTileRows / kLanes; ++g)
          bits |= not_reaching(load(p + g * kLanes), all) << (g * kLanes);
        for (; bits; bits &= bits - 1) {
          const int r = __builtin_ctzll(bits);
          if (p[r] >= limit() || first + r >= a.n) continue;
          const float* row = a.bank + (first + r) * a.d;
          nearest_insert(a, i + j, sqdist(a.q + (i + j) * a.d, row, a.d), first + r);
        }
      }
    }
  }
}

}  // namespace
