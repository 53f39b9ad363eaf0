// On which NUMA node memory lies, asked of the kernel without libnuma.
#pragma once

#include <cstdint>

#include "transfer/transport.h"

namespace moonpool::transfer::rdma {

// The node that has most of the range's pages, by a sample of at most 64 of them; -1 when none is there yet, or the kernel does not say (no
// NUMA, a sandbox, a device's memory). Costs one system call.
[[nodiscard]] std::int32_t numa_node_of(ConstBytes memory);

}  // namespace moonpool::transfer::rdma
