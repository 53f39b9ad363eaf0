// A master for tests that want answers which the real one would give only in a bad moment: each method is answered by a function of the
// test's.
//
// Unscripted methods answer kNotSupported. Threads: on() before start(); the functions run on the server's threads, one request at a time
// each.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>

#include "net/server.h"

namespace moonpool::store::testing {

class ScriptedMaster {
 public:
  using Answer = std::function<net::Reply(net::Request&)>;

  explicit ScriptedMaster(std::uint16_t port = 0, std::string token = {});

  void on(wire::Method method, Answer answer);
  // The usual answers of a master without objects: registration, mounting, heartbeats.
  void accept_nodes(std::uint64_t term = 1);
  [[nodiscard]] Status start() { return server_.start(); }
  void stop() { server_.stop(); }
  [[nodiscard]] std::uint16_t port() const { return server_.port(); }
  [[nodiscard]] std::string address() const { return "127.0.0.1:" + std::to_string(port()); }
  [[nodiscard]] int registrations() const { return registrations_; }

 private:
  net::Server server_;
  std::atomic<int> registrations_{0};
};

}  // namespace moonpool::store::testing
