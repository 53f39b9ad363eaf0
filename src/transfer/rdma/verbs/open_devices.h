// The NICs that a process's options name, opened on libibverbs: what Devices::open() wraps.
#pragma once

#include <memory>
#include <vector>

#include "base/result.h"
#include "transfer/rdma/nic.h"
#include "transfer/rdma/options.h"

namespace moonpool::transfer::rdma {

// In the order of Options::device_names. Errors as in Devices::open().
[[nodiscard]] Result<std::vector<std::unique_ptr<Nic>>> open_nics(const Options& options);

}  // namespace moonpool::transfer::rdma
