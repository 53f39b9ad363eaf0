// What fragmentation costs: a segment's allocator is filled with a mix of sizes, then kept full by replacement: of random objects, the
// worst case, since what is free is then strewn all over; and for the hardest mixes of the oldest, which is what the pool's eviction takes
// when nothing is read again.
//
//   allocator_churn [--quick]
// prints one JSON line a mix: the share of the segment that was free when the first allocation failed (lost_first), and in the churn after
// it, at every failed allocation, before the evictions that made room (lost_mean, lost_worst); and the time of an allocation and of a free,
// which includes reading the clock twice (some 40 ns).
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <functional>
#include <random>
#include <string_view>
#include <vector>

#include "master/allocator.h"

namespace {

using Clock = std::chrono::steady_clock;
using Random = std::mt19937_64;
using moonpool::master::ExtentAllocator;

constexpr std::uint64_t kKib = 1024;
constexpr std::uint64_t kMib = 1024 * kKib;

struct Mix {
  const char* name;
  std::function<std::uint64_t(Random&)> size;
  bool small = false;  // in a smaller segment, so that the number of objects stays in the millions
  bool oldest_first = false;
};

std::uint64_t log_uniform(Random& random, double least, double most) {
  std::uniform_real_distribution<double> exponent(std::log(least), std::log(most));
  return static_cast<std::uint64_t>(std::exp(exponent(random)));
}

std::uint64_t one_of(Random& random, const std::vector<std::uint64_t>& sizes) { return sizes[random() % sizes.size()]; }

std::vector<Mix> mixes() {
  const auto medium = [](Random& r) { return log_uniform(r, 4.0 * kKib, 16.0 * kMib); };
  const auto small = [](Random& r) { return log_uniform(r, 256, 64.0 * kKib); };
  return {
      {"one size, a vLLM block (2.8 MiB)", [](Random&) { return 30 * 96 * kKib; }},
      {"two models' blocks (2.8 MiB, 1.1 MiB)",
       [](Random& r) {
         return one_of(r, {30 * 96 * kKib, 18 * 64 * kKib});
       }},
      {"4 KiB, 64 KiB, 1 MiB, 16 MiB by count",
       [](Random& r) {
         return one_of(r, {4 * kKib, 64 * kKib, kMib, 16 * kMib});
       }},
      {"log-uniform 4 KiB to 16 MiB", medium},
      {"log-uniform 256 B to 64 KiB", small, true},
      {"log-uniform 4 KiB to 16 MiB, oldest out first", medium, false, true},
      {"log-uniform 256 B to 64 KiB, oldest out first", small, true, true},
  };
}

struct Timing {
  double seconds = 0;
  std::uint64_t count = 0;
  [[nodiscard]] double nanoseconds() const { return count == 0 ? 0 : seconds / static_cast<double>(count) * 1e9; }
};

template <typename Work>
auto timed(Timing& timing, const Work& work) {
  const auto start = Clock::now();
  auto result = work();
  timing.seconds += std::chrono::duration<double>(Clock::now() - start).count();
  ++timing.count;
  return result;
}

// A full allocator and what lies in it.
class Churn {
 public:
  Churn(const Mix& mix, std::uint64_t capacity) : mix_(mix), allocator_(capacity) { allocator_.seal(); }

  // Until the first failure; returns the share that is free then.
  double fill() {
    while (allocate(mix_.size(random_))) {
    }
    return free_share();
  }

  // Replaces `count` objects by new ones, evicting others whenever an allocation fails.
  void replace(std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t size = mix_.size(random_);
      if (allocate(size)) continue;
      const double lost = free_share();
      sum_ += lost;
      worst_ = std::max(worst_, lost);
      ++failures_;
      do {
        evict_one();
      } while (!allocate(size));
    }
  }

  [[nodiscard]] std::size_t objects() const { return held_.size(); }
  [[nodiscard]] double mean() const { return failures_ == 0 ? 0 : sum_ / static_cast<double>(failures_); }
  [[nodiscard]] double worst() const { return worst_; }
  [[nodiscard]] double allocate_ns() const { return allocating_.nanoseconds(); }
  [[nodiscard]] double free_ns() const { return freeing_.nanoseconds(); }

 private:
  bool allocate(std::uint64_t size) {
    const auto offset = timed(allocating_, [&] { return allocator_.allocate(size); });
    if (offset) held_.push_back(*offset);
    return offset.has_value();
  }
  void evict_one() {
    // The order of what is left matters only where the oldest goes first.
    if (!mix_.oldest_first) std::swap(held_[random_() % held_.size()], held_.front());
    const std::uint64_t offset = held_.front();
    held_.pop_front();
    if (!timed(freeing_, [&] { return allocator_.free(offset); })) std::abort();
  }
  [[nodiscard]] double free_share() const {
    return static_cast<double>(allocator_.free_bytes()) / static_cast<double>(allocator_.capacity());
  }

  const Mix& mix_;
  ExtentAllocator allocator_;
  Random random_{1};
  std::deque<std::uint64_t> held_;
  double sum_ = 0;
  double worst_ = 0;
  std::uint64_t failures_ = 0;
  Timing allocating_;
  Timing freeing_;
};

}  // namespace

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::string_view(argv[1]) == "--quick";
  for (const auto& mix : mixes()) {
    Churn churn(mix, (mix.small ? 4 : 64) * 1024 * kMib);
    const double first = churn.fill();
    churn.replace(churn.objects() * (quick ? 3 : 10));
    std::printf(
        "{\"shape\": \"%s\", \"operation\": \"churn\", \"side\": \"moonpool\", \"unit\": \"objects/s\", \"lost_first\": %.6f, "
        "\"lost_mean\": %.6f, "
        "\"lost_worst\": %.6f, \"allocate_ns\": %.1f, \"free_ns\": %.1f}\n",
        mix.name, first, churn.mean(), churn.worst(), churn.allocate_ns(), churn.free_ns());
    std::fflush(stdout);
  }
  return 0;
}
