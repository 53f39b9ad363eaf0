#include "transfer/cuda/staging.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/logging.h"
#include "base/sync_point.h"

namespace moonpool::transfer::cuda {

namespace {

constexpr std::uint64_t kAlignment = 4096;  // of leases, in address and length
constexpr std::uint64_t kLeastRing = std::uint64_t{1} << 20;
// A ring that could not be pinned is not tried again before.
constexpr std::chrono::seconds kTryAgain{10};

StagingMemory pinned_memory(Driver& driver, HostRegions& regions) {
  StagingMemory memory;
  memory.allocate = [&driver, &regions](std::uint64_t size) {
    auto made = driver.allocate_host(size);
    if (made) regions.add_pinned(*made);
    return made;
  };
  memory.free = [&driver, &regions](MutableBytes pinned) {
    regions.forget(pinned.data());
    driver.free_host(pinned);
  };
  memory.name = "pinned staging memory";
  memory.setting = "MOONPOOL_CUDA_STAGING";
  memory.beyond = true;
  return memory;
}

std::uint64_t rounded(std::uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

// The ring is next fit: the search for room goes on behind the last lease and wraps around, and what is given back joins its free
// neighbours at once. So leases may end in any order, and one that a stopped peer holds for long costs its own bytes alone.
class Staging::Impl {
 public:
  Impl(StagingMemory memory, std::uint64_t bytes)
      : memory_(std::move(memory)), capacity_(std::max(bytes / kAlignment * kAlignment, kLeastRing)) {}

  ~Impl() {
    if (!ring_.empty()) memory_.free(ring_);
  }

  std::uint64_t capacity() const { return capacity_.load(); }

  // Waits as long as `deadline`; without one it does not wait, and empty memory says that there is not enough at once.
  Result<MutableBytes> acquire(std::uint64_t size, std::optional<Deadline> deadline) {
    if (size == 0) return MutableBytes{};
    std::unique_lock lock(mutex_);
    while (ring_.empty()) {
      if (size > capacity_) return own(size, lock);
      if (!making_) {
        MOONPOOL_RETURN_IF_ERROR(make_ring(lock));
      } else if (!deadline) {
        return MutableBytes{};
      } else if (!wait(made_, lock, *deadline, [this] { return !making_; })) {
        return timed_out(size);
      }
    }
    if (size > capacity_) return own(size, lock);
    if (std::ranges::all_of(waiters_, [](const Waiter& one) { return !one.memory.empty(); })) {
      if (const MutableBytes memory = take(size); !memory.empty()) return memory;
    }
    if (!deadline) return MutableBytes{};
    const auto waiter = waiters_.emplace(waiters_.end());
    waiter->size = size;
    MOONPOOL_SYNC_POINT("cuda.staging.waits");
    const bool served = wait(waiter->served, lock, *deadline, [&] { return !waiter->memory.empty(); });
    const MutableBytes memory = waiter->memory;
    waiters_.erase(waiter);
    if (served) return memory;
    serve();  // who came later may need less
    return timed_out(size);
  }

  void release(MutableBytes memory) {
    if (memory.empty()) return;
    std::unique_lock lock(mutex_);
    if (!in_ring(memory)) {
      lock.unlock();
      memory_.free(memory);
      return;
    }
    auto offset = static_cast<std::uint64_t>(memory.data() - ring_.data());
    std::uint64_t length = rounded(memory.size());
    const auto after = free_.lower_bound(offset);
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == offset) {
        offset = before->first;
        length += before->second;
        free_.erase(before);
      }
    }
    if (after != free_.end() && offset + length == after->first) {
      length += after->second;
      free_.erase(after);
    }
    free_.emplace(offset, length);
    serve();
  }

 private:
  struct Waiter {
    std::uint64_t size = 0;
    MutableBytes memory;  // once served
    std::condition_variable served;
  };

  template <typename Condition>
  static bool wait(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, Deadline deadline, const Condition& condition) {
    // On the system clock: ThreadSanitizer does not know the call that waits on the steady one.
    const auto until = std::chrono::system_clock::now() + std::min<std::chrono::nanoseconds>(deadline.left(), std::chrono::hours(1));
    return changed.wait_until(lock, until, condition);
  }

  Status timed_out(std::uint64_t size) const {
    return {ErrorCode::kRpcTimeout, "no " + std::to_string(size) + " bytes of " + memory_.name +
                                        " became free in time: other transfers hold its " + std::to_string(capacity_) + " bytes (" +
                                        memory_.setting + " sets how many there are)"};
  }

  bool in_ring(ConstBytes memory) const {
    return !ring_.empty() && std::less_equal<>()(ring_.data(), memory.data()) && std::less<>()(memory.data(), ring_.data() + ring_.size());
  }

  // A part of the ring; empty when no free part is that large. With mutex_.
  MutableBytes take(std::uint64_t size) {
    const std::uint64_t wanted = rounded(size);
    const auto fits = [&](const auto& part) { return part.second >= wanted; };
    const auto hand = free_.lower_bound(hand_);
    auto found = std::find_if(hand, free_.end(), fits);
    if (found == free_.end()) {
      found = std::find_if(free_.begin(), hand, fits);
      if (found == hand) return {};
    }
    const auto [offset, length] = *found;
    free_.erase(found);
    if (length > wanted) free_.emplace(offset + wanted, length - wanted);
    hand_ = offset + wanted;
    return ring_.subspan(offset, size);
  }

