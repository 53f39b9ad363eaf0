// Memory registered with one NIC, and why it could not be.
#pragma once

#include <infiniband/verbs.h>

#include <cstdint>
#include <memory>
#include <string>

#include "transfer/rdma/nic.h"
#include "transfer/rdma/verbs/library.h"

namespace moonpool::transfer::rdma {

// `read_needs_remote_write`: as in NicInfo.
[[nodiscard]] Result<std::unique_ptr<Registration>> register_with(const Verbs& verbs, ibv_pd* domain, const NicInfo& nic,
                                                                  MutableBytes memory, Access access);

// The same for a device's memory.
[[nodiscard]] Result<std::unique_ptr<Registration>> register_with(const Verbs& verbs, ibv_pd* domain, const NicInfo& nic,
                                                                  MutableBytes memory, const DmaBuf& buffer, Access access);

// What the kernel says about memory that a process may pin, for the text of an error.
struct PinningLimits {
  std::uint64_t limit = 0;  // RLIMIT_MEMLOCK in bytes
  bool unlimited = false;
  std::uint64_t pinned = 0;  // by this process so far
};
[[nodiscard]] PinningLimits pinning_limits();
// One sentence: what was refused and why, and what to do about it.
[[nodiscard]] std::string why_not_registered(int error, const std::string& nic, std::uint64_t bytes, const PinningLimits& limits);

}  // namespace moonpool::transfer::rdma
