// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>

namespace fundad::cpu {

// Orders rows so that every `leaf` consecutive ones lie close together: halves them at the median
// of the widest of the first `axes` columns of z [n,stride], again and again. Only the last leaf
// may have fewer rows.
std::vector<std::int64_t> kdtree_order(const float* z, std::int64_t n, std::int64_t stride,
                                       std::int64_t axes, std::int64_t leaf, int threads);

}  // namespace fundad::cpu
