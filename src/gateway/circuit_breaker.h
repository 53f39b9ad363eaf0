// Keeps requests away from an instance that fails, and lets it back in carefully.
//
//   closed     all is well. `failures_to_open` consecutive failures of requests, or of active checks, open it.
//   open       passed over while others are closed. Its time is exponential and jittered: first_open, doubled with each opening in a row,
//   up
//              to longest_open. A good active check after that time half-opens it; one that follows a bad check does so at once, since
//              the instance was seen going down and coming back.
//   half-open  one request at a time is let in. The first byte of its answer closes the circuit, but until an answer was whole a single
//              failure opens it again, for longer.
// A whole answer closes from any state: an open instance is still asked when no other is left. A client's 4xx is an answer; a client's
// departure is nothing. So one failure never opens, health that only /health sees does not close, and nothing stays open for ever.
//
// Cost: admits() is one relaxed load while closed. Transitions take a lock. Threads: any. Ownership: its instance's.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string_view>

namespace moonpool::gateway {

struct CircuitSettings {
  unsigned failures_to_open = 3;
  std::chrono::milliseconds first_open{1'000};
  std::chrono::milliseconds longest_open{30'000};
};

class CircuitBreaker {
 public:
  using Clock = std::chrono::steady_clock;
  enum class State { kClosed, kOpen, kHalfOpen };

  explicit CircuitBreaker(CircuitSettings settings) : settings_(settings) {}

  // Holds from the next failure on; the state stays.
  void set(CircuitSettings settings);

  [[nodiscard]] State state() const { return state_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::string_view name() const;  // "closed", "open", "half-open"
  [[nodiscard]] unsigned failures() const { return failures_.load(std::memory_order_relaxed); }
  // May have a request now, unless no other instance is left.
  [[nodiscard]] bool admits() const;

  // Half-open: true for the one request that is let in; it says when it has ended.
  [[nodiscard]] bool begin_trial();
  void end_trial() { trial_.store(false, std::memory_order_relaxed); }

  // What requests saw. Each returns true when the circuit changed between closed and not closed.
  bool request_answering();  // the first byte is here
  bool request_succeeded();
  bool request_failed(Clock::time_point now = Clock::now());
  // What active checks saw. `first_look`: nothing is known of the instance, so this opens at once.
  void check_succeeded(Clock::time_point now = Clock::now());
  bool check_failed(bool first_look, Clock::time_point now = Clock::now());

 private:
  void open(Clock::time_point now);

  std::atomic<State> state_{State::kClosed};
  std::atomic<bool> trial_{false};
  std::atomic<unsigned> failures_{0};       // consecutive ones of requests
  std::atomic<unsigned> failed_checks_{0};  // consecutive ones of checks
  std::mutex mutex_;                        // guards the three below, and every change of state_
  CircuitSettings settings_;
  unsigned openings_ = 0;  // in a row, without a whole answer between them
  Clock::time_point open_until_{};
};

}  // namespace moonpool::gateway
