// Two ends of RDMA in one process: an owner with its server, and a user of its memory, each with NICs of its own. For the tests of
// transports.
//
// Threads: the test's. The owner outlives it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "net/server.h"
#include "transfer/owner.h"
#include "transfer/rdma/node.h"
#include "transfer/rdma/simulated_nic.h"

namespace moonpool::transfer::rdma {

// `count` NICs "<side>0", "<side>1", ..., each on a network of its own, where the other side's of the same number is.
inline std::shared_ptr<Devices> simulated_devices(SimulatedFabric& fabric, const std::string& side, std::size_t count) {
  std::vector<std::unique_ptr<Nic>> nics;
  for (std::size_t i = 0; i < count; ++i) {
    SimulatedNicSettings settings;
    settings.network = static_cast<std::uint8_t>(i);
    nics.push_back(fabric.make_nic(side + std::to_string(i), settings));
  }
  return std::make_shared<Devices>(std::move(nics));
}

class PairForTest {
 public:
  PairForTest(Owner& owner, const NodeId& owner_node, std::shared_ptr<Devices> owners, std::shared_ptr<Devices> users, Options options = {})
      : owner_(owner), owner_identity_{owner_node, "the token", "test"}, owner_devices_(std::move(owners)), options_(std::move(options)) {
    start_owner();
    user_.emplace(no_memory_, net::Identity{NodeId::generate(), "the token", "test"}, std::move(users), options_);
  }
  ~PairForTest() {
    user_->stop();
    stop_owner();
  }

  // On the port that it had before.
  void start_owner() {
    net::ServerOptions server;
    server.port = port_;
    server_.emplace(owner_identity_, server);
    owner_end_.emplace(owner_, owner_identity_, owner_devices_, options_);
    owner_.serve(*server_);
    owner_end_->serve(*server_);
    const Status started = server_->start();
    EXPECT_TRUE(started.ok()) << started.to_string();
    port_ = server_->port();
  }
  void stop_owner() {
    if (!server_) return;
    server_->stop();
    owner_end_->stop();
    server_.reset();
    owner_end_.reset();
  }

  [[nodiscard]] std::uint16_t port() const { return port_; }
  Node& owner_end() { return *owner_end_; }
  Node& user() { return *user_; }
  const Counters& counters() { return user_->sessions().counters(); }

 private:
  Owner& owner_;
  Owner no_memory_;  // the user's
  const net::Identity owner_identity_;
  const std::shared_ptr<Devices> owner_devices_;
  const Options options_;
  std::uint16_t port_ = 0;
  std::optional<net::Server> server_;
  std::optional<Node> owner_end_;
  std::optional<Node> user_;
};

}  // namespace moonpool::transfer::rdma
