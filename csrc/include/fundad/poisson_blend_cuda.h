// SPDX-License-Identifier: Apache-2.0
// Poisson editing of many boxes of different shapes at a time, on a CUDA device.
#pragma once
#include <cstdint>

namespace fundad::cuda {

constexpr std::int64_t kPoissonThreads = 128;  // of a block
constexpr std::int64_t kPoissonRows = 32;      // of a tile of a product, along the axis
constexpr std::int64_t kPoissonColumns = 64;   // of a tile of a product, across it

// A box [c, *size], contiguous, with an inside along each axis it has. A box with fewer than three
// axes has the last ones; `first` is the first it has, and those before it have size 1.
struct PoissonBox {
  const void *target, *source;  // of the call's type
  const bool* mask;             // [*size]
  void* out;                    // as target
  std::int64_t c;
  std::int64_t size[3];
  std::int64_t first;
  std::int64_t work;      // where its c * (cells inside) values begin in each work area
  std::int64_t table[3];  // where the table of each of its axes begins
  std::int64_t spare[3];  // 128 bytes
};

// Blocks starts[i] to starts[i + 1] - 1 of a launch are box i's: [boxes + 1].
struct PoissonStarts {
  const std::int64_t* cells_inside;  // kPoissonThreads of c * (cells inside) per block
  const std::int64_t* cells;         // kPoissonThreads of c * cells
  const std::int64_t* tiles[3];      // of the products along each axis; none if a box lacks it
  std::int64_t blocks[5];            // in all, in the same order
};

// The table of n cells is sin(pi s / (n + 1)) * sqrt(2 / (n + 1)) for s = 0 .. 2n + 1 and then the
// n eigenvalues of the second difference.
struct PoissonArgs {
  const PoissonBox* boxes;
  std::int64_t count;  // of boxes, 1 or more
  PoissonStarts starts;
  const std::int64_t* lengths;  // [tables], n
  const std::int64_t* offsets;  // [tables], where they begin
  std::int64_t tables;
  void* table;    // of the call's type
  void* work[2];  // areas, likewise
};

// float64 if `wide`, else float32.
void poisson_blend(const PoissonArgs& args, bool wide, void* stream);

}  // namespace fundad::cuda
