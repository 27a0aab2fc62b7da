// SPDX-License-Identifier: Apache-2.0
// The nearest rows of a bank, for every query row.
#pragma once
#include <cstdint>

#include "fundad/isa.h"

namespace fundad {

// q [m,d], bank [n,d], row-major, 1 <= k <= n -> dist2 [m,k] squared L2, index [m,k], each row in
// ascending order; the lowest index wins ties. A query that is not finite gets NaN and 0..k-1.
//
// Distances that decide the order are taken between the given rows, in float64 and in one order of
// summation; rounding to float32 comes last. So the results do not depend on the instruction set,
// the number of threads, or which queries are asked together.
//
// center [d] is any finite point near the bank; products are taken around it to lose fewer digits.
struct NearestArgs {
  const float* q;
  const float* bank;
  const float* center;
  std::int64_t m, n, d, k;
  double* scratch;  // [m,k]
  float* dist2;
  std::int64_t* index;
};

// A bank as integers, for a search that measures few rows. It decides only what is passed over.
//
// The picture of a row x: its first kTileAxes coordinates (x - center) axes, in units of `scale`,
// and the norm of what is left. Whatever coordinates come first, the norm of the others stands in
// for them, and distances between such vectors are never larger than those between the rows, but
// for `slack`. Three such vectors are rounded to integers:
//   coarse: 15 coordinates and the norm of the rest, minus `middle`, in steps of coarse_step, as
//     bytes from 1 to 255; 128 is the middle
//   fine: 63 coordinates and the norm of the rest, in steps of fine_step
//   finer: the next 63 coordinates and the norm of the rest; with the 63 of `fine` they are one
//     vector. No vector of fine steps is longer than 32,704, so that its products fit 32 bits.
// The errors are the largest distances between a row's vector and its integers.
//
// Rows stand in tiles of 64 that lie close together; a slot without a row has the number n.
struct NearestTiles {
  static constexpr std::int64_t kAxes = 128, kCoarse = 16, kFine = 64, kRows = 64;
  std::int64_t tiles;
  const double* center;        // [d]
  const double* axes;          // [d,kAxes], as for PictureArgs
  const double* middle;        // [kCoarse]
  const std::int32_t* row;     // [tiles,kRows]
  const std::uint8_t* coarse;  // [tiles,kRows,kCoarse]
  const std::int16_t* fine;    // [tiles,kFine/2,kRows,2]
  const std::int16_t* finer;   // [tiles,kRows,kFine]
  // Minus half of the squared norms, rounded up: of coarse - 128, of fine, and of finer without
  // the last number of fine. Far below all others for a slot without a row.
  const std::int32_t* minus_half;  // [3,tiles,kRows]
  double scale, slack;
  double coarse_step, coarse_error;
  double fine_step, fine_error, finer_error;
  double radius;  // of a ball around the center that holds the bank
};

// How much a search had to do: pairs of a query and a tile that were left by coarse integers, rows
// that were left by fine ones, and rows that were measured.
struct TileEffort {
  std::int64_t tiles = 0, fine_rows = 0, measured_rows = 0;
};

namespace cpu {
void nearest(const NearestArgs& args, Isa isa, int threads);

// The same results from fewer distances; `center` of the arguments is not used.
TileEffort nearest_tiles(const NearestArgs& args, const NearestTiles& tiles, Isa isa, int threads);

// Orders rows so that every NearestTiles::kRows consecutive ones lie close together in the first
// `axes` columns of z [n,stride].
void tile_order(const float* z, std::int64_t n, std::int64_t stride, std::int64_t axes,
                std::int64_t* order, int threads);
}  // namespace cpu

}  // namespace fundad
