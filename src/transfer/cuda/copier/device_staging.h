// Device memory through which large copies between a device and the host pass: gathered there by a kernel and copied on by the device's
// copy engine, or the other way round. A copy engine moves large pieces at the link's full rate in both directions at once, which kernels
// that reach the host's memory themselves do not (docs/benchmarks.md), and takes no multiprocessor meanwhile.
//
// Buffers of one size, made when they are first wanted and kept; how many is bounded by the setting. Where a device has no memory left (an
// engine's KV cache takes most of it) there are fewer or none, and copies go without.
// Threads: any. Lifetime: the driver outlives it; it outlives its buffers' use.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "base/deadline.h"
#include "transfer/cuda/driver/driver.h"

namespace moonpool::transfer::cuda {

class DeviceStaging {
 public:
  static constexpr std::uint64_t kBufferBytes = std::uint64_t{16} << 20;
  static constexpr std::chrono::seconds kTryAgain{60};

  DeviceStaging(Driver& driver, int device, std::uint64_t bytes) : driver_(driver), device_(device), most_(bytes / kBufferBytes) {}
  ~DeviceStaging();
  DeviceStaging(const DeviceStaging&) = delete;
  DeviceStaging& operator=(const DeviceStaging&) = delete;

  // The address of kBufferBytes, aligned for every access; 0 when there is none to be had at once.
  [[nodiscard]] std::uint64_t take();
  // `ended`: without error. A buffer whose work failed is not used again.
  void give_back(std::uint64_t buffer, bool ended);

 private:
  Driver& driver_;
  const int device_;
  const std::uint64_t most_;
  std::mutex mutex_;  // guards what follows; not held while the driver is called
  std::vector<std::uint64_t> free_;
  std::uint64_t made_ = 0;
  Deadline::Clock::time_point next_try_{};  // memory was refused
};

}  // namespace moonpool::transfer::cuda
