// A point in time by which a wait has to end. Every blocking call of Moonpool takes one; there is no infinite wait.
//
// Passed by value down the call chain, so that one budget covers all the steps of an operation. Monotonic clock.
#pragma once

#include <algorithm>
#include <chrono>

namespace moonpool {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  static Deadline after(std::chrono::nanoseconds budget) { return Deadline(Clock::now() + budget); }
  static Deadline at(Clock::time_point time) { return Deadline(time); }

  [[nodiscard]] Clock::time_point time() const { return time_; }
  [[nodiscard]] bool expired() const { return Clock::now() >= time_; }
  // What is left, never negative.
  [[nodiscard]] std::chrono::nanoseconds left() const {
    return std::max(std::chrono::nanoseconds::zero(), std::chrono::nanoseconds(time_ - Clock::now()));
  }
  // For poll(2): rounded up, so that a wait never spins through its last millisecond.
  [[nodiscard]] int left_ms() const {
    return static_cast<int>(std::min<std::int64_t>(std::chrono::ceil<std::chrono::milliseconds>(left()).count(), 1'000'000'000));
  }
  // The earlier of this one and `budget` from now: a step's own bound within the operation's.
  [[nodiscard]] Deadline sooner(std::chrono::nanoseconds budget) const { return Deadline(std::min(time_, Clock::now() + budget)); }

 private:
  explicit Deadline(Clock::time_point time) : time_(time) {}
  Clock::time_point time_;
};

}  // namespace moonpool
