// The store's methods of an RDMA session, at the owner: METHOD_RDMA_BEGIN, COMPLETE, PIN and UNPIN (proto/wire.proto), the far end of
// RdmaTransport.
//
// The owner sees nothing of the bytes and computes no checksum. What it does before it publishes an extent is to destroy the rails that
// broke while it was written: a packet that is late on one of them may arrive after the same bytes came over another rail, or after the
// space has become another's. Destroying queue pairs takes milliseconds, so a thread of the service's own does it, also for the owner's
// abort hooks. Threads: the server's for requests. Ownership: owner and sessions outlive it; stop() after the server and the sessions were
// stopped.
#pragma once

#include <memory>
#include <mutex>
#include <unordered_map>

#include "net/server.h"
#include "transfer/owner.h"
#include "transfer/rdma/extent_session.h"
#include "transfer/rdma/job_thread.h"
#include "transfer/rdma/session_service.h"

namespace moonpool::transfer::rdma {

class ExtentService {
 public:
  ExtentService(Owner& owner, SessionService& sessions);
  ~ExtentService();

  // Before the server's start.
  void serve(net::Server& server);
  void stop();

 private:
  class Table;
  struct Session {
    std::shared_ptr<ServedSession> served;
    std::shared_ptr<ExtentSession> extents;
  };
  // kProtocol when the connection has no session.
  [[nodiscard]] Result<Session> session_of(const net::Request& request);
  net::Task<net::Reply> begin(net::Request& request);
  net::Task<net::Reply> complete(net::Request& request);
  net::Task<net::Reply> pin(net::Request& request);
  net::Task<net::Reply> unpin(net::Request& request);

  Owner& owner_;
  SessionService& sessions_;
  const std::shared_ptr<JobThread> jobs_ = std::make_shared<JobThread>();
  const std::shared_ptr<Table> table_;
};

}  // namespace moonpool::transfer::rdma
