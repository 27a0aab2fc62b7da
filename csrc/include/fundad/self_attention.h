// SPDX-License-Identifier: Apache-2.0
// Attention of every row of a map to all others.
#pragma once
#include <cstdint>

#include "fundad/isa.h"

namespace fundad {

// query, key, value, out [b,n,d], row-major: out = softmax(query key^T) value, for each of b maps.
// The largest logit of a row is subtracted before the exponential. A row with a logit that is not
// a number becomes NaN. A row's bits do not depend on the rows that are computed with it.
struct SelfAttentionArgs {
  const float* query;
  const float* key;
  const float* value;
  float* out;
  std::int64_t b, n, d;
};

namespace cpu {
// Memory: one copy of the keys and one of the values of a map, and up to 192 rows of weights for
// each thread.
void self_attention(const SelfAttentionArgs& args, Isa isa, int threads);
}  // namespace cpu

}  // namespace fundad
