// Counts the calls inside a client, so that close() can refuse new ones and wait for the others.
//
// Threads: any. Cost: one uncontended mutex per call.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <mutex>

#include "base/deadline.h"
#include "store/timed_wait.h"

namespace moonpool::store {

class CallGate {
 public:
  // A call's presence; leaves on destruction.
  class Pass {
   public:
    explicit Pass(CallGate* gate) : gate_(gate) {}
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;
    ~Pass() {
      if (gate_ != nullptr) gate_->leave();
    }
    // False once the gate is closed: the call must not touch the client.
    explicit operator bool() const { return gate_ != nullptr; }

   private:
    CallGate* gate_;
  };

  [[nodiscard]] Pass enter() {
    const std::scoped_lock lock(mutex_);
    if (closed_) return Pass(nullptr);
    ++inside_;
    return Pass(this);
  }
  // Refuses new calls from now on.
  void close() {
    const std::scoped_lock lock(mutex_);
    closed_ = true;
  }
  // True when no call is inside (any more) by the deadline.
  [[nodiscard]] bool wait_empty(Deadline deadline) {
    std::unique_lock lock(mutex_);
    return wait_until(empty_, lock, deadline, [this] { return inside_ == 0; });
  }

 private:
  void leave() {
    const std::scoped_lock lock(mutex_);
    if (--inside_ == 0) empty_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable empty_;
  std::size_t inside_ = 0;
  bool closed_ = false;
};

}  // namespace moonpool::store
