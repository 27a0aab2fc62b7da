// SPDX-License-Identifier: Apache-2.0
// A crew that shares many small batches of work, one after the other.
//
// The caller works through each batch itself, and helpers take what they get to. Nobody waits for a
// helper that has not begun, which an OpenMP barrier does: with batches of 0.1 ms, and another
// program on the machine that puts a helper to sleep, barriers cost ten times the work.
#pragma once
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace fundad::cpu {

class Crew {
 public:
  // Runs job(crew) with `threads` threads at hand; work(item, worker) does one item of a batch.
  template <class Work, class Job>
  static void run([[maybe_unused]] int threads, const Work& work, const Job& job) {
    Crew crew;
    std::exception_ptr error;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const int worker = crew.arrived_.fetch_add(1);
#pragma omp master
      {
        try {
          job([&](const std::vector<std::int64_t>& items) { crew.share(items, worker, work); });
        } catch (...) {
          error = std::current_exception();
        }
        crew.finished_.store(true, std::memory_order_release);
      }
      crew.help(worker, work);
    }
    if (error) std::rethrow_exception(error);
  }

 private:
  // The number of the batch in the upper half and its items left in the lower. A worker that takes
  // an item lowers it, which fails if the batch has changed meanwhile.
  std::atomic<std::uint64_t> left_{0};
  std::atomic<std::int64_t> done_{0};
  std::atomic<int> arrived_{0};
  std::atomic<bool> finished_{false};
  const std::int64_t* items_ = nullptr;

  template <class Work>
  bool take(int worker, const Work& work) {
    std::uint64_t left = left_.load(std::memory_order_acquire);
    while (left & 0xffffffffu) {
      if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
      work(items_[(left & 0xffffffffu) - 1], worker);
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
    return false;
  }

  template <class Work>
  void share(const std::vector<std::int64_t>& items, int worker, const Work& work) {
    const auto count = static_cast<std::int64_t>(items.size());
    items_ = items.data();
    done_.store(0, std::memory_order_relaxed);
    const std::uint64_t number = (left_.load(std::memory_order_relaxed) >> 32) + 1;
    left_.store(number << 32 | static_cast<std::uint64_t>(count), std::memory_order_release);
    while (take(worker, work)) {
    }
    for (int idle = 0; done_.load(std::memory_order_acquire) < count; ++idle) rest(idle);
  }

  template <class Work>
  void help(int worker, const Work& work) {
    for (int idle = 0; !finished_.load(std::memory_order_acquire); ++idle) {
      if (take(worker, work)) idle = 0;
      rest(idle);
    }
  }

  static void rest(int idle) {
    constexpr int kPatience = 2000;  // looks: longer than most gaps between batches
    if (idle > kPatience) {
      std::this_thread::yield();
    } else {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
  }
};

}  // namespace fundad::cpu
