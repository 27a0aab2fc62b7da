// SPDX-License-Identifier: Apache-2.0
// What is compiled once per instruction set, and the views that it works on.
#pragma once
#include <cstdint>

#include "fundad/distance_filter.h"
#include "fundad/isa.h"
#include "fundad/kcenter.h"
#include "fundad/nearest.h"
#include "fundad/poisson_blend.h"
#include "fundad/self_attention.h"

namespace fundad::cpu {

constexpr std::int64_t kLeafRows = 64;    // rows of a leaf of the k-centre tree
constexpr std::int64_t kPickBlock = 32;   // picks tested against a ball at a time
constexpr std::int64_t kPictureRows = 6;  // rows projected at a time
constexpr std::int64_t kTileRows = 64;    // rows of a packed tile of a bank
constexpr std::int64_t kQueryGroup = 6;   // queries multiplied with a tile at a time
constexpr std::int64_t kQueryStrip = 48;  // queries whose coarse integers are packed together

// A packed tile: d rows of kTileRows floats (a coordinate of each bank row, around the centre),
// then kTileRows half squared norms, then the largest norm, padded to a cache line.
static inline std::int64_t tile_floats(std::int64_t d) { return (d + 1) * kTileRows + 16; }

// A packed query: d floats (centre minus query), then its norm, which is NaN if it is not finite.
static inline std::int64_t query_floats(std::int64_t d) { return d + 1; }

constexpr int kFoldRows = 13;  // lines of half a kernel summed together
// Lines [first, first + rows) of half a kernel, columns counted from the middle.
struct Fold {
  const float* weight;  // of line `first`, column 0
  std::int64_t stride;  // from column to column
  std::int64_t first;
  int rows;
  std::int64_t end[kFoldRows + 1];  // so many columns have at least 1, 2, ... of these lines
};

// The kernel after a transform (hartley-inl.h) of its columns, and how the map is cut for it: into
// blocks of `rows` rows, and strips of `strip` columns.
struct FilterSpectrum {
  std::int64_t length;        // of a transform: 0 if the filter is not to be computed by them
  std::int64_t rows, strip;   // of the output
  std::int64_t known_row;     // of the transformed columns in the scratch
  std::int64_t mixed_row;     // of the filtered ones
  const float* weight;        // [length][(taps+1)/2]
  const float* turns;         // for hartley
  const std::int64_t* order;  // [length] the bits of a number the other way round
};

// The filter works on strips of columns, so narrow that the rows of sums that are not complete yet
// (24 KB) stay in the first cache. A strip has a column of sums for each of its columns.
static inline std::int64_t filter_strip(const DistanceFilterArgs& a, std::int64_t lanes) {
  const std::int64_t columns = 6144 / (a.taps * lanes);
  return columns < 1 ? 1 : columns;
}

// The height of a column of sums: an odd number, so that columns do not share lines of the cache.
static inline std::int64_t filter_height(const DistanceFilterArgs& a) {
  return (a.h + 2 * a.taps) | 1;
}

// Floats of scratch: planes before and after, and transforms, or sums and a wide plane.
static inline std::int64_t filter_floats(const DistanceFilterArgs& a, const FilterSpectrum& s,
                                         std::int64_t channels) {
  constexpr std::int64_t kMostLanes = 16;
  const std::int64_t planes = a.h * a.w * (channels + kMostLanes);
  if (s.length) return planes + s.length * (s.known_row + s.mixed_row) * kMostLanes;
  const std::int64_t sums = (6144 / a.taps + 2 * kMostLanes) * filter_height(a);
  return planes + sums + (a.h + 1) * (a.w + a.taps) * kMostLanes;
}

constexpr std::int64_t kAttentionBlock = 768;  // rows of a tile, and keys: a multiple of all panels

// A map of n rows at work.
struct AttentionMap {
  const float* query;   // [n][d]
  const float* keys;    // [panels][d][attention_panel]
  const float* values;  // [panels][n][attention_panel]
  float* out;           // [n][d] sums of values, weighted
  float* most;          // [n] the largest logit so far
  float* sums;          // [n] of weights so far
  std::int64_t n, d;
};

// Logits of the `rows` rows from `first` and the `columns` keys from `second` >= first.
struct AttentionTile {
  float* logits;  // [kAttentionBlock][kAttentionBlock]
  float* turned;  // the same with rows and columns exchanged; not used where first == second
  std::int64_t first, rows, second, columns;
};

struct Near {
  float dist2;        // from a pick to the centre of a leaf, in the short picture
  std::int32_t pick;  // its number in the order of picks
};

// The state of a greedy k-centre. Row r of leaf l is slot l * kLeafRows + r; a slot without a row
// has reach2 < 0 and limit2 < 0, and so has a picked row: it can neither win nor be lowered.
struct KCenterView {
  const float* x;
  std::int64_t d, p;
  double scale, slack;
  const float* z;           // [leaves][p+1][kLeafRows]
  const float* center;      // [leaves][p+1]
  const float* ball;        // [leaves] radius around the centre, in the short picture
  const std::int64_t* row;  // [slots]
  double* reach2;           // [slots] squared distance to the nearest pick applied so far
  float* limit2;            // [slots] a pick at least this far in the short picture changes nothing
  double* top2;             // [leaves] the largest reach2
  std::int64_t* top_slot;   // [leaves] the slot that has it; the lowest row among equals
  const float* pick_z;      // [pick blocks][p+1][kPickBlock]
  const std::int64_t* pick_row;
  const float* pick_row_z;  // [picks][p+1] the same as pick_z, pick by pick
};

// What the bounds of a query are made of; lengths in units of the picture.
struct TileQuery {
  double slack;
  double coarse_error, fine_error, finer_error;  // the rounding of the query and of the bank
  double coarse_out2, fine_out2;  // squared distance to the box and the ball that hold the bank
  double coarse_half, fine_half, finer_half;  // half the squared norms of the integers
  std::int64_t least_finer;
  std::int32_t least_fine;
};

// What a thread needs to search tiles for a block of at most `queries` queries, a multiple of
// kQueryStrip.
struct TileScratch {
  std::int64_t queries;
  double* picture;       // [kPictureRows,d]
  float* z;              // [queries,kAxes+1]
  std::int16_t* coarse;  // [queries,kCoarse]: as 16-bit numbers, or half of it as bytes
  std::int16_t* fine;    // [queries,2,kFine]: fine, then finer
  std::int32_t* top;     // [tiles,queries] the best coarse product of each tile
  std::int32_t* best;    // [3,queries] the best of those, its tile, and what a tile must reach
  std::int32_t* list;    // [queries+kQueryGroup]
  TileQuery* bound;      // [queries]
  TileEffort* effort;    // of this thread
};

constexpr std::int64_t kSinesPad = 16;    // rows of a table of sines are multiples of this
constexpr std::int64_t kSinesRows = 24;   // rows of a box multiplied at a time
constexpr std::int64_t kSinesPanel = 32;  // columns of a box multiplied at a time

static inline std::int64_t sines_row(std::int64_t n) {
  return (n + kSinesPad - 1) / kSinesPad * kSinesPad;
}

// A box of two or three axes at work; without a middle axis n[1] is 1 and sines[1] is null. Results
// of the transform stand in the order 0, 2, 4, ..., 1, 3, 5, ...
struct PoissonView {
  const float* target;
  const float* source;
  const bool* mask;
  float* out;
  std::int64_t channels, channel_cells;
  std::int64_t n[3];     // inner cells of the first, the middle and the last axis
  std::int64_t step[3];  // from a cell to the next
  const float* sines[3];
  std::int64_t row_floats;  // of a row of `work`
  std::int64_t group_rows;  // rows that poisson_begin and poisson_end take at a time
  float* work;              // [channels, n[0], n[1], row_floats]
};

struct Kernels {
  // Filters channels [channel, channel + channels) of an image.
  void (*filter_channels)(const DistanceFilterArgs&, const Fold* folds, std::int64_t fold_count,
                          const FilterSpectrum&, std::int64_t image, std::int64_t channel,
                          int channels, float* scratch);
  // Rows [lo, hi) of a short picture; scratch holds kPictureRows * d doubles. Returns the largest
  // squared norm.
  double (*picture)(const PictureArgs&, std::int64_t lo, std::int64_t hi, double* scratch);
  // Picks [from, to) that may lower a row of a leaf, unsorted; returns how many.
  std::int64_t (*kcenter_candidates)(const KCenterView&, std::int64_t leaf, std::int64_t from,
                                     std::int64_t to, Near* out);
  // Applies candidates, nearest first, to a leaf, and finds its farthest row again.
  void (*kcenter_apply)(const KCenterView&, std::int64_t leaf, const Near* sorted,
                        std::int64_t count);
  // Packs queries [lo, hi) and empties their results.
  void (*nearest_begin)(const NearestArgs&, std::int64_t lo, std::int64_t hi, float* queries);
  // Packs bank rows [first, first + kTileRows).
  void (*nearest_pack)(const NearestArgs&, std::int64_t first, float* tile);
  // Searches packed tiles, the first of which starts at bank row `first`, for queries [lo, hi).
  void (*nearest_search)(const NearestArgs&, const float* queries, std::int64_t lo, std::int64_t hi,
                         const float* tiles, std::int64_t first, std::int64_t tile_count);
  // Searches a bank of integers for queries [lo, hi), from empty results to full ones.
  void (*nearest_in_tiles)(const NearestArgs&, const NearestTiles&, std::int64_t lo,
                           std::int64_t hi, const TileScratch&);
  // The right-hand side of a group of rows, transformed along the last and the middle axis.
  void (*poisson_begin)(const PoissonView&, std::int64_t channel, std::int64_t group,
                        float* scratch);
  // Along the first axis there and back, with the division by the eigenvalues in between, for the
  // `panel`-th columns of middle cell `middle`.
  void (*poisson_across)(const PoissonView&, std::int64_t channel, std::int64_t middle,
                         std::int64_t panel, float* scratch);
  // Back along the middle and the last axis, and the sum with the target; faces are copied.
  void (*poisson_end)(const PoissonView&, std::int64_t channel, std::int64_t group, float* scratch);
  std::int64_t attention_panel;  // columns of a packed panel
  // Packs panel p of the keys [n,d] or values [n,d] of one map.
  void (*attention_pack_keys)(const float* key, std::int64_t n, std::int64_t d, std::int64_t p,
                              float* packed);
  void (*attention_pack_values)(const float* value, std::int64_t n, std::int64_t d, std::int64_t p,
                                float* packed);
  void (*attention_logits)(const AttentionMap&, const AttentionTile&, std::int64_t lo,
                           std::int64_t hi, std::int64_t from, std::int64_t to);
  void (*attention_weigh)(const AttentionMap&, const AttentionTile&, bool turned, std::int64_t lo,
                          std::int64_t hi);
  void (*attention_mix)(const AttentionMap&, const AttentionTile&, bool turned, std::int64_t lo,
                        std::int64_t hi, std::int64_t from, std::int64_t to);
  void (*attention_end)(const AttentionMap&, std::int64_t lo, std::int64_t hi);
};

const Kernels& kernels(Isa isa);

}  // namespace fundad::cpu
