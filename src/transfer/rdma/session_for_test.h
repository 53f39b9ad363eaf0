// What the tests of sessions share: a fabric, a user with a pool, and an owner with a server that serves one range.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "net/server.h"
#include "tests/support/test_support.h"
#include "transfer/rdma/peer_session.h"
#include "transfer/rdma/session_service.h"
#include "transfer/rdma/simulated_nic.h"

namespace moonpool::transfer::rdma::test {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Operation = WorkRequest::Operation;
using Bytes = std::vector<std::byte>;

inline constexpr std::uint64_t kKiB = 1024;
inline constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

inline Deadline soon() { return Deadline::after(seconds(20)); }

inline Bytes random_bytes(std::size_t size, std::uint64_t seed) {
  Bytes bytes(size);
  std::mt19937_64 random(seed);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

using NicList = std::vector<std::pair<std::string, SimulatedNicSettings>>;

struct Host {
  Host(SimulatedFabric& fabric, const NicList& nics) {
    std::vector<std::unique_ptr<Nic>> made;
    for (const auto& [name, settings] : nics) made.push_back(fabric.make_nic(name, settings));
    devices = std::make_shared<Devices>(std::move(made));
    memory = std::make_shared<MemoryMap>(devices);
  }
  std::shared_ptr<Devices> devices;
  std::shared_ptr<MemoryMap> memory;
};

class OwnerNode {
 public:
  OwnerNode(std::shared_ptr<MemoryMap> memory, const Options& options, std::uint64_t bytes)
      : served(bytes), memory_(std::move(memory)), service_(memory_, options), server_({NodeId::generate(), "", "owner"}, {}) {
    service_.serve(server_);
    // Keeps the session of whoever pings.
    server_.handle(wire::METHOD_PING, [this](net::Request& request) -> net::Task<net::Reply> {
      {
        const std::lock_guard lock(mutex_);
        pinged_by_ = service_.session_of(request);
      }
      co_return net::Reply(wire::PingReply());
    });
    server_.on_closed([this](const net::Session&) { ++closed; });
    EXPECT_TRUE(memory_->serve(incarnation, served).ok());
    const Status status = server_.start();
    EXPECT_TRUE(status.ok()) << status.to_string();
  }
  ~OwnerNode() {
    server_.stop();
    service_.stop();
    memory_->revoke(incarnation);
  }
  [[nodiscard]] net::Endpoint endpoint() const { return {"127.0.0.1", server_.port()}; }
  SessionService& service() { return service_; }
  net::Server& server() { return server_; }
  std::shared_ptr<ServedSession> session_of(PeerSession& session) {
    wire::PingReply reply;
    const Status status = session.control().call(wire::METHOD_PING, wire::Empty(), reply, soon());
    EXPECT_TRUE(status.ok()) << status.to_string();
    const std::lock_guard lock(mutex_);
    return pinged_by_;
  }

  Bytes served;
  const Incarnation incarnation = Incarnation::generate();
  std::atomic<int> closed{0};

 private:
  std::shared_ptr<MemoryMap> memory_;
  std::mutex mutex_;
  std::shared_ptr<ServedSession> pinged_by_;
  SessionService service_;
  net::Server server_;
};

class SessionFixture : public ::testing::Test {
 protected:
  SessionFixture() {
    options_.stripe_bytes = kMiB;
    options_.come_back_after = milliseconds(50);
  }
  void start(std::uint64_t served = 8 * kMiB) {
    user_ = std::make_unique<Host>(fabric_, user_nics_);
    owner_host_ = std::make_unique<Host>(fabric_, owner_nics_);
    owner_ = std::make_unique<OwnerNode>(owner_host_->memory, options_, served);
    pool_ = std::make_unique<SessionPool>(net::Identity{NodeId::generate(), "", "user"}, user_->memory, options_);
  }
  void TearDown() override {
    pool_.reset();
    owner_.reset();
  }
  SessionPool::Lease lease() {
    auto lease = pool_->acquire(owner_->endpoint(), soon());
    EXPECT_TRUE(lease.ok()) << lease.status().to_string();
    return std::move(lease).value();
  }
  std::shared_ptr<const ServedRanges> keys(PeerSession& session) {
    auto keys = session.served(owner_->incarnation, soon());
    EXPECT_TRUE(keys.ok()) << keys.status().to_string();
    return keys.ok() ? *keys : nullptr;
  }
  static Block block(Operation operation, const ServedRange& range, std::uint64_t offset, std::span<const MutableBytes> pieces) {
    Block block;
    block.operation = operation;
    block.range = &range;
    block.remote_address = range.address + offset;
    block.pieces = pieces;
    return block;
  }
  Status move(PeerSession& session, Operation operation, std::uint64_t offset, MutableBytes memory, Deadline deadline = soon()) {
    const auto known = keys(session);
    Block one = block(operation, known->at(0), offset, {&memory, 1});
    session.move({&one, 1}, deadline);
    return one.status;
  }
  // The memory in `count` blocks of equal size, one after the other from the served range's beginning; the first failure, if any.
  Status move_in_blocks(PeerSession& session, Operation operation, MutableBytes memory, std::size_t count, Deadline deadline = soon()) {
    const auto known = keys(session);
    std::vector<MutableBytes> pieces;
    for (std::size_t i = 0; i < count; ++i) pieces.push_back(memory.subspan(i * (memory.size() / count), memory.size() / count));
    std::vector<Block> blocks;
    for (std::size_t i = 0; i < count; ++i) blocks.push_back(block(operation, known->at(0), i * (memory.size() / count), {&pieces[i], 1}));
    session.move(blocks, deadline);
    for (const Block& one : blocks) {
      if (!one.status.ok()) return one.status;
    }
    return {};
  }
  Bytes& registered(std::size_t size, std::uint64_t seed) {
    memories_.push_back(std::make_unique<Bytes>(random_bytes(size, seed)));
    const Status status = user_->memory->add_local(*memories_.back());
    EXPECT_TRUE(status.ok()) << status.to_string();
    return *memories_.back();
  }
  bool arrived(const Bytes& sent, std::size_t offset = 0) const {
    return std::equal(sent.begin(), sent.end(), owner_->served.begin() + static_cast<std::ptrdiff_t>(offset));
  }
  const Counters& counters() const { return pool_->counters(); }
  SimulatedFabric::Counts on(const std::string& nic) const { return fabric_.counts(nic); }

  Options options_;
  SimulatedFabric fabric_;
  NicList user_nics_{{"user0", {}}, {"user1", {}}};
  NicList owner_nics_{{"owner0", {}}, {"owner1", {}}};
  std::vector<std::unique_ptr<Bytes>> memories_;
  std::unique_ptr<Host> user_;
  std::unique_ptr<Host> owner_host_;
  std::unique_ptr<OwnerNode> owner_;
  std::unique_ptr<SessionPool> pool_;
};

}  // namespace moonpool::transfer::rdma::test
