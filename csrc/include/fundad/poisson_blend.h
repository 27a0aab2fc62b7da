// SPDX-License-Identifier: Apache-2.0
// Poisson editing of boxes of any shapes: mixed gradients, and the target's values on the faces.
#pragma once
#include <cstdint>

#include "fundad/isa.h"

namespace fundad {

// One box of one to three axes, every axis with three cells or more: target and source
// [channels, *size], mask [*size], row-major -> out [channels, *size].
//
// For each axis but of a box of one axis, `sines` is a table of size - 2 cells, see fill_sines.
// Plain integers and addresses, 12 x 8 bytes, so that a list of boxes is one array.
struct PoissonBox {
  const float* target;
  const float* source;
  const bool* mask;
  float* out;
  std::int64_t axes, channels;
  std::int64_t size[3];
  const float* sines[3];
};

namespace cpu {

// The sine transform (DST-I, orthonormal) of n cells as two products of half the size, for the sum
// and for the difference of cells that mirror each other, and the eigenvalues of the second
// difference: a table for poisson_blend, which depends on n alone.
std::int64_t sines_floats(std::int64_t n);
void fill_sines(std::int64_t n, float* table);

// How many floats of scratch, on a cache line, poisson_blend wants.
std::int64_t poisson_scratch(const PoissonBox* boxes, std::int64_t count, int threads);

// Which of two differences is larger is decided in float64, and so is their difference; it is
// rounded to float32 once. The results do not depend on the number of threads or on which boxes are
// blended together.
void poisson_blend(const PoissonBox* boxes, std::int64_t count, float* scratch, Isa isa,
                   int threads);

}  // namespace cpu

}  // namespace fundad
