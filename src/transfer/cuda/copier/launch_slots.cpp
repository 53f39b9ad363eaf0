#include "transfer/cuda/copier/launch_slots.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "base/logging.h"

namespace moonpool::transfer::cuda {

namespace {
constexpr std::uint64_t kLeastPinned = 16 * 1024;
constexpr std::uint64_t kLeastTable = 256 * 1024;
}  // namespace

Result<std::unique_ptr<LaunchSlot>> LaunchSlot::create(Driver& driver, int device) {
  std::unique_ptr<LaunchSlot> slot(new LaunchSlot(driver, device));
  const auto stream = driver.create_stream(device);
  if (!stream) return stream.status();
  slot->stream_ = *stream;
  slot->has_stream_ = true;
  const auto before = driver.create_event(device);
  if (!before) return before.status();
  slot->before_ = *before;
  slot->has_before_ = true;
  const auto end = driver.create_event(device);
  if (!end) return end.status();
  slot->end_ = *end;
  slot->has_end_ = true;
  return slot;
}

LaunchSlot::~LaunchSlot() {
  if (has_end_) driver_.destroy_event(device_, end_);
  if (has_before_) driver_.destroy_event(device_, before_);
  if (has_stream_) driver_.destroy_stream(device_, stream_);
  if (table_ != 0) driver_.free(device_, table_);
  if (!pinned_.empty()) driver_.free_host(pinned_);
}

Status LaunchSlot::reserve(std::uint64_t bytes) {
  if (bytes <= pinned_.size()) return {};
  const auto memory = driver_.allocate_host(std::bit_ceil(std::max(bytes, kLeastPinned)));
  if (!memory) return memory.status();
  const auto address = driver_.device_address(device_, memory->data());
  if (!address) {
    driver_.free_host(*memory);
    return address.status();
  }
  if (!pinned_.empty()) driver_.free_host(pinned_);
  pinned_ = *memory;
  pinned_address_ = *address;
  return {};
}

Result<std::unique_ptr<LaunchSlot>> LaunchSlots::take(std::uint64_t bytes) {
  std::unique_ptr<LaunchSlot> slot;
  {
    const std::lock_guard lock(mutex_);
    if (taken_ == kMost) {
      return {ErrorCode::kNoAvailableHandle,
              "GPU " + std::to_string(device_) + " has " + std::to_string(taken_) + " copies in flight already: wait for some of them"};
    }
    // The smallest one that is large enough, or else the largest one, so that few grow large.
    const auto size = [](const std::unique_ptr<LaunchSlot>& one) { return one->pinned().size(); };
    auto best = free_.end();
    for (auto one = free_.begin(); one != free_.end(); ++one) {
      const bool better =
          best == free_.end() || (size(*best) < bytes ? size(*one) > size(*best) : size(*one) >= bytes && size(*one) < size(*best));
      if (better) best = one;
    }
    if (best != free_.end()) {
      slot = std::move(*best);
      free_.erase(best);
    }
    ++taken_;
  }
  Status status;
  if (slot == nullptr) {
    auto made = LaunchSlot::create(driver_, device_);
    status = made.status();
    if (made) slot = std::move(made).value();
  }
  if (status.ok()) status = slot->reserve(bytes);
  if (status.ok()) return slot;
  if (slot != nullptr) {
    give_back(std::move(slot), true);
  } else {
    const std::lock_guard lock(mutex_);
    --taken_;
  }
  return status;
}

void LaunchSlots::give_back(std::unique_ptr<LaunchSlot> slot, bool ended) {
  const std::lock_guard lock(mutex_);
  --taken_;
  if (ended && free_.size() < kKept) free_.push_back(std::move(slot));
}

std::uint64_t LaunchSlots::table_of(LaunchSlot& slot, std::uint64_t bytes) {
  if (bytes <= slot.table_bytes_) return slot.table_;
  const auto now = Deadline::Clock::now().time_since_epoch();
  if (now.count() < no_tables_before_.load(std::memory_order_relaxed)) return 0;
  const std::uint64_t size = std::bit_ceil(std::max(bytes, kLeastTable));
  const auto memory = driver_.allocate(device_, size);
  if (!memory) {
    no_tables_before_.store((now + kTryAgain).count(), std::memory_order_relaxed);
    log::info("cuda: no memory on GPU {} for a table of {} bytes, so it is read from the host's, which is slower: {}", device_, size,
              memory.status().message());
    return 0;
  }
  if (slot.table_ != 0) driver_.free(device_, slot.table_);
  slot.table_ = *memory;
  slot.table_bytes_ = size;
  return slot.table_;
}

}  // namespace moonpool::transfer::cuda
