// What the master has done, as plain counters beside the code that counts. Shown by metrics.h. Threads: any.
#pragma once

#include <atomic>
#include <cstdint>

namespace moonpool::master {

using Counter = std::atomic<std::uint64_t>;

struct Counters {
  Counter put_started{0};
  Counter put_committed{0};
  Counter put_revoked{0};    // by its writer
  Counter put_abandoned{0};  // by time, or with its writer or segment
  Counter put_exists{0};
  Counter put_busy{0};
  Counter put_no_space{0};
  Counter put_waited_for_space{0};  // batches
  Counter lookups{0};               // keys
  Counter lookup_hits{0};
  Counter gets{0};
  Counter get_hits{0};
  Counter removed{0};
  Counter remove_timeouts{0};
  Counter evicted_objects{0};
  Counter evicted_bytes{0};
  Counter nodes_registered{0};
  Counter nodes_lost{0};
  Counter nodes_expired{0};
  Counter segments_mounted{0};
  Counter extents_restored{0};
  Counter extents_rejected{0};
  Counter retirements_acknowledged{0};
  Counter reigns{0};
  Counter bad_requests{0};
};

// At most one event every `interval`, for log lines that could come by the thousand.
class RateLimit {
 public:
  explicit RateLimit(std::uint64_t interval_ms) : interval_(interval_ms) {}
  [[nodiscard]] bool allow(std::uint64_t now) {
    auto next = next_.load();
    return now >= next && next_.compare_exchange_strong(next, now + interval_);
  }

 private:
  const std::uint64_t interval_;
  std::atomic<std::uint64_t> next_{0};
};

}  // namespace moonpool::master
