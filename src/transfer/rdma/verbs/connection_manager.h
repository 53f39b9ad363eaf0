// Connecting queue pairs through librdmacm: the only way for iWARP, a choice for the others.
//
// The passive side listens on an address of its NIC (one listener per address, the port chosen by the kernel) and knows by a ticket, a
// random number in the private data of the request, for which of its queue pairs a connection is; a request without a valid ticket is
// rejected, and a ticket is good for one connection. Queue pairs belong to the Nic's own context and are named to rdma_cm by number:
// librdmacm has contexts of its own, on which our memory is not registered.
//
// The end of a connection is heard by the event thread on both sides, which breaks the queue pair off: what is outstanding is reported as
// failed, whoever polls or sleeps, and poll() does nothing for it.
//
// Threads: the passive side's requests are answered on the event thread, the active side connects on its caller's. Ownership: one
// ConnectionManager per NIC, made when it is first needed, outlives the queue pairs. Costs: of each queue pair that the active side has
// connected, a descriptor in the event thread's poll(2).
#pragma once

#include <rdma/rdma_cma.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "base/deadline.h"
#include "transfer/rdma/nic.h"
#include "transfer/rdma/verbs/event_thread.h"
#include "transfer/rdma/verbs/library.h"
#include "transfer/rdma/verbs/port.h"

namespace moonpool::transfer::rdma {

// The queue pair as rdma_cm's work sees it.
struct ManagedQueuePair {
  ibv_qp* queue_pair = nullptr;
  const QueuePairOptions* options = nullptr;
  std::atomic<bool>* connected = nullptr;  // set when it is
  std::function<void()> ended;             // called when it is over, or has not come to be; any thread, perhaps repeatedly
};

// One end of a connection. Destroyed after its queue pair.
class ManagedConnection {
 public:
  virtual ~ManagedConnection() = default;
  // The passive side's host, port and ticket; nothing for the active side.
  virtual void describe(QueuePairAddress& address) const = 0;
  // No callback touches the queue pair any more. Before it is destroyed.
  virtual void let_go() = 0;
  // The active side's: returns when connected. kUnavailable, kRpcTimeout.
  virtual Status connect(const QueuePairAddress& peer, const Gid& from) = 0;
};

class ConnectionManager {
 public:
  ConnectionManager(const ConnectionManagerLibrary& library, Port& port, std::shared_ptr<EventThread> events);
  ~ConnectionManager();
  ConnectionManager(const ConnectionManager&) = delete;
  ConnectionManager& operator=(const ConnectionManager&) = delete;

  // Waits for a connection to `address`, one of the NIC's (its first one where that is not an IP address: InfiniBand).
  [[nodiscard]] Result<std::unique_ptr<ManagedConnection>> expect(const ManagedQueuePair& queue_pair, const Gid& address);
  [[nodiscard]] std::unique_ptr<ManagedConnection> prepare(const ManagedQueuePair& queue_pair);

 private:
  class Active;
  class Passive;
  struct Listener {
    rdma_cm_id* id = nullptr;
    std::uint16_t port = 0;
  };

  Status start();
  Result<std::uint16_t> listen_on(const Gid& address);
  bool handle_event();
  void handle(rdma_cm_event& event);
  // The id of the request when it was accepted, which then belongs to the connection.
  bool accept(rdma_cm_event& event);

  const ConnectionManagerLibrary& library_;
  Port& port_;
  std::shared_ptr<EventThread> events_;
  rdma_event_channel* channel_ = nullptr;
  std::mutex mutex_;
  std::map<std::string, Listener> listeners_;        // by text of the address
  std::map<std::uint64_t, Passive*> by_ticket_;      // not connected yet
  std::map<const rdma_cm_id*, Passive*> connected_;  // and those that are
};

}  // namespace moonpool::transfer::rdma
