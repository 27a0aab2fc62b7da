// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fundad::cpu {

// Asks for pages of 2 MB under memory that nobody has written to yet: a result of 59 MB has 14,000
// pages of 4 KB, and to be given them one by one takes as long as the work itself. A wish only.
inline void large_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const std::uintptr_t last = (begin + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Memory that is not cleared, for a while, on large pages if the system has some to give.
class LargeScratch {
 public:
  explicit LargeScratch(std::size_t floats)
      : data_(static_cast<float*>(::operator new(floats * sizeof(float), kAlign))) {
    large_pages(data_, floats * sizeof(float));
  }
  ~LargeScratch() { ::operator delete(data_, kAlign); }
  LargeScratch(const LargeScratch&) = delete;
  LargeScratch& operator=(const LargeScratch&) = delete;
  float* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlign{std::size_t{2} << 20};
  float* data_;
};

}  // namespace fundad::cpu
