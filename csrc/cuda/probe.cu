// SPDX-License-Identifier: Apache-2.0
// Built by probe.cmake to see whether the CUDA compiler works; no part of the module.
#include <cuda_runtime.h>

__global__ void fill(int* x) { *x = 1; }

int main() {
  fill<<<1, 1>>>(nullptr);
  return cudaGetLastError() != cudaSuccess;
}
