// All that a node of the store has of RDMA, both ends: its NICs, what they serve of its segments, the methods of its server, and the
// sessions with other nodes. Holds the parts together and knows in which order they begin and end; docs/architecture.md, "RDMA", tells what
// they do.
//
// Order: the constructor; serve() before the server's start; memory is mounted before or after that; transport() when peers are wanted.
// stop(): after the server was stopped, before the owner's segments are unmounted.
// Threads: serve(), stop() from one; the rest from any. Ownership: by the node's runtime; the owner outlives it, transports do not.
#pragma once

#include <memory>

#include "base/deadline.h"
#include "net/handshake.h"
#include "net/server.h"
#include "transfer/owner.h"
#include "transfer/rdma/devices.h"
#include "transfer/rdma/extent_service.h"
#include "transfer/rdma/memory_map.h"
#include "transfer/rdma/options.h"
#include "transfer/rdma/peer_session.h"
#include "transfer/rdma/served_segments.h"
#include "transfer/rdma/session_service.h"
#include "transfer/transport.h"

namespace moonpool::transfer::rdma {

class Node {
 public:
  Node(Owner& owner, net::Identity self, std::shared_ptr<Devices> devices, Options options);
  ~Node();  // as stop()

  void serve(net::Server& server);
  // As ServedSegments::wait_served().
  [[nodiscard]] Status wait_served(const Incarnation& incarnation, Deadline deadline) {
    return segments_->wait_served(incarnation, deadline);
  }
  // Over this node's sessions.
  [[nodiscard]] std::unique_ptr<Transport> transport(bool verify);
  [[nodiscard]] SessionPool& sessions() { return pool_; }
  [[nodiscard]] MemoryMap& memory() { return *memory_; }
  // Calls of this node's own transports end with kCancelled soon.
  void close_sessions() { pool_.close(); }
  void stop();

 private:
  const std::shared_ptr<MemoryMap> memory_;
  SessionPool pool_;
  SessionService sessions_;
  ExtentService extents_;
  const std::shared_ptr<ServedSegments> segments_;
};

}  // namespace moonpool::transfer::rdma
