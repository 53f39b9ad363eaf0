// The node's standing with the master, as its membership thread knows it, and the one thing that calls wait on.
//
// The membership thread writes it; calls read the term and wait for a change (registered again, closing) instead of sleeping blindly.
// Threads: all methods from any. Ownership: by the client; outlives the membership thread and every call.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>

#include "base/deadline.h"
#include "base/ids.h"
#include "base/result.h"

namespace moonpool::store {

class Standing {
 public:
  void set_registered(Term term);
  // Why the node is not registered (any more). Shown when a wait gives up. `final_error`: trying again cannot help (a wrong token).
  void set_unregistered(Status reason, bool final_error = false);
  // Ends all waits, now and later.
  void stop();

  [[nodiscard]] bool registered() const;
  [[nodiscard]] bool stopped() const;
  // Of the last registration; stays readable while the node is not registered.
  [[nodiscard]] Term term() const;
  // Ok once registered; the last reason at the deadline or when it is final; kCancelled once stopped.
  [[nodiscard]] Status wait_registered(Deadline deadline) const;
  // Waits for the node to become registered (again) or for `pause` to pass. False once stopped.
  bool pause(std::chrono::nanoseconds pause) const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool registered_ = false;
  bool stopped_ = false;
  bool final_ = false;
  std::uint64_t registrations_ = 0;  // counts set_registered(), so that pause() sees one that came and went
  Term term_;
  Status reason_{ErrorCode::kNotRegistered, "has not been tried yet"};
};

// `base` plus up to as much again, so that many clients do not come back in step.
[[nodiscard]] std::chrono::nanoseconds jittered(std::chrono::nanoseconds base);

}  // namespace moonpool::store
