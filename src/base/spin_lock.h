// A lock for sections of a few microseconds that call something with locks of its own, where sleepers would take longer to wake than the
// section does (a GPU's driver). Whoever waits looks again and again, and gives its CPU away once it has for some time.
//
// Threads: any. Not for sections that can take long.
#pragma once

#include <atomic>
#include <thread>

namespace moonpool {

class SpinLock {
 public:
  void lock() {
    for (int looks = 0; !try_lock(); ++looks) {
      if (looks >= kLooks) std::this_thread::yield();
    }
  }
  [[nodiscard]] bool try_lock() { return !taken_.load(std::memory_order_relaxed) && !taken_.exchange(true, std::memory_order_acquire); }
  void unlock() { taken_.store(false, std::memory_order_release); }

 private:
  static constexpr int kLooks = 1000;
  std::atomic<bool> taken_{false};
};

}  // namespace moonpool
