# SPDX-License-Identifier: Apache-2.0
# Sets FUNDAD_HAVE_CUDA, and then has the CUDA language enabled. AUTO builds a small program first:
# an nvcc that is there but does not work (host compiler too new, no runtime library) shall cost a
# warning and not the installation.
set(FUNDAD_HAVE_CUDA FALSE)
if(FUNDAD_CUDA STREQUAL "OFF")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)  # the last one also carries PTX for newer devices
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # the module loads where there is no driver
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)

include(CheckLanguage)
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
  enable_language(CUDA)
  unset(FUNDAD_CUDA_WORKS CACHE)  # the compiler may have changed since the last time
  try_compile(FUNDAD_CUDA_WORKS
    SOURCES ${CMAKE_CURRENT_LIST_DIR}/probe.cu
    CUDA_STANDARD 17
    OUTPUT_VARIABLE fundad_cuda_log)
  set(FUNDAD_HAVE_CUDA ${FUNDAD_CUDA_WORKS})
  set(fundad_cuda_trouble "${CMAKE_CUDA_COMPILER} cannot build a small program:\n${fundad_cuda_log}")
else()
  set(fundad_cuda_trouble "no working CUDA compiler was found")
endif()

if(NOT FUNDAD_HAVE_CUDA AND FUNDAD_CUDA STREQUAL "ON")
  message(FATAL_ERROR "fundad_fast: FUNDAD_CUDA=ON, but ${fundad_cuda_trouble}")
elseif(NOT FUNDAD_HAVE_CUDA)
  message(WARNING "fundad_fast: building without CUDA kernels: ${fundad_cuda_trouble}")
endif()
