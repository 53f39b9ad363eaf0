// Memory by which device data passes to and from peers without common memory: a ring, made at its first use, handed out in leases. Pinned
// host memory (Settings::staging_bytes), or a device's own that NICs reach (paths/nic_rings.h).
//
// A request that is larger than the ring of pinned memory gets memory of its own, pinned for it alone (slow, said once). Threads: any;
// waiting callers are served in their order. Lifetime: outlives its leases.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/deadline.h"
#include "base/result.h"
#include "transfer/cuda/host_regions.h"
#include "transfer/cuda/settings.h"

namespace moonpool::transfer::cuda {

// Where a ring's memory comes from.
struct StagingMemory {
  // kNotSupported: never. After another error a smaller ring is tried at once, and the whole again later.
  std::function<Result<MutableBytes>(std::uint64_t size)> allocate;
  std::function<void(MutableBytes memory)> free;
  std::string name;     // "staging memory", for people
  std::string setting;  // that says how much there is
  bool beyond = false;  // larger requests get memory of their own
};

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

  Staging(StagingMemory memory, std::uint64_t bytes);
  // Of pinned host memory. Driver and regions outlive it.
  Staging(Driver& driver, HostRegions& regions, const Settings& settings);
  ~Staging();
  [[nodiscard]] std::uint64_t capacity() const;
  // kRpcTimeout when others held it until the deadline; kNoAvailableHandle when there is no such memory, or too little of it for this.
  [[nodiscard]] Result<Lease> acquire(std::uint64_t size, Deadline deadline);
  // Null when there is not enough at once.
  [[nodiscard]] Result<Lease> try_acquire(std::uint64_t size);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer::cuda
