// The master on the wire: parses requests, asks the Coordinator, and waits where the answer has to wait.
//
// What waits: NodeSync for orders; PutStart for room that evicted extents leave, until their owners acknowledge; Remove for the
// owners' acknowledgements; Exist with wait_ms for a hand-over. All on events, no thread is held, each within the caller's deadline (less a
// margin, so that the answer still arrives in time).
// Threads: those of the server. Lifetime: the coordinator and this outlive the server.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>

#include "master/coordinator.h"
#include "net/server.h"

namespace moonpool::master {

class Service {
 public:
  // `nudge` wakes the background sweep: free space has become short.
  Service(Coordinator& coordinator, std::function<void()> nudge) : coordinator_(coordinator), nudge_(std::move(nudge)) {}

  void install(net::Server& server);
  // The master is about to stop: connections that end from now on say nothing about their nodes.
  void end() { ending_ = true; }
  // One request, whatever its method. Public for the fuzzer, which has no network.
  [[nodiscard]] net::Task<net::Reply> serve(net::Request& request);
  // The hot methods: the answer, or the coroutine that waits for it.
  [[nodiscard]] std::optional<net::Task<net::Reply>> serve_quickly(net::Request& request, net::Reply& reply);

 private:
  net::Task<net::Reply> node_sync(net::Request& request);
  std::optional<net::Task<net::Reply>> put_start(net::Request& request, net::Reply& reply);
  net::Task<net::Reply> put_when_there_is_room(net::Request& request, PutBatch batch);
  void finish_put(const PutBatch& batch, net::Reply& reply);
  std::optional<net::Task<net::Reply>> exist(net::Request& request, net::Reply& reply);
  net::Task<net::Reply> exist_when_settled(net::Request& request, Coordinator::Existence existence, NodeId asker,
                                           std::chrono::milliseconds longest, TimeMs started);
  void get_replicas(net::Request& request, net::Reply& reply);
  void put_commit(net::Request& request, net::Reply& reply);
  net::Task<net::Reply> remove(net::Request& request);
  net::Task<net::Reply> remove_matching(net::Request& request);

  Coordinator& coordinator_;
  std::atomic<bool> ending_{false};
  const std::function<void()> nudge_;
};

}  // namespace moonpool::master
