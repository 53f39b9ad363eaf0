// A queue pair's end, as both sides make theirs, and as it travels: RdmaEnd of proto/wire.proto from and to the types of nic.h, with every
// number from the wire checked.
//
// Threads: pure functions.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "transfer/rdma/nic.h"
#include "transfer/rdma/options.h"
#include "wire.pb.h"

namespace moonpool::transfer::rdma {

inline constexpr std::size_t kMaxRailsPerSession = 16;  // NICs that a session uses; what a host with more of them lists beyond is unused
inline constexpr std::size_t kMaxGidsPerEnd = 256;      // a port's table
inline constexpr std::size_t kMaxNicName = 64;

struct End {
  std::string nic;
  std::vector<Gid> gids;  // their index is unknown on this side
  QueuePairAddress address;
  bool infiniband = false;
  bool iwarp = false;
  bool connection_manager = false;
};

// With what both sides take from the user's settings; how much work it holds and who connects it is each side's own.
[[nodiscard]] QueuePairOptions queue_pair_options(const Options& options, Role role, const Gid& gid);

[[nodiscard]] wire::RdmaEnd to_wire(const End& end);
// kProtocol naming what makes no sense.
[[nodiscard]] Result<End> from_wire(const wire::RdmaEnd& end);

}  // namespace moonpool::transfer::rdma
