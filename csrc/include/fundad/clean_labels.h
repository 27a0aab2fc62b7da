// SPDX-License-Identifier: Apache-2.0
// Labels of synthetic anomalies without gaps and holes.
#pragma once
#include <cstdint>

namespace fundad {

// Labels of one to three axes, values and mask [*size] -> out [*size]; none of the axes is empty.
//
// Plain integers and addresses, 7 x 8 bytes, so that a list of them is one array.
struct LabelBox {
  const float* values;
  const bool* mask;
  float* out;
  std::int64_t axes;
  std::int64_t size[3];
};

namespace cpu {

// In the bounding box of each face-connected part of the mask, one after the other in the order of
// their first cells: a grey closing, then every cell is raised to the lowest level from which the
// box's border can be reached. Neighbours differ in one or two axes. No value is not a number.
void clean_labels(const LabelBox* boxes, std::int64_t count, int threads);

}  // namespace cpu

}  // namespace fundad
