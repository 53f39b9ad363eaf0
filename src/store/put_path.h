// A put of a batch: one PutStart, one write per owner, one PutCommit; started over while that can help and time is left.
//
// Each key goes through: granted -> written (one replica is enough) -> committed. What sends a key back to the start, after a short pause:
// a grant that went stale (master restarted), a segment fenced in mid-put, an owner that cannot be reached, a commit that came too late.
// The extents that were not written are given back in the same PutCommit (no bit set), so nothing waits for the master's time-out. A key
// that another writer is putting is waited for: committed is success, vanished means that it is our turn. The last part of the call's time
// is kept for the commit, so that an owner that hangs does not take the other owners' keys with it.
//
// Threads: any number of callers; a call works on its own thread, and on one more per further owner while bytes move.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/deadline.h"
#include "base/ids.h"
#include "store/client.h"
#include "store/master_client.h"
#include "store/standing.h"
#include "store/wire_parts.h"
#include "transfer/transport.h"

namespace moonpool::store {

class PutPath {
 public:
  struct Batch {
    std::span<const std::string_view> keys;
    std::span<const std::span<const ConstBytes>> sources;
    const ReplicaPolicy& policy;
    bool upsert = false;
  };

  // All references outlive this object.
  PutPath(NodeId self, std::string_view tenant, MasterClient& master, transfer::Transport& paths, const Standing& standing);

  // One code per key, in order; duplicates of a key share the first one's result.
  [[nodiscard]] std::vector<std::int32_t> put(const Batch& batch, Deadline deadline) const;

 private:
  class Call;

  const std::string self_bytes_;  // on the wire
  const std::string tenant_;      // as on the wire
  MasterClient& master_;
  transfer::Transport& paths_;
  const Standing& standing_;
};

}  // namespace moonpool::store
