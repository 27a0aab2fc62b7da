// SPDX-License-Identifier: Apache-2.0
// Integers decide which rows need a closer look. Coarse ones are compared for all pairs, and of
// each tile only the best is kept; fine ones for the tiles that are left; finer ones for the rows
// that are left. What is left then is measured.
//
// All bounds are triangle inequalities. With u and v the integers of a query and a row, in steps s,
// and e the rounding errors of both, which are known: s |u - v| - e <= |z_q - z_b|. Before it is
// rounded a query is moved to the nearest point of a box or ball that holds the bank; that brings
// it nearer to every row, by the Pythagorean inequality: |z_q - z_b|^2 >= moved^2 + |z'_q - z_b|^2.
#pragma once
#include "ints-inl.h"
#include "kernels.h"
#include "nearest-inl.h"
#include "picture-inl.h"

namespace {

using fundad::NearestTiles;
using fundad::cpu::kQueryStrip;
using fundad::cpu::TileQuery;
using fundad::cpu::TileScratch;

constexpr std::int64_t kAxes = NearestTiles::kAxes;
constexpr std::int64_t kCoarse = NearestTiles::kCoarse;
constexpr std::int64_t kFine = NearestTiles::kFine;
constexpr std::int32_t kNever = 0x7fffffff, kAlways = -kNever - 1;  // what must be reached

#if defined(__AVX512VNNI__)
constexpr int kWordNumbers = 4;  // coarse numbers in a lane: bytes, or 16-bit numbers
typedef std::int8_t CoarseNumber;
inline Ints coarse_add(Ints sum, Ints row, Ints query) { return add_quads(sum, row, query); }
#else
constexpr int kWordNumbers = 2;
typedef std::int16_t CoarseNumber;
inline Ints coarse_add(Ints sum, Ints row, Ints query) { return add_pairs(sum, row, query); }
#endif
constexpr int kWords = kCoarse / kWordNumbers;
constexpr int kStripWide = 3;                // vectors of queries multiplied at a time
constexpr int kStrip = kStripWide * kLanes;  // queries whose words stand side by side
static_assert(kQueryStrip % kStrip == 0, "strips fill a block");
static_assert(NearestTiles::kRows == kTileRows, "one kind of tile");

inline double square(double x) { return x * x; }

inline double clamp(double x, double most) { return x > most ? most : x < -most ? -most : x; }

// Rounds a number to integer steps; adds to the squared error and to the squared norm.
inline long round_steps(double x, double step, double* error2, double* norm2) {
  const long v = __builtin_lrint(x / step);
  *error2 += square(x - v * step);
  *norm2 += static_cast<double>(v) * v;
  return v;
}

// From the picture of query i of the block to its integers.
inline void tiles_round(const NearestTiles& t, const TileScratch& s, std::int64_t i, bool usable) {
  const float* z = s.z + i * (kAxes + 1);
  CoarseNumber* coarse = reinterpret_cast<CoarseNumber*>(s.coarse) + i / kStrip * kStrip * kCoarse +
                         i % kStrip * kWordNumbers;
  std::int16_t* fine = s.fine + i * 2 * kFine;
  TileQuery& bound = s.bound[i];
  double rest2[3] = {};  // of what is not in coarse, fine, finer
  for (std::int64_t c = kAxes; c >= 2 * (kFine - 1); --c) rest2[2] += square(z[c]);
  rest2[1] = rest2[2];
  for (std::int64_t c = 2 * (kFine - 1) - 1; c >= kFine - 1; --c) rest2[1] += square(z[c]);
  rest2[0] = rest2[1];
  for (std::int64_t c = kFine - 2; c >= kCoarse - 1; --c) rest2[0] += square(z[c]);
  double norm2 = rest2[0];
  for (std::int64_t c = 0; c < kCoarse - 1; ++c) norm2 += square(z[c]);
  usable = usable && finite(norm2);  // else too large for a picture: every row has to be measured

  double error2[3] = {}, integer2[3] = {}, out2 = 0;
  long sum = 0;
  for (std::int64_t c = 0; c < kCoarse; ++c) {
    const double x = (c < kCoarse - 1 ? z[c] : __builtin_sqrt(rest2[0])) - t.middle[c];
    const double inside = clamp(usable ? x : 0, 127 * t.coarse_step);
    const long v = round_steps(inside, t.coarse_step, &error2[0], &integer2[0]);
    out2 += square(x - inside);
    sum += v;
    coarse[c / kWordNumbers * kStrip * kWordNumbers + c % kWordNumbers] =
        static_cast<CoarseNumber>(v);
  }
  const double norm = __builtin_sqrt(norm2);
  const double shrink = usable ? (norm > t.radius ? t.radius / norm : 1) : 0;
  for (std::int64_t c = 0; c < 2 * kFine; ++c) {
    const double x = c < kFine - 1       ? z[c]
                     : c == kFine - 1    ? __builtin_sqrt(rest2[1])
                     : c < 2 * kFine - 1 ? z[c - 1]
                                         : __builtin_sqrt(rest2[2]);
    const int level = c < kFine ? 1 : 2;
    fine[c] = static_cast<std::int16_t>(
        round_steps(usable ? x * shrink : 0, t.fine_step, &error2[level], &integer2[level]));
  }
  const double last = fine[kFine - 1];  // stands for what finer has in detail
  const double rest_error2 = square(__builtin_sqrt(rest2[1]) * shrink - last * t.fine_step);
  bound.slack = usable ? t.slack * (norm > 1 ? norm : 1) : __builtin_inf();
  bound.coarse_out2 = out2;
  bound.fine_out2 = square(norm * (1 - shrink));
  bound.coarse_error = __builtin_sqrt(error2[0]) + t.coarse_error;
  bound.fine_error = __builtin_sqrt(error2[1]) + t.fine_error;
  const double finer_error2 = error2[1] - rest_error2 + error2[2];
  bound.finer_error = __builtin_sqrt(finer_error2 > 0 ? finer_error2 : 0) + t.finer_error;
  bound.coarse_half = integer2[0] / 2 + 128. * sum;  // the bank's bytes are 128 too large
  bound.fine_half = integer2[1] / 2;
  bound.finer_half = (integer2[1] - last * last + integer2[2]) / 2;
}

// What a product minus half of the row's squared norm must reach, so that the row may be nearer
// than `reach` in the picture. 1e-9 and 1e-3 are far above what float64 loses here.
inline double tiles_least(double reach, double out2, double error, double step, double half) {
  const double inside2 = reach * reach - out2;
  const double steps = ((inside2 > 0 ? __builtin_sqrt(inside2) : 0) + error) / step;
  return __builtin_floor(half - steps * steps * (1 + 1e-9) / 2 - 1e-3);
}

// Sets the bounds of query i of the block, whose worst result so far lies at sqrt(worst).
inline void tiles_tighten(const NearestTiles& t, const TileScratch& s, std::int64_t i,
                          double worst) {
  TileQuery& b = s.bound[i];
  const double reach = __builtin_sqrt(worst) * (1 + 1e-9) / t.scale + b.slack;
  std::int32_t* least_coarse = s.best + 2 * s.queries + i;
  *least_coarse = b.least_fine = kAlways;
  b.least_finer = -(std::int64_t{1} << 60);
  if (!(reach < 1e30)) return;
  const double coarse =
      tiles_least(reach, b.coarse_out2, b.coarse_error, t.coarse_step, b.coarse_half);
  const double fine = tiles_least(reach, b.fine_out2, b.fine_error, t.fine_step, b.fine_half);
  const double finer = tiles_least(reach, b.fine_out2, b.finer_error, t.fine_step, b.finer_half);
  if (coarse > kAlways) *least_coarse = static_cast<std::int32_t>(coarse);
  if (fine > kAlways) b.least_fine = static_cast<std::int32_t>(fine);
  if (finer > -1e18) b.least_finer = static_cast<std::int64_t>(finer);
}

// Coarse products of all tiles with `count` queries, a multiple of kStrip: the best of each tile,
// and of all.
inline void tiles_coarse(const NearestTiles& t, const TileScratch& s, std::int64_t count) {
  constexpr int kRows = kLanes == 16 ? 8 : 4;  // 24 sums in 32 registers, 12 in 16
  const CoarseNumber* queries = reinterpret_cast<const CoarseNumber*>(s.coarse);
  for (std::int64_t i = 0; i < count; ++i) s.best[i] = kAlways, s.best[s.queries + i] = 0;
  for (std::int64_t tile = 0; tile < t.tiles; ++tile) {
    const std::int32_t* minus_half = t.minus_half + tile * kTileRows;
#if defined(__AVX512VNNI__)
    const std::uint8_t* rows = t.coarse + tile * kTileRows * kCoarse;
#else
    std::int16_t rows[kTileRows * kCoarse];
    for (std::int64_t j = 0; j < kTileRows * kCoarse; ++j)
      rows[j] = t.coarse[tile * kTileRows * kCoarse + j];
#endif
    for (std::int64_t i = 0; i < count; i += kStrip) {
      const CoarseNumber* strip = queries + i * kCoarse;
      Ints best[kStripWide];
      for (int v = 0; v < kStripWide; ++v) best[v] = spread(kAlways);
      for (int r = 0; r < kTileRows; r += kRows) {
        Ints sum[kRows][kStripWide];
        for (int j = 0; j < kRows; ++j)
          for (int v = 0; v < kStripWide; ++v) sum[j][v] = spread(minus_half[r + j]);
        for (int w = 0; w < kWords; ++w) {
          Ints query[kStripWide];
          for (int v = 0; v < kStripWide; ++v)
            std::memcpy(&query[v], strip + (w * kStrip + v * kLanes) * kWordNumbers, sizeof(Ints));
          for (int j = 0; j < kRows; ++j) {
            const Ints row = spread_word(rows + (r + j) * kCoarse + w * kWordNumbers);
            for (int v = 0; v < kStripWide; ++v) sum[j][v] = coarse_add(sum[j][v], row, query[v]);
          }
        }
        for (int j = 0; j < kRows; ++j)
          for (int v = 0; v < kStripWide; ++v) best[v] = larger(best[v], sum[j][v]);
      }
      for (int v = 0; v < kStripWide; ++v) {
        const std::int64_t at = i + v * kLanes;
        store(s.top + tile * s.queries + at, best[v]);
        const Ints before = load(s.best + at), owner = load(s.best + s.queries + at);
        store(s.best + s.queries + at,
              best[v] > before ? spread(static_cast<std::int32_t>(tile)) : owner);
        store(s.best + at, larger(best[v], before));
      }
    }
  }
}

// Fine products of a tile with kCount queries, minus half of the rows' squared norms.
template <int kCount>
inline void tiles_fine(const NearestTiles& t, std::int64_t tile, const std::int16_t* const* query,
                       std::int32_t (*out)[kTileRows]) {
  constexpr int kWide = kLanes == 16 ? 4 : 2;
  const std::int32_t* minus_half = t.minus_half + (t.tiles + tile) * kTileRows;
  const std::int16_t* rows = t.fine + tile * kFine * kTileRows;
  for (int r = 0; r < kTileRows; r += kWide * kLanes) {
    Ints sum[kCount][kWide];
    for (int v = 0; v < kWide; ++v)
      for (int j = 0; j < kCount; ++j) sum[j][v] = load(minus_half + r + v * kLanes);
    for (int w = 0; w < kFine / 2; ++w) {
      Ints row[kWide];
      for (int v = 0; v < kWide; ++v)
        std::memcpy(&row[v], rows + (w * kTileRows + r + v * kLanes) * 2, sizeof(Ints));
      for (int j = 0; j < kCount; ++j) {
        const Ints word = spread_word(query[j] + 2 * w);
        for (int v = 0; v < kWide; ++v) sum[j][v] = add_pairs(sum[j][v], row[v], word);
      }
    }
    for (int j = 0; j < kCount; ++j)
      for (int v = 0; v < kWide; ++v) store(out[j] + r + v * kLanes, sum[j][v]);
  }
}

// The product of `fine` made finer, for one row.
inline std::int64_t tiles_finer(const NearestTiles& t, std::int64_t tile, int r,
                                std::int32_t product, const std::int16_t* query) {
  const std::int64_t slot = tile * kTileRows + r;
  const std::int16_t* row = t.finer + slot * kFine;
  Ints sum = {};
  for (int c = 0; c < kFine; c += 2 * kLanes) {
    Ints a, b;
    std::memcpy(&a, row + c, sizeof a);
    std::memcpy(&b, query + kFine + c, sizeof b);
    sum = add_pairs(sum, a, b);
  }
  std::int32_t lane[kLanes];
  store(lane, sum);
  const std::int64_t last = (tile * kFine / 2 + kFine / 2 - 1) * kTileRows + r;
  std::int64_t total = product - static_cast<std::int64_t>(t.fine[2 * last + 1]) * query[kFine - 1];
  for (int j = 0; j < kLanes; ++j) total += lane[j];
  return total + t.minus_half[2 * t.tiles * kTileRows + slot];
}

inline bool tiles_has(const NearestArgs& a, std::int64_t i, std::int64_t row) {
  for (std::int64_t j = 0; j < a.k; ++j)
    if (a.index[i * a.k + j] == row) return true;
  return false;
}

// Measures the rows that look best in the tile that looks best, so that there is a bound to go by.
inline void tiles_seed(const NearestArgs& a, const NearestTiles& t, const TileScratch& s,
                       std::int64_t lo, std::int64_t i) {
  const std::int64_t tile = s.best[s.queries + i];
  const std::int16_t* query = s.fine + i * 2 * kFine;
  std::int32_t product[1][kTileRows];
  tiles_fine<1>(t, tile, &query, product);
  for (std::int64_t found = 0; found < a.k && found < kTileRows; ++found) {
    int top = 0;
    for (int r = 1; r < kTileRows; ++r)
      if (product[0][r] > product[0][top]) top = r;
    const std::int64_t row = t.row[tile * kTileRows + top];
    product[0][top] = kAlways;
    if (row >= a.n) continue;
    nearest_insert(a, lo + i, sqdist(a.q + (lo + i) * a.d, a.bank + row * a.d, a.d), row);
    ++s.effort->measured_rows;
  }
  tiles_tighten(t, s, i, a.scratch[(lo + i) * a.k + a.k - 1]);
}

// Measures those rows of a tile, one bit each, that finer products leave.
inline void tiles_measure(const NearestArgs& a, const NearestTiles& t, const TileScratch& s,
                          std::int64_t lo, std::int64_t i, std::int64_t tile, std::uint64_t bits,
                          const std::int32_t* product) {
  const std::int16_t* query = s.fine + i * 2 * kFine;
  const std::int32_t* rows = t.row + tile * kTileRows;
  std::uint64_t left = 0;
  s.effort->fine_rows += __builtin_popcountll(bits);
  for (; bits; bits &= bits - 1) {
    const int r = __builtin_ctzll(bits);
    if (tiles_finer(t, tile, r, product[r], query) < s.bound[i].least_finer) continue;
    if (rows[r] >= a.n || tiles_has(a, lo + i, rows[r])) continue;
    left |= std::uint64_t{1} << r;
    fetch(a.bank + rows[r] * a.d, a.d);
  }
  s.effort->measured_rows += __builtin_popcountll(left);
  double* worst = a.scratch + (lo + i) * a.k + a.k - 1;
  for (; left; left &= left - 1) {
    const std::int64_t row = rows[__builtin_ctzll(left)];
    const double before = *worst;
    nearest_insert(a, lo + i, sqdist(a.q + (lo + i) * a.d, a.bank + row * a.d, a.d), row);
    if (*worst < before) tiles_tighten(t, s, i, *worst);
  }
}

inline void nearest_in_tiles(const NearestArgs& a, const NearestTiles& t, std::int64_t lo,
                             std::int64_t hi, const TileScratch& s) {
  const std::int64_t count = hi - lo, strips = (count + kStrip - 1) / kStrip;
  const fundad::cpu::PictureArgs image{a.q + lo * a.d, count, a.d,     t.center,
                                       t.axes,         kAxes, t.scale, s.z};
  for (std::int64_t i = 0; i < count; i += kPictureRows)
    picture(image, i, i + kPictureRows < count ? i + kPictureRows : count, s.picture);
  for (std::int64_t i = 0; i < count; ++i) {
    const bool usable = nearest_reset(a, lo + i);
    tiles_round(t, s, i, usable);
  }
  tiles_coarse(t, s, strips * kStrip);
  std::int32_t* least = s.best + 2 * s.queries;
  for (std::int64_t i = 0; i < count; ++i) {
    if (a.index[(lo + i) * a.k] == a.n)
      tiles_seed(a, t, s, lo, i);
    else
      least[i] = kNever;  // not finite: its results stand
  }
  for (std::int64_t i = count; i < strips * kStrip; ++i) least[i] = kNever;

  for (std::int64_t tile = 0; tile < t.tiles; ++tile) {
    const std::int32_t* top = s.top + tile * s.queries;
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < strips * kStrip; i += kLanes)
      for (std::uint64_t bits = reaching(load(top + i), load(least + i)); bits; bits &= bits - 1)
        s.list[kept++] = static_cast<std::int32_t>(i + __builtin_ctzll(bits));
    s.effort->tiles += kept;
    for (int j = 0; kept > 0 && j < kQueryGroup; ++j) s.list[kept + j] = s.list[kept - 1];
    for (std::int64_t first = 0; first < kept; first += kQueryGroup) {
      const std::int16_t* query[kQueryGroup];
      std::int32_t product[kQueryGroup][kTileRows];
      for (int j = 0; j < kQueryGroup; ++j) query[j] = s.fine + s.list[first + j] * 2 * kFine;
      tiles_fine<kQueryGroup>(t, tile, query, product);
      std::uint64_t bits[kQueryGroup];
      for (int j = 0; j < kQueryGroup; ++j) {
        const Ints enough = spread(s.bound[s.list[first + j]].least_fine);
        bits[j] = 0;
        for (int g = 0; g < kTileRows / kLanes; ++g)
          bits[j] |= reaching(load(product[j] + g * kLanes), enough) << (g * kLanes);
      }
      for (int j = 0; j < kQueryGroup && first + j < kept; ++j)
        if (bits[j]) tiles_measure(a, t, s, lo, s.list[first + j], tile, bits[j], product[j]);
    }
  }
  for (std::int64_t i = lo * a.k; i < hi * a.k; ++i) a.dist2[i] = static_cast<float>(a.scratch[i]);
}

}  // namespace
