// SPDX-License-Identifier: Apache-2.0
// Stands in for the CUDA kernels in a build without them: the module has the same functions either
// way, and the Python side asks cuda_architectures() before it calls one.
#include <stdexcept>

#include "fundad/kcenter_cuda.h"
#include "fundad/nearest_cuda.h"
#include "fundad/poisson_blend_cuda.h"

namespace fundad::cuda {
namespace {

[[noreturn]] void absent() { throw std::runtime_error("built without CUDA"); }

}  // namespace

void kcenter(const KCenterArgs&, std::int64_t, std::int64_t, bool, void*) { absent(); }
void nearest(const NearestSearch&, void*) { absent(); }
void poisson_blend(const PoissonArgs&, bool, void*) { absent(); }

}  // namespace fundad::cuda
