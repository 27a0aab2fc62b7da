// SPDX-License-Identifier: Apache-2.0
// How deep the cells of shapes lie.
#pragma once
#include <cstdint>

namespace fundad {

// A mask [*size] of one to three axes, none of them empty -> out [*size].
//
// Plain integers and addresses, 6 x 8 bytes, so that a list of them is one array.
struct DepthBox {
  const bool* mask;
  float* out;
  std::int64_t axes;
  std::int64_t size[3];
};

namespace cpu {

// Euclidean distance, in cells, of each cell of a mask to the nearest one that is not in it; cells
// beyond the box are not. 0 outside the mask.
void distance_transform(const DepthBox* boxes, std::int64_t count, int threads);

}  // namespace cpu

}  // namespace fundad
