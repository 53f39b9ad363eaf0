#include "transfer/cuda/host_regions.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "base/logging.h"

namespace moonpool::transfer::cuda {

namespace {

// How often keepers are looked at. A region that nobody holds any more stays pinned so much longer.
constexpr std::chrono::milliseconds kSweep{100};
// A region that somebody else has pinned is looked at in so many places: it may be pinned in part.
constexpr std::uint64_t kProbes = 64;
constexpr std::size_t kPopulatedAtOnce = std::size_t{64} << 20;

std::string size_text(std::uint64_t bytes) {
  return bytes >= (std::uint64_t{1} << 30) ? fmt::format("{:.1f} GiB", static_cast<double>(bytes) / (1 << 30))
                                           : fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20));
}

std::string memlock_text() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "unlimited";
  return size_text(limit.rlim_cur);
}

}  // namespace

class HostRegions::Impl {
 public:
  Impl(Driver& driver, std::chrono::milliseconds try_again) : driver_(driver), try_again_(try_again) {}

  ~Impl() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
    for (const auto& [start, region] : pinned_) {
      if (region->holder == Holder::kUs) driver_.unregister_host(region->memory);
    }
  }

  void want(MutableBytes memory, std::shared_ptr<const void> keeper, std::string name) {
    if (memory.empty() || covered(memory)) return;
    const std::lock_guard lock(mutex_);
    if (stopping_ || covered(memory)) return;
    const auto same = [&](const Wanted& wanted) {
      return wanted.region->memory.data() == memory.data() && wanted.region->memory.size() == memory.size();
    };
    if (std::ranges::any_of(wanted_, same)) return;
    auto region = std::make_shared<Region>(static_cast<std::size_t>(driver_.device_count()));
    region->memory = memory;
    region->keeper = std::move(keeper);
    region->name = std::move(name);
    wanted_.push_back({std::move(region), Clock::now(), false, false});
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    changed_.notify_all();
  }

  void add_pinned(MutableBytes memory) {
    if (memory.empty()) return;
    auto region = std::make_shared<Region>(static_cast<std::size_t>(driver_.device_count()));
    region->memory = memory;
    region->holder = Holder::kDriver;
    const std::unique_lock lock(table_mutex_);
    pinned_.insert_or_assign(memory.data(), std::move(region));
  }

  void forget(const std::byte* memory) {
    const std::unique_lock lock(table_mutex_);
    const auto found = pinned_.find(memory);
    if (found != pinned_.end() && found->second->holder == Holder::kDriver) pinned_.erase(found);
  }

  std::optional<Found> device_address(int device, ConstBytes range) {
    std::shared_ptr<Region> region;
    Use use;
    {
      const std::shared_lock lock(table_mutex_);
      region = around(range);
      if (region == nullptr) return std::nullopt;
      use = region->used;
    }
    // Asked outside of the lock, and safely: while `use` lives the region stays pinned.
    const auto address = region->holder == Holder::kOthers ? others_address(device, range) : own_address(device, *region, range);
    if (!address && region->holder == Holder::kOthers) region->lost.store(true, std::memory_order_relaxed);
    if (!address) return std::nullopt;
    return Found{*address, std::move(use)};
  }

  bool wait_settled(Deadline deadline) {
    std::unique_lock lock(mutex_);
    // On the system clock: ThreadSanitizer does not know the call that waits on the steady one.
    const auto until = std::chrono::system_clock::now() + std::min<std::chrono::nanoseconds>(deadline.left(), std::chrono::hours(1));
    return changed_.wait_until(lock, until, [this] { return std::ranges::all_of(wanted_, &Wanted::refused); });
  }

 private:
  using Clock = Deadline::Clock;
  enum class Holder : std::uint8_t { kUs, kOthers, kDriver };  // who has pinned it and lets it go

  struct Region {
    explicit Region(std::size_t devices) : addresses(devices) {}
    MutableBytes memory;
    std::shared_ptr<const void> keeper;
    std::string name;
    Holder holder = Holder::kUs;
    std::atomic<bool> lost{false};  // others had pinned it, and some of it is not pinned any more
    // Uses are copies of it, so its count tells whether there are any.
    std::shared_ptr<const void> used = std::make_shared<char>();
    std::vector<std::atomic<std::uint64_t>> addresses;  // of the first byte, by device; 0: not asked yet
  };

  struct Wanted {
    std::shared_ptr<Region> region;
    Clock::time_point next_try;
    bool refused = false;  // at least once
    bool said = false;
  };

  // The pinned region that `range` is in. With table_mutex_.
  std::shared_ptr<Region> around(ConstBytes range) const {
    const auto after = pinned_.upper_bound(range.data());
    if (after == pinned_.begin()) return nullptr;
    const auto& region = std::prev(after)->second;
    const auto offset = static_cast<std::size_t>(range.data() - region->memory.data());
    const bool inside = offset <= region->memory.size() && range.size() <= region->memory.size() - offset;
    return inside ? region : nullptr;
  }

  bool covered(ConstBytes range) const {
    const std::shared_lock lock(table_mutex_);
    return around(range) != nullptr;
  }

  std::optional<std::uint64_t> own_address(int device, Region& region, ConstBytes range) {
    if (device < 0 || static_cast<std::size_t>(device) >= region.addresses.size()) return std::nullopt;
    auto& known = region.addresses[static_cast<std::size_t>(device)];
    std::uint64_t start = known.load(std::memory_order_relaxed);
    if (start == 0) {
      const auto asked = driver_.device_address(device, region.memory.data());
      if (!asked) {
        log::debug("cuda: device {} does not see {}: {}", device, region.name, asked.status().message());
        return std::nullopt;
      }
      start = *asked;
      known.store(start, std::memory_order_relaxed);
    }
    return start + static_cast<std::uint64_t>(range.data() - region.memory.data());
  }

  // Of memory whose pinning is not ours: it may have ended, or be of a part alone, and a device that touched what is not pinned would
  // lose its context. So both ends are asked each time.
  std::optional<std::uint64_t> others_address(int device, ConstBytes range) {
    const auto first = driver_.device_address(device, range.data());
    if (!first || range.size() <= 1) return first ? std::optional(*first) : std::nullopt;
    const auto last = driver_.device_address(device, range.data() + range.size() - 1);
    if (!last || *last - *first != range.size() - 1) return std::nullopt;
    return *first;
  }

  // Whether all of it seems to be pinned, by whoever.
  bool pinned_by_others(MutableBytes memory) {
    for (std::uint64_t i = 0; i <= kProbes; ++i) {
      const std::uint64_t offset = i == kProbes ? memory.size() - 1 : memory.size() / kProbes * i;
      if (!driver_.device_address(0, memory.data() + offset)) return false;
    }
    return true;
  }

  void run() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      lock.unlock();
      sweep();
      lock.lock();
      if (pin_next(lock)) continue;
      changed_.wait_until(lock, std::chrono::system_clock::now() + kSweep);
    }
  }

  // Has the kernel make the pages that are not there yet, which pinning would do otherwise, inside of the driver. Seen without it: while 18
  // GiB of fresh memory were pinned, the first put of the process took more than its 5 s; most likely its calls of the driver waited.
  void populate(MutableBytes memory) {
#ifdef MADV_POPULATE_WRITE  // Linux 5.14; without it, or where it fails, pinning tells
    for (std::size_t at = 0; at < memory.size(); at += kPopulatedAtOnce) {
      const auto part = memory.subspan(at, std::min(kPopulatedAtOnce, memory.size() - at));
      if (::madvise(part.data(), part.size(), MADV_POPULATE_WRITE) != 0) return;
      const std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
#endif
  }

  // Tries one region that is due. False: there is none.
  bool pin_next(std::unique_lock<std::mutex>& lock) {
    const auto now = Clock::now();
    const auto due = std::ranges::find_if(wanted_, [&](const Wanted& wanted) { return wanted.next_try <= now; });
    if (stopping_ || due == wanted_.end()) return false;
    const auto region = due->region;
    // What overlaps a region of ours waits until that one is let go: two mappings do not share addresses, so that is soon.
    if (overlaps(region->memory)) {
      due->next_try = now + kSweep;
      due->refused = true;
      changed_.notify_all();
      return true;
    }
    lock.unlock();
    populate(region->memory);
    Status status = driver_.register_host(region->memory);
    if (status.code() == ErrorCode::kSegmentAlreadyExists && pinned_by_others(region->memory)) {
      region->holder = Holder::kOthers;
      status = {};
    }
    lock.lock();
    // Only this thread takes entries out.
    const auto tried = std::ranges::find(wanted_, region, &Wanted::region);
    if (status.ok()) {
      log::debug("cuda: pinned {} ({})", region->name, size_text(region->memory.size()));
      const std::unique_lock table(table_mutex_);
      pinned_.insert_or_assign(region->memory.data(), region);
      wanted_.erase(tried);
    } else {
      if (!std::exchange(tried->said, true)) say_refused(*region, status);
      tried->refused = true;
      tried->next_try = Clock::now() + try_again_;
    }
    changed_.notify_all();
    return true;
  }

  bool overlaps(ConstBytes memory) const {
    const std::shared_lock lock(table_mutex_);
    const auto after = pinned_.lower_bound(memory.data() + memory.size());
    if (after == pinned_.begin()) return false;
    const auto& last = std::prev(after)->second->memory;
    return last.data() + last.size() > memory.data();
  }

  void say_refused(const Region& region, const Status& status) const {
    std::string remedy;
    if (status.code() == ErrorCode::kNoAvailableHandle) {
      remedy = fmt::format(
          ". RLIMIT_MEMLOCK is {}; raise it with ulimit -l unlimited (a container: --ulimit memlock=-1, a unit: LimitMEMLOCK=infinity), "
          "or free memory that others have pinned",
          memlock_text());
    } else if (status.code() == ErrorCode::kSegmentAlreadyExists) {
      remedy = ". Somebody else in this process has pinned a part of it and would have to let it go";
    }
    log::warning("cuda: {} ({}) cannot be pinned, so device data passes through staging memory: {}{}. It is tried again every {} s",
                 region.name, size_text(region.memory.size()), status.message(), remedy,
                 std::chrono::duration_cast<std::chrono::seconds>(try_again_).count());
  }

  // Lets go what nobody else holds, and wants again what others have let go. The memory is unpinned, and its mapping ended, outside of the
  // locks.
  void sweep() {
    const auto abandoned = [](const Region& region) {
      return region.keeper != nullptr && region.keeper.use_count() == 1 && region.used.use_count() == 1;
    };
    std::vector<std::shared_ptr<Region>> gone;
    std::vector<Wanted> given_up;  // never pinned
    {
      const std::lock_guard lock(mutex_);
      const auto kept = std::ranges::stable_partition(wanted_, [&](const Wanted& wanted) { return !abandoned(*wanted.region); });
      given_up.assign(std::move_iterator(kept.begin()), std::move_iterator(kept.end()));
      wanted_.erase(kept.begin(), kept.end());
      const std::unique_lock table(table_mutex_);
      for (auto entry = pinned_.begin(); entry != pinned_.end();) {
        Region& region = *entry->second;
        if (abandoned(region)) {
          gone.push_back(std::move(entry->second));
          entry = pinned_.erase(entry);
        } else if (region.lost.load(std::memory_order_relaxed) && region.used.use_count() == 1) {
          auto anew = std::make_shared<Region>(region.addresses.size());
          anew->memory = region.memory;
          anew->keeper = region.keeper;
          anew->name = region.name;
          wanted_.push_back({std::move(anew), Clock::now() + try_again_, true, false});
          entry = pinned_.erase(entry);
        } else {
          ++entry;
        }
      }
    }
    if (!given_up.empty()) changed_.notify_all();
    for (const auto& region : gone) {
      if (region->holder == Holder::kUs) driver_.unregister_host(region->memory);
    }
  }

  Driver& driver_;
  const std::chrono::milliseconds try_again_;
  mutable std::shared_mutex table_mutex_;                                    // guards pinned_; never held while the driver is called
  std::map<const std::byte*, std::shared_ptr<Region>, std::less<>> pinned_;  // by first byte; no two overlap
  std::mutex mutex_;                                                         // guards what follows; taken before table_mutex_
  std::condition_variable changed_;
  std::vector<Wanted> wanted_;  // not pinned (yet), in order
  bool stopping_ = false;
  std::thread thread_;  // started with mutex_
};

HostRegions::HostRegions(Driver& driver, std::chrono::milliseconds try_again) : impl_(std::make_unique<Impl>(driver, try_again)) {}
HostRegions::~HostRegions() = default;

void HostRegions::want(MutableBytes region, std::shared_ptr<const void> keeper, std::string name) {
  impl_->want(region, std::move(keeper), std::move(name));
}

void HostRegions::add_pinned(MutableBytes memory) { impl_->add_pinned(memory); }
void HostRegions::forget(const std::byte* memory) { impl_->forget(memory); }

std::optional<HostRegions::Found> HostRegions::device_address(int device, ConstBytes range) { return impl_->device_address(device, range); }

bool HostRegions::wait_settled(Deadline deadline) { return impl_->wait_settled(deadline); }

}  // namespace moonpool::transfer::cuda
