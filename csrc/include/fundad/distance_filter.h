// SPDX-License-Identifier: Apache-2.0
// One symmetric kernel for every channel of a map.
#pragma once
#include <cstdint>

#include "fundad/isa.h"

namespace fundad {

// x, out [b,c,h,w]: all dense, either channels last ([b,h,w,c] in memory) or not.
//
//   out[y,x] = after[y,x] * sum_ij kernel[i,j] wide[y+i,x+j],   0 <= i, j < taps
//
// wide is the map with `taps - 1` more rows and columns: its row y is row[y] of the map, or zero
// where that is negative, and so are its columns; each cell is multiplied with before[y,x] first.
//
// The kernel is its own mirror image in both axes, and is given by a quarter: half[i][j], i, j <
// (taps + 1) / 2, counted from the middle outwards, is the weight of four taps. An odd number of
// taps has a middle one that is its own mirror image: its weight is to be halved, in either axis.
// The first reach[i] weights of half[i] are used, reach[0] >= reach[1] >= ...
struct DistanceFilterArgs {
  const float* x;
  float* out;
  std::int64_t b, c, h, w;
  bool channels_last;
  std::int64_t taps;
  const float* half;           // [(taps+1)/2][(taps+1)/2]
  const std::int64_t* reach;   // [(taps+1)/2]
  const std::int64_t* row;     // [h+taps-1]
  const std::int64_t* column;  // [w+taps-1]
  const float* before;         // [h,w], or null: one everywhere
  const float* after;          // [h,w], or null: one everywhere
};

namespace cpu {
void distance_filter(const DistanceFilterArgs& args, Isa isa, int threads);
}  // namespace cpu

}  // namespace fundad
