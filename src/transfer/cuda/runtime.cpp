#include "transfer/cuda/runtime.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <mutex>
#include <shared_mutex>
#include <utility>
#include <vector>

#include "base/logging.h"
#include "transfer/cuda/driver/loaded_driver.h"

namespace moonpool::transfer::cuda {

// Where registered buffers lie, by their first byte. A few dozen at most.
class Runtime::Ranges {
 public:
  struct Range {
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    std::optional<int> device;  // nullopt: host memory
  };

  void lock_shared() const { mutex_.lock_shared(); }
  void unlock_shared() const { mutex_.unlock_shared(); }

  // With the lock, as long as what is returned is used; null when it is in none. `guess`: tried first, and where it was found.
  const Range* around(std::uint64_t address, std::uint32_t& guess) const {
    if (guess < ranges_.size() && ranges_[guess].begin <= address && address < ranges_[guess].end) return &ranges_[guess];
    const auto after = std::ranges::upper_bound(ranges_, address, {}, &Range::begin);
    if (after == ranges_.begin() || std::prev(after)->end <= address) return nullptr;
    guess = static_cast<std::uint32_t>(std::prev(after) - ranges_.begin());
    return &ranges_[guess];
  }

  void add(const Range& range) {
    const std::unique_lock lock(mutex_);
    const auto at = std::ranges::lower_bound(ranges_, range.begin, {}, &Range::begin);
    if (at != ranges_.end() && at->begin == range.begin) {
      *at = range;
    } else {
      ranges_.insert(at, range);
    }
  }

  void remove(std::uint64_t begin) {
    const std::unique_lock lock(mutex_);
    const auto at = std::ranges::lower_bound(ranges_, begin, {}, &Range::begin);
    if (at != ranges_.end() && at->begin == begin) ranges_.erase(at);
  }

 private:
  mutable std::shared_mutex mutex_;  // guards ranges_
  std::vector<Range> ranges_;        // sorted; where they overlap one may hide another, whose addresses the driver is asked for
};

namespace {

std::optional<int> ask(const Driver& driver, std::uint64_t address) {
  const auto memory = driver.locate(address);
  return memory ? std::optional(memory->device) : std::nullopt;
}

bool has_device() { return ::access("/dev/nvidiactl", F_OK) == 0 || ::access("/dev/dxg", F_OK) == 0; }

// What is known of CUDA in this process. Never destroyed: threads may move bytes while it ends.
struct Process {
  Process() {
    if (has_device()) return;
    reason = "this machine has no NVIDIA device (no /dev/nvidiactl)";
    never = true;
  }

  std::atomic<Runtime*> current{nullptr};  // what of_process() gives
  std::atomic<bool> never{false};          // no use in looking again
  std::mutex mutex;                        // guards what follows, and changes of the above
  Runtime* real = nullptr;
  bool replaced = false;
  std::string reason = "libcuda.so.1 is not loaded in this process";
};

Process& process() {
  static auto* const kept = new Process;
  return *kept;
}

// Starts the runtime with the driver that is loaded. With the mutex.
void start(Process& known) {
  if (known.real != nullptr || known.never) return;
  auto driver = open_driver();
  if (!driver) {
    known.reason = driver.status().message();
    known.never = true;
    log::warning("cuda: the driver is loaded in this process but device memory cannot be used: {}", known.reason);
    return;
  }
  known.real = new Runtime(std::move(driver).value(), Settings::from_environment());
}

}  // namespace

Runtime::Runtime(std::unique_ptr<Driver> driver, const Settings& settings)
    : settings_(settings),
      driver_(std::move(driver)),
      regions_(*driver_),
      staging_(*driver_, regions_, settings_),
      copier_(*driver_, regions_, settings_),
      ranges_(std::make_unique<Ranges>()) {}

Runtime::~Runtime() = default;

Runtime* Runtime::of_process() {
  auto& known = process();
  if (auto* const runtime = known.current.load(std::memory_order_acquire); runtime != nullptr) return runtime;
  if (known.never.load(std::memory_order_relaxed)) return nullptr;
  if (!driver_is_loaded()) return nullptr;
  const std::lock_guard lock(known.mutex);
  start(known);
  if (!known.replaced) known.current.store(known.real, std::memory_order_release);
  return known.current.load(std::memory_order_relaxed);
}

std::string Runtime::why() {
  auto& known = process();
  if (of_process() != nullptr) return {};
  const std::lock_guard lock(known.mutex);
  return known.reason;
}

void Runtime::replace_for_test(Runtime* runtime) {
  auto& known = process();
  const std::lock_guard lock(known.mutex);
  known.replaced = runtime != nullptr;
  known.current.store(known.replaced ? runtime : known.real, std::memory_order_release);
}

std::optional<int> Runtime::device_of(const void* address) const {
  const auto number = reinterpret_cast<std::uint64_t>(address);
  {
    const std::shared_lock lock(*ranges_);
    std::uint32_t guess = 0;
    if (const auto* const range = ranges_->around(number, guess)) return range->device;
  }
  return ask(*driver_, number);
}

Runtime::LookUp::LookUp(const Runtime& runtime) : runtime_(runtime) { runtime_.ranges_->lock_shared(); }
Runtime::LookUp::~LookUp() { runtime_.ranges_->unlock_shared(); }

std::optional<int> Runtime::LookUp::device_of(const void* address) {
  if (place_ == guesses_.size()) guesses_.push_back(place_ == 0 ? 0 : guesses_.back());
  const auto number = reinterpret_cast<std::uint64_t>(address);
  if (const auto* const range = runtime_.ranges_->around(number, guesses_[place_++])) return range->device;
  return ask(*runtime_.driver_, number);
}

void Runtime::remember(ConstBytes range) {
  if (range.empty()) return;
  const auto begin = reinterpret_cast<std::uint64_t>(range.data());
  ranges_->add({begin, begin + range.size(), ask(*driver_, begin)});
}

void Runtime::forget(const void* address) { ranges_->remove(reinterpret_cast<std::uint64_t>(address)); }

}  // namespace moonpool::transfer::cuda
