#include "gateway/rate_limit.h"

#include <algorithm>
#include <cmath>

namespace moonpool::gateway {

namespace {

std::chrono::nanoseconds seconds(double count) {
  return std::chrono::nanoseconds(static_cast<std::int64_t>(std::ceil(std::min(count, 1e8) * 1e9)));
}

void append_fields(std::string& text, std::string_view what, const TokenBucket& bucket, TokenBucket::Time now) {
  if (!bucket.limited()) return;
  const auto remaining = static_cast<std::uint64_t>(std::max(0.0, std::floor(bucket.level(now))));
  const auto append = [&](std::string_view name, const std::string& value) {
    text.append("x-ratelimit-").append(name).append("-").append(what).append(": ").append(value).append("\r\n");
  };
  append("limit", std::to_string(bucket.per_minute()));
  append("remaining", std::to_string(remaining));
  append("reset", duration_text(bucket.until_full(now)));
}

}  // namespace

TokenBucket::TokenBucket(std::uint64_t per_minute, double burst_s, Time now) : per_minute_(per_minute), burst_s_(burst_s), at_(now) {
  level_ = capacity();
}

void TokenBucket::change(std::uint64_t per_minute, double burst_s, Time now) {
  if (per_minute == per_minute_ && burst_s == burst_s_) return;
  const double taken = limited() ? capacity() - level(now) : 0;
  per_minute_ = per_minute;
  burst_s_ = burst_s;
  level_ = capacity() - taken;
  at_ = now;
}

// At least one request, or token, has to fit in.
double TokenBucket::capacity() const { return std::max(1.0, static_cast<double>(per_minute_) / 60 * burst_s_); }

double TokenBucket::level(Time now) const {
  const double elapsed = std::max(0.0, std::chrono::duration<double>(now - at_).count());
  return std::min(capacity(), level_ + elapsed * static_cast<double>(per_minute_) / 60);
}

std::chrono::nanoseconds TokenBucket::until(double amount, Time now) const {
  if (!limited()) return {};
  const double missing = std::min(amount, capacity()) - level(now);
  // What rounding leaves is no reason to refuse.
  return missing <= 1e-6 ? std::chrono::nanoseconds(0) : seconds(missing * 60 / static_cast<double>(per_minute_));
}

void TokenBucket::take(double amount, Time now) {
  if (!limited()) return;
  level_ = std::min(capacity(), level(now) - amount);
  at_ = std::max(at_, now);
}

std::chrono::nanoseconds TokenBucket::until_full(Time now) const { return until(capacity(), now); }

RateLimit::RateLimit(std::uint64_t requests_per_minute, std::uint64_t tokens_per_minute, double burst_s, Time now)
    : requests_(requests_per_minute, burst_s, now), tokens_(tokens_per_minute, burst_s, now) {}

void RateLimit::change(std::uint64_t requests_per_minute, std::uint64_t tokens_per_minute, double burst_s, Time now) {
  requests_.change(requests_per_minute, burst_s, now);
  tokens_.change(tokens_per_minute, burst_s, now);
}

RateLimit::Taken RateLimit::take(double tokens, Time now) {
  const auto requests_in = requests_.until(1, now);
  const auto tokens_in = tokens_.until(tokens, now);
  if (requests_in.count() != 0 || tokens_in.count() != 0) {
    return {requests_in >= tokens_in ? Limit::kRequests : Limit::kTokens, std::max(requests_in, tokens_in)};
  }
  requests_.take(1, now);
  tokens_.take(tokens, now);
  return {};
}

void RateLimit::give_back(double tokens, Time now) {
  requests_.take(-1, now);
  tokens_.take(-tokens, now);
}

std::string RateLimit::fields(Time now) const {
  std::string text;
  append_fields(text, "requests", requests_, now);
  append_fields(text, "tokens", tokens_, now);
  return text;
}

std::string duration_text(std::chrono::nanoseconds duration) {
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(duration).count();
  if (ms < 1000) return std::to_string(ms) + "ms";
  std::string text;
  if (ms >= 3'600'000) text += std::to_string(ms / 3'600'000) + "h";
  if (ms >= 60'000) text += std::to_string(ms / 60'000 % 60) + "m";
  text += std::to_string(ms / 1000 % 60);
  if (ms % 1000 != 0) {
    const std::string fraction = std::to_string(ms % 1000);
    text += "." + std::string(3 - fraction.size(), '0') + fraction;
  }
  return text + "s";
}

}  // namespace moonpool::gateway
