// Memory of a device on the bus (a GPU), as others on the bus reach it: its dma-buf (Linux, "Buffer Sharing and Synchronization",
// https://docs.kernel.org/driver-api/dma-buf.html), by which a NIC reads and writes it without the host (GPUDirect RDMA).
//
// A range of such memory has addresses, which work requests name, but the host cannot touch what is there.
#pragma once

#include <cstdint>

namespace moonpool::transfer {

struct DmaBuf {
  int file = -1;                // open for the length of the call that is given it; whoever registers it keeps the memory
  std::uint64_t offset = 0;     // of the range within the buffer
  std::int32_t numa_node = -1;  // that the device is on; -1: unknown
};

}  // namespace moonpool::transfer
