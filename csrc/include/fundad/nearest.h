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

namespace cpu {
void nearest(const NearestArgs& args, Isa isa, int threads);
}  // namespace cpu

namespace cuda {  // asynchronous on `stream`; the caller has made the device current
void nearest(const NearestArgs& args, void* stream);
}  // namespace cuda

}  // namespace fundad
