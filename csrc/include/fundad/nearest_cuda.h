// SPDX-License-Identifier: Apache-2.0
// The nearest rows of a bank on a CUDA device; see fundad/nearest.h for what is computed.
#pragma once
#include <cstdint>

namespace fundad::cuda {

constexpr std::int64_t kNearestQueries = 128;  // of a block
constexpr std::int64_t kNearestRows = 128;     // of a tile
constexpr std::int64_t kNearestGroups = 8;     // seeds of a query and a share of the tiles

// Queries and rows have short pictures in float16 (see fundad/kcenter.h), p values each: 32, 64 or
// 128. For all queries i and rows j
//
//   |q_z[i] - bank_z[j]| <= |q[i] - bank[j]| * unit + reach[i]
//   loss[i] >= what float32 sums may lose of half2[j] - <q_z[i], bank_z[j]>
//
// A query whose reach is NaN is not finite: it gets NaN and rows 0..k-1.
struct NearestSearch {
  const float *q, *bank;                 // [m,d], [n,d]
  const std::uint16_t *q_z, *bank_z;     // [m,p], [n,p]; 16-byte aligned
  const float* half2;                    // [n], |bank_z|^2 / 2
  const double *q_norm2, *reach, *loss;  // [m]; |q_z|^2
  double unit;
  std::int64_t m, n, d, k, p;
  std::int64_t splits;  // shares of the bank's tiles, each searched by blocks of its own; 1..65535
  float* seed_value;    // [m, splits * kNearestGroups]
  std::int64_t* seed_row;
  double* worst;        // [m], an upper bound of the k-th smallest distance
  double* found_dist2;  // [splits,m,k]
  std::int64_t* found_row;
  std::int32_t* head;  // [splits,m]
  float* dist2;        // [m,k]
  std::int64_t* index;
};

void nearest(const NearestSearch& search, void* stream);

}  // namespace fundad::cuda
