// A histogram of durations that many threads fill without a lock: 64 buckets, two per power of two from 50 us to some days.
//
// Costs two relaxed increments per record() and 520 bytes. Percentiles are read as the upper edge of their bucket: right within 42%,
// which is enough to see which instance is slow.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>

namespace moonpool::gateway {

class LatencyHistogram {
 public:
  static constexpr std::size_t kBuckets = 64;

  // `times` samples of the same duration.
  void record(std::chrono::nanoseconds duration, std::uint64_t times = 1) {
    const auto us = static_cast<std::uint64_t>(std::max<std::int64_t>(0, duration.count() / 1000));
    buckets_[bucket_of(us)].fetch_add(times, std::memory_order_relaxed);
    sum_us_.fetch_add(us * times, std::memory_order_relaxed);
  }

  [[nodiscard]] std::uint64_t count() const {
    std::uint64_t all = 0;
    for (const auto& bucket : buckets_) all += bucket.load(std::memory_order_relaxed);
    return all;
  }
  [[nodiscard]] double sum_s() const { return static_cast<double>(sum_us_.load(std::memory_order_relaxed)) / 1e6; }
  [[nodiscard]] double mean_ms() const {
    const auto n = count();
    return n == 0 ? 0 : sum_s() / static_cast<double>(n) * 1000;
  }
  // `share` in (0, 1]; 0 when nothing was recorded.
  [[nodiscard]] double percentile_ms(double share) const {
    const auto wanted = static_cast<std::uint64_t>(std::ceil(share * static_cast<double>(count())));
    std::uint64_t seen = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      seen += buckets_[i].load(std::memory_order_relaxed);
      if (seen != 0 && seen >= wanted) return upper_edge_us(i) / 1000;
    }
    return 0;
  }

  // For those who show the buckets: samples in one, and the duration below which they are. The last bucket has no edge of its own.
  [[nodiscard]] std::uint64_t in_bucket(std::size_t bucket) const { return buckets_[bucket].load(std::memory_order_relaxed); }
  [[nodiscard]] static double upper_edge_s(std::size_t bucket) { return upper_edge_us(bucket) / 1e6; }

 private:
  // Bucket 2k holds [2^k, 1.5 * 2^k) units, bucket 2k+1 the rest up to 2^(k+1); a unit is 50 us.
  static std::size_t bucket_of(std::uint64_t us) {
    const std::uint64_t units = us / kUnitUs + 1;
    const auto power = static_cast<std::size_t>(std::bit_width(units) - 1);
    const std::size_t half = power > 0 ? (units >> (power - 1)) & 1U : 0;
    return std::min<std::size_t>(2 * power + half, kBuckets - 1);
  }
  static double upper_edge_us(std::size_t bucket) {
    const double base = static_cast<double>(std::uint64_t{1} << (bucket / 2));
    return kUnitUs * (bucket % 2 == 0 ? (bucket == 0 ? 1.0 : base * 1.5) : base * 2) - (bucket == 0 ? 0 : kUnitUs);
  }

  static constexpr std::uint64_t kUnitUs = 50;
  std::array<std::atomic<std::uint64_t>, kBuckets> buckets_{};
  std::atomic<std::uint64_t> sum_us_{0};
};

}  // namespace moonpool::gateway
