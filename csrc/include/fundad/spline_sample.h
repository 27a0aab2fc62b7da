// SPDX-License-Identifier: Apache-2.0
// Values of cubic splines between the cells of images.
#pragma once
#include <cstdint>

namespace fundad {

// Coefficients are kept for so many cells beyond an image, on each side.
constexpr std::int64_t kSplineMargin = 3;

// One image [channels, *size] of one to three axes, none of them empty, and points [axes, n], in
// cells -> out [channels, n]. `table` [channels, *(size + 2 kSplineMargin)] is filled with the
// coefficients of the spline.
//
// Plain integers and addresses, 10 x 8 bytes, so that a list of images is one array.
struct SplineImage {
  const float* image;
  float* table;
  const float* points;
  float* out;
  std::int64_t axes, channels, n;
  std::int64_t size[3];
};

namespace cpu {

// Points farther out than two cells are moved there; with `zero`, what is outside the outermost
// cells has the value 0. A point that is not a number has none.
void spline_sample(const SplineImage* images, std::int64_t count, bool zero, int threads);

}  // namespace cpu

}  // namespace fundad
