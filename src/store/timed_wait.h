// condition_variable::wait_until with a Deadline and a condition.
//
// g++ 12's TSan does not know pthread_cond_clockwait, which the monotonic clock needs, and reports locks that are not there; in its builds
// the wait is done in short steps on the system clock.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "base/deadline.h"

namespace moonpool::store {

// The condition's value at the end.
template <typename Condition>
bool wait_until(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, Deadline deadline, Condition condition) {
#ifdef __SANITIZE_THREAD__
  while (!condition()) {
    if (deadline.expired()) return false;
    changed.wait_until(lock,
                       std::chrono::system_clock::now() + std::min<std::chrono::nanoseconds>(deadline.left(), std::chrono::seconds(1)));
  }
  return true;
#else
  return changed.wait_until(lock, deadline.time(), condition);
#endif
}

}  // namespace moonpool::store
