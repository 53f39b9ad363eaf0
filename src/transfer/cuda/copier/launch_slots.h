// What a launch in flight needs of a device: a stream, two events, pinned memory for its tables and checksums, and device memory for large
// tables. Slots are made when more launches are in flight than ever before, and used again.
//
// Freeing memory may make a driver wait for the device, so slots are kept, kKept of each device, and their memory only grows, to the next
// power of two. Device memory is often all taken (by an engine's KV cache): a table that gets none stays in pinned memory, where the kernel
// reads it over the bus.
//
// Threads: any for the pool; a slot belongs to who took it. Lifetime: the pool outlives its slots, the driver the pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/cuda/driver/driver.h"

namespace moonpool::transfer::cuda {

class LaunchSlot {
 public:
  // Nothing of it is in use by the device any more when it is destroyed.
  ~LaunchSlot();
  LaunchSlot(const LaunchSlot&) = delete;
  LaunchSlot& operator=(const LaunchSlot&) = delete;
  [[nodiscard]] static Result<std::unique_ptr<LaunchSlot>> create(Driver& driver, int device);

  [[nodiscard]] int device() const { return device_; }
  [[nodiscard]] Stream stream() const { return stream_; }
  [[nodiscard]] Event before() const { return before_; }  // for what has to end before this launch
  [[nodiscard]] Event end() const { return end_; }        // recorded behind it
  [[nodiscard]] std::span<std::byte> pinned() const { return pinned_; }
  [[nodiscard]] std::uint64_t pinned_address() const { return pinned_address_; }  // as the device sees it
  // Makes the pinned memory at least so large. What was in it is lost.
  [[nodiscard]] Status reserve(std::uint64_t bytes);

 private:
  friend class LaunchSlots;
  LaunchSlot(Driver& driver, int device) : driver_(driver), device_(device) {}

  Driver& driver_;
  const int device_;
  bool has_stream_ = false, has_before_ = false, has_end_ = false;
  Stream stream_{};
  Event before_{}, end_{};
  std::span<std::byte> pinned_;
  std::uint64_t pinned_address_ = 0;
  std::uint64_t table_ = 0;  // device memory; 0: none
  std::uint64_t table_bytes_ = 0;
};

class LaunchSlots {
 public:
  static constexpr std::size_t kKept = 16;
  static constexpr std::size_t kMost = 256;  // in flight; more of them are a mistake of ours, tickets that nobody waits for
  static constexpr std::chrono::seconds kTryAgain{60};

  LaunchSlots(Driver& driver, int device) : driver_(driver), device_(device) {}

  // With room for `bytes` in its pinned memory. kNoAvailableHandle when there is no memory for it.
  [[nodiscard]] Result<std::unique_ptr<LaunchSlot>> take(std::uint64_t bytes);
  // `ended`: without error. A slot whose work failed is not used again.
  void give_back(std::unique_ptr<LaunchSlot> slot, bool ended);
  // Device memory of the slot for a table; 0 when there is none.
  [[nodiscard]] std::uint64_t table_of(LaunchSlot& slot, std::uint64_t bytes);

 private:
  Driver& driver_;
  const int device_;
  std::mutex mutex_;  // guards free_ and taken_; not held while the driver is called
  std::vector<std::unique_ptr<LaunchSlot>> free_;
  std::size_t taken_ = 0;
  std::atomic<Deadline::Clock::rep> no_tables_before_{0};  // device memory was refused
};

}  // namespace moonpool::transfer::cuda
