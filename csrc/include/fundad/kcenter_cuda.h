// SPDX-License-Identifier: Apache-2.0
// Greedy k-centre on a CUDA device; see fundad/kcenter.h for what is computed.
#pragma once
#include <cstdint>

namespace fundad::cuda {

constexpr std::int64_t kCenterLeafRows = 64;
constexpr std::int64_t kCenterLeavesPerBlock = 128;  // one thread tests one leaf

// What one block of a step leaves for the next step: its farthest row.
struct KCenterTop {
  double reach2;
  std::int64_t row, slot;
};

// Rows are sorted into leaves of 64 that lie close together; row r of leaf l is slot 64 l + r. A
// slot without a row has row = n, z far away, and reach2 and limit2 below zero.
//
// z is a short picture of x (see fundad/kcenter.h), p % 8 == 0. It decides only what is skipped.
struct KCenterArgs {
  const float* x;           // [n,d]
  const float* z;           // [leaves][p+1][64]
  const float* center;      // [p+1][leaves], of each leaf in the short picture
  const float* ball;        // [leaves], radius around it
  const std::int64_t* row;  // [slots]
  double* reach2;           // [slots], squared distance to the nearest pick; -1 once picked
  float* limit2;           // [slots], a pick at least this far in the short picture changes nothing
  double* top2;            // [leaves], the largest reach2
  std::int64_t* top_slot;  // [leaves], the slot that has it; the lowest row among equals
  KCenterTop* tops;        // [2][blocks], blocks = ceil(leaves / kCenterLeavesPerBlock)
  std::int64_t* picks;     // slots, in the order in which they were picked
  std::int64_t d, p, leaves;
  double unit, slack;  // 1 / scale, a power of two
};

// Applies picks `first` to `last` - 1, one launch each, and never waits for the device. They are
// read from `picks` if they are given, and decided and written there if not; before the first
// decision there must be at least one that was given.
void kcenter(const KCenterArgs& args, std::int64_t first, std::int64_t last, bool given,
             void* stream);

}  // namespace fundad::cuda
