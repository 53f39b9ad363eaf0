// Notifications from peers, until the user takes them. Bounded: the oldest are dropped, with one line in the log, when nobody does.
// Threads: any.
#pragma once

#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "base/logging.h"
#include "transfer/transfer_engine.h"

namespace moonpool::transfer {

class NotificationQueue {
 public:
  static constexpr std::size_t kMost = 65536;

  void push(Notification notification) {
    const std::scoped_lock lock(mutex_);
    if (queue_.size() == kMost) {
      if (dropped_++ == 0) log::warning("transfer engine: {} notifications wait to be taken, older ones are dropped", kMost);
      queue_.pop_front();
    }
    queue_.push_back(std::move(notification));
  }
  std::vector<Notification> take() {
    const std::scoped_lock lock(mutex_);
    dropped_ = 0;
    std::vector<Notification> all(std::make_move_iterator(queue_.begin()), std::make_move_iterator(queue_.end()));
    queue_.clear();
    return all;
  }

 private:
  std::mutex mutex_;  // guards both
  std::deque<Notification> queue_;
  std::uint64_t dropped_ = 0;  // since the last take()
};

}  // namespace moonpool::transfer
