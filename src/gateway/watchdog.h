// A deadline over a connection: when it passes, the connection's owner is told (and closes it).
//
// Made for connections that move their deadline at every step: moving it later costs one store, since the timer, when it fires early,
// looks at the current deadline and goes to sleep again. Threads: its executor's only. Destroying it is always safe.
#pragma once

#include <functional>
#include <memory>

#include "base/deadline.h"
#include "gateway/io.h"

namespace moonpool::gateway {

class Watchdog {
 public:
  // `on_expiry` runs on the executor, at most once per arming, never after the watchdog is gone.
  Watchdog(const Executor& executor, std::function<void()> on_expiry);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void arm(Deadline deadline);
  void disarm();

 private:
  struct State {
    State(const Executor& executor, std::function<void()> callback) : timer(executor), on_expiry(std::move(callback)) {}
    Timer timer;
    std::function<void()> on_expiry;
    Deadline::Clock::time_point deadline = Deadline::Clock::time_point::max();
    Deadline::Clock::time_point timer_at = Deadline::Clock::time_point::max();  // max: the timer sleeps
  };
  static void sleep(const std::shared_ptr<State>& state, Deadline::Clock::time_point until);

  std::shared_ptr<State> state_;
};

}  // namespace moonpool::gateway
