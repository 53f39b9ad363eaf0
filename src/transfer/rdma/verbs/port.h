// One port of one device, opened: what all queue pairs and registrations on it share.
//
// Owned by VerbsNic; constant but for lid and sink. Threads: any.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "transfer/rdma/nic.h"
#include "transfer/rdma/verbs/library.h"

namespace moonpool::transfer::rdma {

struct Port {
  const Verbs* verbs = nullptr;
  ibv_context* context = nullptr;
  ibv_pd* domain = nullptr;
  NicInfo info;
  std::atomic<std::uint32_t> lid{0};  // InfiniBand: as the subnet manager has given it lately
  bool needs_global_route = false;    // InfiniBand: the port takes no packet without a global route header
  // iWARP: where the reads go that tell when a write has been placed (verbs_queue_pair.h). Their content is of no interest.
  alignas(64) std::array<std::byte, 64> sink{};
  std::unique_ptr<Registration> sink_registration;
};

}  // namespace moonpool::transfer::rdma