  // Waiters in their order, as far as it reaches: the first one is not overtaken, so it gets its bytes however large they are.
  void serve() {
    for (auto& waiter : waiters_) {
      if (!waiter.memory.empty()) continue;  // served, has not woken yet
      waiter.memory = take(waiter.size);
      if (waiter.memory.empty()) return;
      waiter.served.notify_one();
    }
  }

  // Makes the ring, smaller if need be. Others wait for made_ meanwhile; mutex_ is not held while the driver pins.
  Status make_ring(std::unique_lock<std::mutex>& lock) {
    if (Deadline::Clock::now() < next_try_) return refusal_;
    making_ = true;
    const std::uint64_t wanted = capacity_;
    lock.unlock();
    Status first;
    MutableBytes memory;
    for (std::uint64_t bytes = wanted; bytes >= kLeastRing && memory.empty(); bytes = bytes / 2 / kAlignment * kAlignment) {
      const auto made = memory_.allocate(bytes);
      if (made) memory = *made;
      if (!made && first.ok()) first = made.status();
      if (made.code() == ErrorCode::kNotSupported) break;
    }
    if (!memory.empty() && memory.size() < wanted) {
      log::warning("cuda: only {} of {} bytes of {} could be had: {}", memory.size(), wanted, memory_.name, first.message());
    }
    lock.lock();
    making_ = false;
    made_.notify_all();
    if (memory.empty()) {
      const bool never = first.code() == ErrorCode::kNotSupported;
      next_try_ = never ? Deadline::Clock::time_point::max() : Deadline::Clock::now() + kTryAgain;
      refusal_ = Status(ErrorCode::kNoAvailableHandle, "no " + memory_.name + " could be had: " + first.message());
      return refusal_;
    }
    ring_ = memory;
    capacity_ = memory.size();
    free_.emplace(0, memory.size());
    return {};
  }

  // Memory for one lease alone.
  Result<MutableBytes> own(std::uint64_t size, std::unique_lock<std::mutex>& lock) {
    if (!memory_.beyond) {
      return Status(ErrorCode::kNoAvailableHandle, std::to_string(size) + " bytes are more than the " + std::to_string(capacity_.load()) +
                                                       " of " + memory_.name + " (" + memory_.setting + " sets how many there are)");
    }
    const bool say = !std::exchange(said_large_, true);
    lock.unlock();
    if (say) {
      log::warning(
          "cuda: a transfer needs {} bytes of {} at once, more than the {} that there are: it gets memory of its own, which is slow "
          "({} sets how many there are)",
          size, memory_.name, capacity_.load(), memory_.setting);
    }
    const auto made = memory_.allocate(size);
    if (!made) {
      return {ErrorCode::kNoAvailableHandle,
              std::to_string(size) + " bytes of " + memory_.name + " for device data could not be had: " + made.status().message()};
    }
    return *made;
  }

  const StagingMemory memory_;
  std::atomic<std::uint64_t> capacity_;  // changes once at most, when the ring is made smaller
  std::mutex mutex_;                     // guards what follows
  std::condition_variable made_;
  bool making_ = false;
  bool said_large_ = false;
  Deadline::Clock::time_point next_try_{};
  Status refusal_;
  MutableBytes ring_;                            // empty: not made yet
  std::map<std::uint64_t, std::uint64_t> free_;  // length by offset; no two touch
  std::uint64_t hand_ = 0;                       // where the last lease ended
  std::list<Waiter> waiters_;
};

Staging::Lease::Lease(Lease&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)), memory_(std::exchange(other.memory_, MutableBytes{})) {}

Staging::Lease& Staging::Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    if (owner_ != nullptr) owner_->impl_->release(memory_);
    owner_ = std::exchange(other.owner_, nullptr);
    memory_ = std::exchange(other.memory_, MutableBytes{});
  }
  return *this;
}

Staging::Lease::~Lease() {
  if (owner_ != nullptr) owner_->impl_->release(memory_);
}

Staging::Staging(StagingMemory memory, std::uint64_t bytes) : impl_(std::make_unique<Impl>(std::move(memory), bytes)) {}
Staging::Staging(Driver& driver, HostRegions& regions, const Settings& settings)
    : Staging(pinned_memory(driver, regions), settings.staging_bytes) {}
Staging::~Staging() = default;

std::uint64_t Staging::capacity() const { return impl_->capacity(); }

Result<Staging::Lease> Staging::acquire(std::uint64_t size, Deadline deadline) {
  const auto memory = impl_->acquire(size, deadline);
  if (!memory) return memory.status();
  Lease lease;
  lease.owner_ = this;
  lease.memory_ = *memory;
  return lease;
}

Result<Staging::Lease> Staging::try_acquire(std::uint64_t size) {
  const auto memory = impl_->acquire(size, std::nullopt);
  if (!memory) return memory.status();
  Lease lease;
  lease.owner_ = memory->empty() ? nullptr : this;
  lease.memory_ = *memory;
  return lease;
}

}  // namespace moonpool::transfer::cuda
