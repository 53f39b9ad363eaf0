#include "net/spin_policy.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "net/unique_fd.h"

namespace moonpool::net {
namespace {

constexpr int kMaxScore = 8;
constexpr int kManyCpus = 8;
constexpr std::uint32_t kRetryEvery = 64;
constexpr std::int64_t kLoadSampleNs = 20'000'000;

int available_cpus() {
  static const int kCount = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  }();
  return kCount;
}

std::atomic<int> spinners{0};

// Runnable threads of the machine, from /proc/loadavg ("0.10 0.20 0.30 3/456 789"): about 3 us, so taken at most every 20 ms by one thread.
bool run_queue_full() {
  static std::atomic<std::int64_t> sampled_at{0};
  static std::atomic<bool> full{false};
  const std::int64_t now = std::chrono::steady_clock::now().time_since_epoch().count();
  std::int64_t last = sampled_at.load(std::memory_order_relaxed);
  if (now - last < kLoadSampleNs || !sampled_at.compare_exchange_strong(last, now, std::memory_order_relaxed)) {
    return full.load(std::memory_order_relaxed);
  }
  std::array<char, 128> text{};
  const UniqueFd file(::open("/proc/loadavg", O_RDONLY | O_CLOEXEC));
  if (!file || ::read(file.get(), text.data(), text.size() - 1) <= 0) return full.load(std::memory_order_relaxed);
  const char* slash = std::strchr(text.data(), '/');
  if (slash == nullptr) return full.load(std::memory_order_relaxed);
  const char* number = slash;
  while (number > text.data() && number[-1] != ' ') --number;
  static const long kOnline = std::max(1L, ::sysconf(_SC_NPROCESSORS_ONLN));
  full.store(std::atol(number) > kOnline, std::memory_order_relaxed);
  return full.load(std::memory_order_relaxed);
}

}  // namespace

SpinPolicy::Duration SpinPolicy::default_limit() { return std::chrono::microseconds(available_cpus() >= kManyCpus ? 150 : 50); }

SpinPolicy::SpinPolicy(Duration limit) : limit_(available_cpus() > 1 ? limit : Duration::zero()) {}

SpinPolicy::Duration SpinPolicy::budget() {
  if (limit_ == Duration::zero()) return Duration::zero();
  if (score_ < 0 && ++skipped_ < kRetryEvery) return Duration::zero();
  skipped_ = 0;
  return run_queue_full() ? Duration::zero() : limit_;
}

void SpinPolicy::record(Duration waited) {
  // A sleeper wakes some tens of microseconds late, so a wait of up to twice the limit might have been a short one.
  score_ = std::clamp(score_ + (waited <= 2 * limit_ ? 1 : -1), -kMaxScore, kMaxScore);
}

SpinPolicy::Turn::Turn() : granted_(spinners.fetch_add(1, std::memory_order_relaxed) < std::max(1, available_cpus() - 1)) {}
SpinPolicy::Turn::~Turn() { spinners.fetch_sub(1, std::memory_order_relaxed); }

void SpinPolicy::relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace moonpool::net
