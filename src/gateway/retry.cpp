#include "gateway/retry.h"

#include <algorithm>
#include <random>

namespace moonpool::gateway {

namespace {

std::int64_t second_of(RetryBudget::Clock::time_point now) {
  return std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count();
}

}  // namespace

RetryBudget::Slot& RetryBudget::slot_of(std::int64_t second) {
  Slot& slot = slots_[static_cast<std::size_t>(second) % kWindowSeconds];
  std::int64_t held = slot.second.load(std::memory_order_relaxed);
  if (held != second && slot.second.compare_exchange_strong(held, second, std::memory_order_relaxed)) {
    slot.requests.store(0, std::memory_order_relaxed);
    slot.retries.store(0, std::memory_order_relaxed);
  }
  return slot;
}

void RetryBudget::request(Clock::time_point now) { slot_of(second_of(now)).requests.fetch_add(1, std::memory_order_relaxed); }

bool RetryBudget::allow(Clock::time_point now) {
  const std::int64_t second = second_of(now);
  std::uint64_t requests = 0;
  std::uint64_t retries = 0;
  for (const Slot& slot : slots_) {
    if (slot.second.load(std::memory_order_relaxed) + static_cast<std::int64_t>(kWindowSeconds) <= second) continue;
    requests += slot.requests.load(std::memory_order_relaxed);
    retries += slot.retries.load(std::memory_order_relaxed);
  }
  const double allowed = share_.load(std::memory_order_relaxed) * static_cast<double>(requests) +
                         always_per_second_.load(std::memory_order_relaxed) * static_cast<double>(kWindowSeconds);
  if (static_cast<double>(retries) + 1 > allowed) return false;
  slot_of(second).retries.fetch_add(1, std::memory_order_relaxed);
  return true;
}

std::chrono::nanoseconds retry_pause(unsigned retry, std::chrono::nanoseconds first, std::chrono::nanoseconds longest) {
  static thread_local std::minstd_rand random{std::random_device{}()};
  const auto doubled = first * (std::int64_t{1} << std::min(retry > 0 ? retry - 1 : 0, 20U));
  const std::int64_t most = std::min(doubled, longest).count();
  return std::chrono::nanoseconds(std::uniform_int_distribution<std::int64_t>(most / 2, std::max<std::int64_t>(most, 1))(random));
}

}  // namespace moonpool::gateway
