#include "gateway/circuit_breaker.h"

#include "gateway/retry.h"

namespace moonpool::gateway {

void CircuitBreaker::set(CircuitSettings settings) {
  const std::lock_guard lock(mutex_);
  settings_ = settings;
}

std::string_view CircuitBreaker::name() const {
  switch (state()) {
    case State::kClosed:
      return "closed";
    case State::kOpen:
      return "open";
    case State::kHalfOpen:
      return "half-open";
  }
  return "";
}

bool CircuitBreaker::admits() const {
  const State now = state();
  return now == State::kClosed || (now == State::kHalfOpen && !trial_.load(std::memory_order_relaxed));
}

bool CircuitBreaker::begin_trial() { return state() == State::kHalfOpen && !trial_.exchange(true, std::memory_order_relaxed); }

bool CircuitBreaker::request_answering() {
  if (state() != State::kHalfOpen) return false;
  const std::lock_guard lock(mutex_);
  if (state() != State::kHalfOpen) return false;
  failures_.store(settings_.failures_to_open - 1, std::memory_order_relaxed);
  state_.store(State::kClosed, std::memory_order_relaxed);
  return true;
}

bool CircuitBreaker::request_succeeded() {
  if (failed_checks_.load(std::memory_order_relaxed) != 0) failed_checks_.store(0, std::memory_order_relaxed);
  if (state() == State::kClosed && failures() == 0) return false;
  const std::lock_guard lock(mutex_);
  openings_ = 0;
  failures_.store(0, std::memory_order_relaxed);
  return state_.exchange(State::kClosed, std::memory_order_relaxed) != State::kClosed;
}

bool CircuitBreaker::request_failed(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  const unsigned failures = failures_.fetch_add(1, std::memory_order_relaxed) + 1;
  const State before = state();
  if (before == State::kOpen || (before == State::kClosed && failures < settings_.failures_to_open)) return false;
  open(now);
  return before == State::kClosed;
}

void CircuitBreaker::check_succeeded(Clock::time_point now) {
  const unsigned failed_before = failed_checks_.exchange(0, std::memory_order_relaxed);
  if (state() != State::kOpen) return;
  const std::lock_guard lock(mutex_);
  if (state() != State::kOpen || (failed_before == 0 && now < open_until_)) return;
  trial_.store(false, std::memory_order_relaxed);
  state_.store(State::kHalfOpen, std::memory_order_relaxed);
}

bool CircuitBreaker::check_failed(bool first_look, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  const unsigned failed = failed_checks_.fetch_add(1, std::memory_order_relaxed) + 1;
  const State before = state();
  if (before == State::kOpen || (before == State::kClosed && !first_look && failed < settings_.failures_to_open)) return false;
  open(now);
  return before == State::kClosed;
}

void CircuitBreaker::open(Clock::time_point now) {
  ++openings_;
  open_until_ = now + retry_pause(openings_, settings_.first_open, settings_.longest_open);
  state_.store(State::kOpen, std::memory_order_relaxed);
}

}  // namespace moonpool::gateway
