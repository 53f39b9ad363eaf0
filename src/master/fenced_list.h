// Incarnations that must never be believed again: their owner was silent for too long, or gave them up.
//
// What was removed while such an owner could not be reached is still in its memory. The nodes remember this list and tell it to the next
// master, which is how a removed object stays removed when the owner comes back after both. Bounded: the newest kLimit.
// Threads: any.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/ids.h"

namespace moonpool::master {

class FencedList {
 public:
  static constexpr std::size_t kLimit = 4096;

  // False if it was there already.
  bool add(Incarnation incarnation) {
    const std::scoped_lock lock(mutex_);
    if (!known_.insert(incarnation).second) return false;
    order_.push_back(incarnation);
    ++changes_;
    if (order_.size() > kLimit) {
      known_.erase(order_.front());
      order_.pop_front();
    }
    return true;
  }
  [[nodiscard]] bool contains(Incarnation incarnation) const {
    const std::scoped_lock lock(mutex_);
    return known_.contains(incarnation);
  }
  // As on the wire, oldest first.
  [[nodiscard]] std::vector<std::string> all() const {
    const std::scoped_lock lock(mutex_);
    std::vector<std::string> bytes;
    bytes.reserve(order_.size());
    for (const auto& incarnation : order_) bytes.push_back(incarnation.to_bytes());
    return bytes;
  }
  // Grows with every addition: tells who has heard of the newest.
  [[nodiscard]] std::uint64_t changes() const {
    const std::scoped_lock lock(mutex_);
    return changes_;
  }

 private:
  mutable std::mutex mutex_;  // guards what follows
  std::unordered_set<Incarnation> known_;
  std::deque<Incarnation> order_;
  std::uint64_t changes_ = 0;
};

}  // namespace moonpool::master
