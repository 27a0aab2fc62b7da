// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace fundad::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Launches on a stream of the current device, and says so if that fails. A function, and not
// <<< >>>, so that the tests can compile the kernels for the CPU.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, void* stream,
            Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error =
      cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

// The sum over a warp, with the same bits in every lane: at each step both partners add the same
// two numbers.
__device__ inline double warp_sum(double value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// The squared distance of two rows, by a whole warp. It decides picks and neighbours, so every
// kernel takes it in this one order of summation.
__device__ inline double warp_sqdist(const float* a, const float* b, std::int64_t d) {
  double sum = 0;
#pragma unroll 4
  for (std::int64_t i = threadIdx.x % kWarp; i < d; i += kWarp) {
    const double t = static_cast<double>(a[i]) - b[i];
    sum += t * t;
  }
  return warp_sum(sum);
}

}  // namespace fundad::cuda
