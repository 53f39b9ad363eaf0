// Requests and tokens a minute that a key may have: a token bucket each, over a clock that the caller holds.
//
// A bucket fills at its rate and holds `burst_s` seconds of it. Whoever costs more than a bucket holds may go when it is full, and
// leaves it in debt: nothing is refused forever. What a request costs is an estimate when it comes; the difference to what it turned out
// to be is taken, or given back, when it ends. Each gateway counts for itself.
// Cost: some additions a request. Threads: values; Admission's mutex guards those of the keys.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace moonpool::gateway {

class TokenBucket {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // Full at first. No limit with `per_minute` 0.
  TokenBucket(std::uint64_t per_minute, double burst_s, Time now);
  // What was taken stays taken.
  void change(std::uint64_t per_minute, double burst_s, Time now);

  [[nodiscard]] bool limited() const { return per_minute_ != 0; }
  [[nodiscard]] std::uint64_t per_minute() const { return per_minute_; }
  // When `amount` could be taken, counted from `now`; 0: at once.
  [[nodiscard]] std::chrono::nanoseconds until(double amount, Time now) const;
  // Below zero is allowed. A negative amount is given back.
  void take(double amount, Time now);
  [[nodiscard]] double level(Time now) const;
  [[nodiscard]] std::chrono::nanoseconds until_full(Time now) const;

 private:
  [[nodiscard]] double capacity() const;

  std::uint64_t per_minute_;
  double burst_s_;
  double level_ = 0;  // at `at_`
  Time at_;
};

class RateLimit {
 public:
  using Time = TokenBucket::Time;

  RateLimit(std::uint64_t requests_per_minute, std::uint64_t tokens_per_minute, double burst_s, Time now);
  void change(std::uint64_t requests_per_minute, std::uint64_t tokens_per_minute, double burst_s, Time now);

  enum class Limit { kNone, kRequests, kTokens };
  struct Taken {
    Limit exceeded = Limit::kNone;        // by this one; nothing was taken then
    std::chrono::nanoseconds retry_in{};  // when it may be tried again
  };
  [[nodiscard]] Taken take(double tokens, Time now);
  // A request that was never served is given back whole.
  void give_back(double tokens, Time now);
  // What it cost beyond (or below) what was taken at its start.
  void correct(double tokens, Time now) { tokens_.take(tokens, now); }

  // "x-ratelimit-limit-requests: ..." and so on, whole lines; only of the limits that there are.
  [[nodiscard]] std::string fields(Time now) const;

 private:
  TokenBucket requests_;
  TokenBucket tokens_;
};

// "1h2m3.5s", as OpenAI writes the time until a limit is whole again.
[[nodiscard]] std::string duration_text(std::chrono::nanoseconds duration);

}  // namespace moonpool::gateway
