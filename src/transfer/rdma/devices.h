// The NICs of this process: chosen once by name, watched for ever. Everything RDMA in a process shares one of these.
//
// Threads: any. Owned by whoever holds the shared_ptr (client runtime, transfer engine, service, transport); NICs outlive all memory and
// queue pairs made of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "transfer/rdma/nic.h"
#include "transfer/rdma/options.h"

namespace moonpool::transfer::rdma {

class Devices {
 public:
  // Those of this host that options.device_names names, in its order. kNotSupported in one line when libibverbs or any device is missing;
  // kInvalidParams listing the names that exist for a wrong one. (verbs/open_devices.cpp)
  [[nodiscard]] static Result<std::shared_ptr<Devices>> open(const Options& options);
  explicit Devices(std::vector<std::unique_ptr<Nic>> nics);

  [[nodiscard]] std::size_t size() const { return nics_.size(); }
  [[nodiscard]] Nic& operator[](std::size_t i) const { return *nics_[i]; }
  [[nodiscard]] bool any_up() const;
  // Grows whenever a port went up or down.
  [[nodiscard]] std::uint64_t generation() const { return generation_->load(std::memory_order_acquire); }
  // By name; size() when there is none.
  [[nodiscard]] std::size_t index_of(std::string_view name) const;

 private:
  std::shared_ptr<std::atomic<std::uint64_t>> generation_ = std::make_shared<std::atomic<std::uint64_t>>(1);
  std::vector<std::unique_ptr<Nic>> nics_;
};

}  // namespace moonpool::transfer::rdma
