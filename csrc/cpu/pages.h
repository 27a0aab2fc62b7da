// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fundad::cpu {

// The pages of 2 MB that lie inside of memory that nobody has written to yet. A result of 59 MB has
// 14,000 pages of 4 KB, and to be given them one by one takes as long as the work itself. What is
// asked for here are wishes only.
class LargePages {
 public:
  LargePages(void* memory, std::size_t bytes) {
    const auto begin = reinterpret_cast<std::uintptr_t>(memory);
    first_ = (begin + kPage - 1) / kPage * kPage;
    const std::uintptr_t last = (begin + bytes) / kPage * kPage;
    count_ = first_ < last ? static_cast<std::int64_t>((last - first_) / kPage) : 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (count_) madvise(reinterpret_cast<void*>(first_), count_ * kPage, MADV_HUGEPAGE);
#endif
  }

  std::int64_t count() const { return count_; }

  // Has one of them cleared now. Threads that reach a new page at the same time all clear it, and
  // one of them wins: they had better share the pages before.
  void clear([[maybe_unused]] std::int64_t page) const {
#if defined(__linux__) && defined(MADV_POPULATE_WRITE)
    madvise(reinterpret_cast<void*>(first_ + page * kPage), kPage, MADV_POPULATE_WRITE);
#endif
  }

 private:
  static constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
  std::uintptr_t first_;
  std::int64_t count_;
};

inline void large_pages(void* memory, std::size_t bytes) { const LargePages asked(memory, bytes); }

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
