// The incarnations that some master has declared fenced, remembered by every node so that the next master hears of them.
//
// Bounded: the oldest are forgotten first (they matter only while an owner with that incarnation may still come back, which is minutes).
// Threads: any.
#pragma once

#include <cstddef>
#include <deque>
#include <mutex>
#include <string>
#include <unordered_set>

namespace moonpool::store {

class FencedMemory {
 public:
  explicit FencedMemory(std::size_t limit = 4096) : limit_(limit) {}

  // Any container of 16-byte incarnations, as a reply carries them; others are ignored.
  template <typename Incarnations>
  void remember(const Incarnations& incarnations) {
    const std::scoped_lock lock(mutex_);
    for (const std::string& one : incarnations) {
      if (one.size() != 16 || !known_.insert(one).second) continue;
      order_.push_back(one);
      if (order_.size() > limit_) {
        known_.erase(order_.front());
        order_.pop_front();
      }
    }
  }
  // Oldest first.
  [[nodiscard]] std::deque<std::string> all() const {
    const std::scoped_lock lock(mutex_);
    return order_;
  }

 private:
  const std::size_t limit_;
  mutable std::mutex mutex_;  // guards what follows
  std::deque<std::string> order_;
  std::unordered_set<std::string> known_;
};

}  // namespace moonpool::store
