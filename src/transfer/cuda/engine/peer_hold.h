// A hold of a peer's registered device memory, for the time in which a GPU of this process touches it (wire::DeviceHoldRequest). It lives
// on a lane of its own, whose end is the hold's. Threads: one.
#pragma once

#include <optional>
#include <span>

#include "net/lane_pool.h"
#include "transfer/segment_directory.h"

namespace moonpool::transfer::cuda {

class PeerHold {
 public:
  // Some of a registered range of the peer's device memory.
  struct Part {
    std::uint64_t registration = 0;
    AddressRange range;
  };
  // kStaleIncarnation when they are not what `peer` says any more.
  [[nodiscard]] static Result<PeerHold> take(net::LanePool& lanes, const RemoteSegment& peer, std::span<const Part> parts,
                                             Deadline deadline);
  // kTransferFail when the peer may have ended it before: then what was copied since is not to be trusted.
  [[nodiscard]] Status release();

 private:
  PeerHold(net::LanePool::Lease lane, std::uint64_t number) : lane_(std::move(lane)), number_(number) {}
  net::LanePool::Lease lane_;
  std::uint64_t number_;
};

}  // namespace moonpool::transfer::cuda
