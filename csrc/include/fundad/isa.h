// SPDX-License-Identifier: Apache-2.0
// The instruction sets that the inner loops are compiled for.
#pragma once

namespace fundad::cpu {

enum class Isa : int {
  base,
  avx2,
  avx512,
  avx512vnni
};  // in order: each needs what those before it need

Isa best_isa();  // of this CPU and this build

}  // namespace fundad::cpu
