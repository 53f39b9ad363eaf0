// Pinned host memory by which device data passes to and from peers without common memory: a ring in Settings::staging_bytes, made at its
// first use, handed out in leases.
//
// A request that is larger than the ring gets memory of its own, pinned for it alone (slow, said once). Threads: any; waiting callers are
// served in their order. Lifetime: outlives its leases.
#pragma once

#include <memory>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/cuda/host_regions.h"
#include "transfer/cuda/settings.h"

namespace moonpool::transfer::cuda {

class Staging {
 public:
  // Pinned memory, given back by the destructor. Move-only.
  class Lease {
   public:
    Lease() = default;
    Lease(Lease&& other) noexcept;
    Lease& operator=(Lease&& other) noexcept;
    ~Lease();
    [[nodiscard]] MutableBytes memory() const { return memory_; }

   private:
    friend class Staging;
    Staging* owner_ = nullptr;
    MutableBytes memory_;
  };

  Staging(Driver& driver, HostRegions& regions, const Settings& settings);
  ~Staging();
  [[nodiscard]] std::uint64_t capacity() const;
  // kRpcTimeout when others held it until the deadline; kNoAvailableHandle when it cannot be pinned.
  [[nodiscard]] Result<Lease> acquire(std::uint64_t size, Deadline deadline);
  // Null when there is not enough at once.
  [[nodiscard]] Result<Lease> try_acquire(std::uint64_t size);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer::cuda
