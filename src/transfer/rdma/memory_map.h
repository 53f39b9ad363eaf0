// Which memory of this process its NICs may touch, and under which keys: each range is registered once on every NIC, by address, shared by
// all connections.
//
// Two kinds: local memory, which our own work requests read and write (vLLM's KV cache, the staging buffers), and served memory, which
// peers read and write under the incarnation of its mounting. Served memory gets new registrations with each mounting, so the keys of an
// old one are dead. Registering pins all pages: it costs about 0.15 s per GiB, once. A range that cannot be registered (memlock) is an
// error that names the limit; callers then stage local memory, and serve theirs by TCP.
//
// Either may be memory of a device (a GPU's), given by its dma-buf: the NICs reach it, this process does not, so it is never staged.
//
// Threads: any. A lookup takes a shared lock and no allocation. Leases keep registrations alive while work requests use them, so remove()
// waits for these; revoke() does not wait: it is the fence, and peers' work fails from then on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/ids.h"
#include "base/result.h"
#include "transfer/rdma/devices.h"

namespace moonpool::transfer::rdma {

// One range, registered on all NICs.
struct RegisteredRange {
  MutableBytes memory;
  std::vector<std::unique_ptr<Registration>> by_nic;  // by index in Devices; empty pointers where it failed
  std::int32_t numa_node = -1;                        // where most of its pages are, or the device; -1: unknown
};

struct ServedRange {
  std::uint64_t address = 0;
  std::uint64_t length = 0;
  std::vector<std::uint32_t> remote_keys;  // by index in Devices; 0 where it is not registered there
};

class MemoryMap {
 public:
  explicit MemoryMap(std::shared_ptr<Devices> devices);
  ~MemoryMap();

  // Local memory, in the user's own ranges (register_buffer). kUnavailable with limit and remedy; kSegmentAlreadyExists for an overlap;
  // kNotSupported where no NIC can reach a device's memory.
  Status add_local(MutableBytes memory, const DmaBuf* device = nullptr);
  // Waits for work requests that use it. kInvalidParams when no range begins there; kRpcTimeout.
  Status remove_local(const void* address, Deadline deadline);
  // The range that holds all of `piece`; null when the user has not registered it. The pointer keeps the registration.
  [[nodiscard]] std::shared_ptr<const RegisteredRange> local(ConstBytes piece) const;

  // Served memory. Several ranges of one incarnation are allowed (the transfer engine's buffers).
  Status serve(const Incarnation& incarnation, MutableBytes memory, const DmaBuf* device = nullptr);
  // The keys are dead when it returns. Unknown ones are ignored.
  void revoke(const Incarnation& incarnation);
  void revoke(const Incarnation& incarnation, const void* address);
  // Ordered by address; empty when nothing is served under it.
  [[nodiscard]] std::vector<ServedRange> served(const Incarnation& incarnation) const;

  [[nodiscard]] Devices& devices() const { return *devices_; }

 private:
  class Impl;
  std::shared_ptr<Devices> devices_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer::rdma
