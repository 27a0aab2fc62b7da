// SPDX-License-Identifier: Apache-2.0
#include <stdexcept>

#include "kernels.h"

namespace fundad::cpu {

namespace base {
extern const Kernels table;
}
#ifdef FUNDAD_X86
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
namespace avx512vnni {
extern const Kernels table;
}
#endif

Isa best_isa() {
#ifdef FUNDAD_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512 && __builtin_cpu_supports("avx512vnni")) return Isa::avx512vnni;
  if (avx2 && avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::base;
}

const Kernels& kernels(Isa isa) {
  if (isa > best_isa()) throw std::invalid_argument("this CPU has no such instructions");
#ifdef FUNDAD_X86
  if (isa == Isa::avx512vnni) return avx512vnni::table;
  if (isa == Isa::avx512) return avx512::table;
  if (isa == Isa::avx2) return avx2::table;
#endif
  return base::table;
}

}  // namespace fundad::cpu
