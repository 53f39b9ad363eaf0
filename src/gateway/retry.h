// When another instance may be asked after a failure, and after which pause.
//
// A retry is load that nobody asked for: when a whole group fails, requests that are each tried three times finish it off. So retries take
// from a budget, a share of the requests that came in the last ten seconds (20% unless told otherwise) plus a small number that is always
// allowed, for a gateway with little traffic (10 a second; both as in Finagle, the share as in Envoy's retry_budget). What the budget does
// not allow ends as the failure it was. All requests of the gateway share one budget; retries of prefill, of decode and continued streams
// all take from it.
// The pause before the n-th retry is exponential and jittered: between half and all of first * 2^(n-1), at most `longest`.
//
// Algorithm: ten slots of a second each, a ring; a slot is emptied by the first who comes to it in a new second. Counts are relaxed: two
// threads at the edge of the budget may both pass, and a count may be lost when a slot turns over. It is a brake, not a ledger.
// Cost: request() is one clock read, two relaxed loads and an increment; allow() sums ten slots, on the path of failures only.
// Threads: any. Ownership: the gateway's shared state.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace moonpool::gateway {

class RetryBudget {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kWindowSeconds = 10;

  RetryBudget() = default;
  RetryBudget(double share, double always_per_second) { set(share, always_per_second); }

  void set(double share, double always_per_second) {
    share_.store(share, std::memory_order_relaxed);
    always_per_second_.store(always_per_second, std::memory_order_relaxed);
  }

  void request(Clock::time_point now = Clock::now());
  // True, and counted, when a retry is within the budget.
  [[nodiscard]] bool allow(Clock::time_point now = Clock::now());

 private:
  struct Slot {
    std::atomic<std::int64_t> second{-1};
    std::atomic<std::uint64_t> requests{0};
    std::atomic<std::uint64_t> retries{0};
  };
  [[nodiscard]] Slot& slot_of(std::int64_t second);

  std::atomic<double> share_{0.2};
  std::atomic<double> always_per_second_{10};
  std::array<Slot, kWindowSeconds> slots_;
};

// `retry` counts from 1.
[[nodiscard]] std::chrono::nanoseconds retry_pause(unsigned retry, std::chrono::nanoseconds first, std::chrono::nanoseconds longest);

}  // namespace moonpool::gateway
