// The owner's end of RDMA sessions: queue pairs made for peers that have shaken hands with this process's server, and the keys of what it
// serves.
//
// A session is bound to its control connection: when that closes, or its peer is fenced, its queue pairs are destroyed before anything else
// is done about it, so no byte of that peer arrives any more. Registers METHOD_RDMA_OPEN and METHOD_RDMA_KEYS; rdma/extent_service.h adds
// the store's methods. Queue pairs are made on a thread of the service's own: handlers do not block. Threads: any. Ownership: outlives the
// server.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/deadline.h"
#include "net/server.h"
#include "transfer/rdma/memory_map.h"
#include "transfer/rdma/options.h"

namespace moonpool::transfer::rdma {

class ServedSession {
 public:
  virtual ~ServedSession() = default;
  // Destroys these rails' queue pairs (none when the list is empty: fence() takes all); returns when nothing arrives over them any more.
  // Unknown numbers and repeating it are harmless.
  virtual void destroy(std::span<const std::uint32_t> rails) = 0;
  // The control connection is closed and all of them are destroyed, for good, when this returns. Then at_end()'s runs, here or on the
  // thread that saw the connection's end first.
  virtual void fence() = 0;
  // Called once, after all queue pairs are gone, for whatever reason. At once when they are already.
  virtual void at_end(std::function<void()> release) = 0;
};

class SessionService {
 public:
  SessionService(std::shared_ptr<MemoryMap> memory, Options options);
  ~SessionService();

  // Before the server's start.
  void serve(net::Server& server);
  // The session of the connection that a request came over; null when it has none.
  [[nodiscard]] std::shared_ptr<ServedSession> session_of(const net::Request& request) const;
  // ServedSession::destroy() on the service's thread, for handlers. kRpcTimeout: nothing is to be trusted that these rails may have
  // carried.
  [[nodiscard]] net::Task<Status> destroy(std::shared_ptr<ServedSession> session, std::vector<std::uint32_t> rails, Deadline deadline);
  // Fences all.
  void stop();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moonpool::transfer::rdma
