// GPUDirect RDMA of the store: memory of each device that this process's NICs reach, in which device data is gathered for them and from
// which it is scattered. Its kernels compute and compare the checksums on the way, which the host, that cannot see the bytes, would have to
// otherwise; a block of many pieces is one work request; and the NICs' tables hold one registration a device, not the user's caches.
//
// A ring is made on a device, exported as a dma-buf and registered with the NICs when it is first asked for. What refuses it (driver, NIC,
// memory that the engine has left) is said once, and device data then goes by way of pinned host memory.
// Threads: any. Lifetime: runtime and NICs outlive it; no lease of a ring is left at its end.
#pragma once

#include <map>
#include <memory>
#include <mutex>

#include "transfer/cuda/runtime.h"
#include "transfer/cuda/staging.h"
#include "transfer/rdma/memory_map.h"

namespace moonpool::transfer::cuda {

class NicRings {
 public:
  explicit NicRings(rdma::MemoryMap& nics) : nics_(nics) {}

  // Null where there is none: ready for leases otherwise. `device` is one of the runtime's.
  [[nodiscard]] Staging* ring(Runtime& runtime, int device);

 private:
  struct Ring {
    std::unique_ptr<Staging> staging;
    bool said = false;
  };
  [[nodiscard]] StagingMemory memory_of(Runtime& runtime, int device) const;

  rdma::MemoryMap& nics_;
  std::mutex mutex_;  // guards what follows; not held while a ring is made
  std::map<int, Ring> rings_;
};

}  // namespace moonpool::transfer::cuda
