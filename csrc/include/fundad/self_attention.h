// SPDX-License-Identifier: Apache-2.0
// Attention of every row of a map to all others.
#pragma once
#include <cstdint>

#include "fundad/isa.h"

namespace fundad {

// query, key, value, out [b,n,d], row-major: out = softmax(query key^T) value, for each of b maps.
// The logits must be symmetric: query is key times a number. A logit of a row that is at least as
// large as those met so far is subtracted before the exponential. A row with a logit that is not a
// number becomes NaN. The bits do not depend on the number of threads.
struct SelfAttentionArgs {
  const float* query;
  const float* key;
  const float* value;
  float* out;
  std::int64_t b, n, d;
};

namespace cpu {
// Memory: one copy of the keys and one of the values of a map, and two tiles of 768 by 768 weights.
void self_attention(const SelfAttentionArgs& args, Isa isa, int threads);
}  // namespace cpu

}  // namespace fundad
