// One thread of the gateway with all that belongs to it: executor, clients, upstream connections.
//
// Threads: adopt() and the stops may be called from any; everything else happens on the worker's own. Ownership: the Gateway's.
#pragma once

#include <memory>
#include <thread>
#include <unordered_set>

#include "gateway/client_connection.h"
#include "gateway/gateway_state.h"
#include "gateway/io.h"
#include "gateway/resolver.h"
#include "gateway/upstream.h"

namespace moonpool::gateway {

class Worker {
 public:
  Worker(GatewayState& state, Resolver& resolver);
  ~Worker();  // stop_now() first
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  [[nodiscard]] asio::io_context& context() { return context_; }
  void run();  // starts the thread
  // Serves a client whose socket was accepted onto this worker's context.
  void adopt(Socket socket);
  void close_idle_clients();
  void interrupt_clients();  // requests that run are ended, their clients told
  void stop_now();           // abandons what is still running; returns when the thread has ended

 private:
  void loop();
  [[nodiscard]] Task<void> serve(std::shared_ptr<ClientConnection> client);
  [[nodiscard]] Task<void> sweep();

  GatewayState& state_;
  // Coroutines that stop_now() abandons are destroyed with the context and take themselves out of this set: it has to outlive it.
  std::unordered_set<ClientConnection*> clients_;
  asio::io_context context_{1};
  UpstreamPool pool_;
  Timer sweep_timer_;
  std::thread thread_;
};

}  // namespace moonpool::gateway
