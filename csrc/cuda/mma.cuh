// SPDX-License-Identifier: Apache-2.0
// A product of float16 fragments on tensor cores, of compute capability 8.0 and above.
#pragma once
#include <cstdint>
#include <cstring>

#include "common.cuh"

namespace fundad::cuda {

// sum [16,8] += a [16,16] b [16,8], by a whole warp. Of lane l, with g = l / 4 and c = 2 (l % 4):
//   a     rows g, g + 8, g, g + 8, columns c, c, c + 8, c + 8, and each the column after it
//   b     rows c and c + 8, each with the row after it, column g
//   sum   row g, columns c and c + 1; then row g + 8
// Products are exact, and PTX promises sums of at least single precision in any order.
__device__ inline void mma_16x8x16(float (&sum)[4], const unsigned (&a)[4], unsigned b0,
                                   unsigned b1) {
#ifdef FUNDAD_CUDA_ON_CPU
  fibres::mma_16x8x16(sum, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Two neighbouring float16 values, the first of them at an even place.
__device__ inline unsigned pair_at(const std::uint16_t* at) {
  return *reinterpret_cast<const unsigned*>(at);
}

}  // namespace fundad::cuda
