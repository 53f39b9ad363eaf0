// Between two looks at whether something has ended that tells nobody (a device), or whom it told would take too long to wake (50 us seen).
//
// Waits look again and again: without a pause at first (a GPU's block of 2 MiB takes 40 us), then with ever longer ones, in proportion to
// how long it has been, so that 1/64 of it is lost at most. While they sleep, the thread's timers are exact to a microsecond; by default
// Linux lets them be 50 late (prctl(2), PR_SET_TIMERSLACK). Threads: one.
#pragma once

#include <sys/prctl.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/deadline.h"

namespace moonpool {

class Pauses {
 public:
  Pauses() = default;
  Pauses(const Pauses&) = delete;
  Pauses& operator=(const Pauses&) = delete;
  ~Pauses() {
    if (slack_ > 0) ::prctl(PR_SET_TIMERSLACK, static_cast<unsigned long>(slack_), 0UL, 0UL, 0UL);
  }

  void next() {
    const auto waited = Deadline::Clock::now() - begin_;
    if (waited < kSpin) {
      std::this_thread::yield();
      return;
    }
    if (slack_ == 0) be_exact();
    std::this_thread::sleep_for(std::clamp<std::chrono::nanoseconds>(waited / 64, kShortest, kLongest));
  }

 private:
  static constexpr std::chrono::microseconds kSpin{150};
  static constexpr std::chrono::nanoseconds kShortest{10'000};
  static constexpr std::chrono::nanoseconds kLongest{1'000'000};

  void be_exact() {
    slack_ = ::prctl(PR_GET_TIMERSLACK, 0UL, 0UL, 0UL, 0UL);
    if (slack_ > 0) ::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  }

  const Deadline::Clock::time_point begin_ = Deadline::Clock::now();
  int slack_ = 0;  // the thread's own, in nanoseconds, while it is changed
};

}  // namespace moonpool
