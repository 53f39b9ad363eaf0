// The transports under the conformance tests, each with an owner that it reaches, and what the tests do with them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "net/server.h"
#include "transfer/fake_transport.h"
#include "transfer/local/local_transport.h"
#include "transfer/rdma/pair_for_test.h"
#include "transfer/shm/owner_server.h"
#include "transfer/shm/shm_transport.h"
#include "transfer/tcp/tcp_transport.h"

namespace moonpool::transfer {

inline constexpr std::uint64_t kSegmentSize = std::uint64_t{64} << 20;
inline constexpr Term kTerm{3};

inline Deadline soon() { return Deadline::after(std::chrono::seconds(30)); }

// A transport and the owner that it reaches.
class Rig {
 public:
  virtual ~Rig() = default;
  virtual Transport& transport() = 0;
  // The owner has mounted it.
  virtual void mounted(const Incarnation&) {}
  // It may deliver what was retired, while its bytes are still there.
  virtual bool reads_unasked() { return false; }
  // It has memory in common with the owner.
  virtual bool writes_in_place() { return false; }
  Owner owner;
  Peer peer{NodeId::generate(), {"127.0.0.1", 1}};
};

class LocalRig : public Rig {
 public:
  Transport& transport() override { return transport_; }
  bool writes_in_place() override { return true; }

 private:
  LocalTransport transport_{owner, peer.node};
};

class FakeRig : public Rig {
 public:
  FakeRig() { transport_.attach(peer.node, owner); }
  Transport& transport() override { return transport_; }
  bool writes_in_place() override { return true; }

 private:
  FakeTransport transport_;
};

class TcpRig : public Rig {
 public:
  explicit TcpRig(std::size_t stripes) : stripes_(stripes) {
    owner.serve(server_);
    EXPECT_TRUE(server_.start().ok());
    peer.endpoint.port = server_.port();
  }
  ~TcpRig() override { server_.stop(); }
  Transport& transport() override { return transport_; }

 private:
  const std::size_t stripes_;
  net::Server server_{{peer.node, "", "test"}, {}};
  net::LanePool lanes_{{NodeId::generate(), "", "test"}};
  TcpTransport transport_{lanes_, true, stripes_};
};

class ShmRig : public Rig {
 public:
  ShmRig() { EXPECT_TRUE(server_.start().ok()); }
  ~ShmRig() override { server_.stop(); }
  Transport& transport() override { return transport_; }
  bool writes_in_place() override { return true; }

 private:
  net::Identity identity_{peer.node, "the token", "test"};
  OwnerServer server_{owner, identity_};
  ShmTransport transport_{net::Identity{NodeId::generate(), "the token", "test"}};
};

// Between simulated NICs, two on each side; or real ones, which are then both ends.
class RdmaRig : public Rig {
 public:
  explicit RdmaRig(const std::shared_ptr<rdma::Devices>& real = nullptr)
      : pair_(std::make_unique<rdma::PairForTest>(owner, peer.node, real ? real : rdma::simulated_devices(fabric_, "owner", 2),
                                                  real ? real : rdma::simulated_devices(fabric_, "user", 2))),
        transport_(pair_->user().transport(true)) {
    peer.endpoint.port = pair_->port();
  }
  Transport& transport() override { return *transport_; }
  [[nodiscard]] rdma::MemoryMap& nics() { return pair_->user().memory(); }
  [[nodiscard]] rdma::SimulatedFabric& fabric() { return fabric_; }
  bool reads_unasked() override { return true; }
  void mounted(const Incarnation& incarnation) override {
    const Status served = pair_->owner_end().wait_served(incarnation, soon());
    ASSERT_TRUE(served.ok()) << served.to_string();
  }

 private:
  rdma::SimulatedFabric fabric_;
  std::unique_ptr<rdma::PairForTest> pair_;
  std::unique_ptr<Transport> transport_;
};

struct Case {
  const char* name;
  std::function<std::unique_ptr<Rig>()> make;
};

inline std::vector<std::byte> random_bytes(std::size_t size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(size);
  // Eight bytes a draw: without optimisation, under a sanitizer, the generator is most of what a test of many megabytes costs.
  for (std::size_t at = 0; at < size; at += sizeof(std::uint64_t)) {
    const std::uint64_t drawn = random();
    std::memcpy(bytes.data() + at, &drawn, std::min(sizeof drawn, size - at));
  }
  return bytes;
}

// Cuts bytes into pieces of odd sizes, some of them empty.
template <typename Bytes, typename Source>
std::vector<Bytes> scatter(Source& source, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Bytes> pieces{Bytes(source).first(0)};
  for (std::size_t at = 0; at < source.size();) {
    const std::size_t size = std::min<std::size_t>(source.size() - at, random() % 100'001);
    pieces.push_back(Bytes(source).subspan(at, size));
    at += size;
  }
  pieces.push_back(Bytes(source).first(0));
  return pieces;
}

class TransportConformanceTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    rig_ = GetParam().make();
    ASSERT_NE(rig_, nullptr);
    ASSERT_TRUE(owner().adopt_term(kTerm, soon()).ok());
    auto mounted = owner().mount(kSegmentSize);
    ASSERT_TRUE(mounted.ok()) << mounted.status().to_string();
    incarnation_ = *mounted;
    rig_->mounted(incarnation_);
    ASSERT_TRUE(transport().reaches(rig_->peer));
  }

  Owner& owner() { return rig_->owner; }
  Transport& transport() { return rig_->transport(); }
  // Of a new grant each time.
  ExtentRef extent(std::uint64_t offset, std::uint64_t length) { return {incarnation_, offset, length, Version{kTerm, ++count_}}; }

  WriteOperation write(const ExtentRef& ref, std::span<const ConstBytes> source, Deadline deadline) {
    WriteOperation operation{ref, "the key", source, {}, 0};
    transport().write(rig_->peer, {&operation, 1}, deadline);
    return operation;
  }
  WriteOperation write(const ExtentRef& ref, const std::vector<std::byte>& data) {
    const ConstBytes piece(data);
    return write(ref, {&piece, 1}, soon());
  }
  Status read(const ExtentRef& ref, std::uint64_t start, std::vector<std::byte>& into, std::uint64_t checksum) {
    const MutableBytes piece(into);
    ReadOperation operation{ref, start, into.size(), {&piece, 1}, checksum, {}};
    transport().read(rig_->peer, {&operation, 1}, soon());
    return operation.status;
  }
  std::byte& owners_byte(std::uint64_t offset) { return *reinterpret_cast<std::byte*>(owner().segments()[0].base + offset); }

  std::unique_ptr<Rig> rig_;
  Incarnation incarnation_;
  std::atomic<std::uint64_t> count_{0};
};

}  // namespace moonpool::transfer
