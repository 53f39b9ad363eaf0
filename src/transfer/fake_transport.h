// A Transport over owners in this process, with faults on command: for the tests of those who use transports.
//
// Each attached owner is a peer by its node id. Faults hold until they are changed; with none it is a correct transport
// (transport_conformance_test.cpp). Bytes go through LocalTransport, so the owner's rules and checksums are the real ones.
// Threads: any. Owners must outlive it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "transfer/local/local_transport.h"
#include "transfer/pieces.h"

namespace moonpool::transfer {

struct Faults {                     // all off
  std::function<void()> gate{};     // called before each batch: blocks as long as the test wants
  std::uint32_t lose = 0;           // so many batches get no answer: kRpcTimeout, and a write may or may not have happened
  bool lost_writes_happen = false;  // whether the lost ones did
  std::uint32_t truncate = 0;       // so many batches end after their first operation: the others are kTransferFail
  std::uint32_t corrupt = 0;        // so many reads find a flipped bit in the segment
  bool dead = false;                // nothing answers: kUnavailable
};

class FakeTransport final : public Transport {
 public:
  void attach(const NodeId& node, Owner& owner) {
    const std::scoped_lock lock(mutex_);
    peers_[node] = std::make_shared<FakePeer>(owner, node);
  }
  void set_faults(const NodeId& node, Faults faults) {
    const std::scoped_lock lock(mutex_);
    peers_.at(node)->faults = std::move(faults);
  }

  [[nodiscard]] std::string_view name() const override { return "fake"; }
  [[nodiscard]] bool reaches(const Peer& peer) const override { return find(peer) != nullptr; }

  void write(const Peer& peer, std::span<WriteOperation> operations, Deadline deadline) override {
    run(peer, operations, [&](FakePeer& fake, std::span<WriteOperation> some) { fake.real.write(peer, some, deadline); });
  }
  void write_in_place(const Peer& peer, std::span<WriteOperation> operations, const Fill& fill, Deadline deadline) override {
    run(peer, operations, [&](FakePeer& fake, std::span<WriteOperation> some) { fake.real.write_in_place(peer, some, fill, deadline); });
  }
  void read(const Peer& peer, std::span<ReadOperation> operations, Deadline deadline) override {
    const auto fake = find(peer);
    if (fake != nullptr && take(fake->faults.corrupt)) {
      for (auto& operation : operations) read_corrupted(peer, *fake, operation, deadline);
      return;
    }
    run(peer, operations, [&](FakePeer& some_peer, std::span<ReadOperation> some) { some_peer.real.read(peer, some, deadline); });
  }

 private:
  struct FakePeer {
    FakePeer(Owner& its_owner, const NodeId& node) : owner(its_owner), real(its_owner, node) {}
    Owner& owner;
    LocalTransport real;
    Faults faults;
  };

  std::shared_ptr<FakePeer> find(const Peer& peer) const {
    const std::scoped_lock lock(mutex_);
    const auto found = peers_.find(peer.node);
    return found == peers_.end() ? nullptr : found->second;
  }

  bool take(std::uint32_t& count) {
    const std::scoped_lock lock(mutex_);
    return count > 0 && count-- > 0;
  }

  template <typename Operation, typename Real>
  void run(const Peer& peer, std::span<Operation> operations, const Real& real) {
    const auto fake = find(peer);
    Faults now;
    if (fake != nullptr) {
      const std::scoped_lock lock(mutex_);
      now = fake->faults;
    }
    if (now.gate) now.gate();
    if (fake == nullptr || now.dead) return fail(operations, ErrorCode::kUnavailable, "cannot be reached");
    if (take(fake->faults.lose)) {
      if (now.lost_writes_happen) real(*fake, operations);
      return fail(operations, ErrorCode::kRpcTimeout, "did not answer in time");
    }
    if (take(fake->faults.truncate)) {
      real(*fake, operations.first(std::min<std::size_t>(1, operations.size())));
      return fail(operations.subspan(std::min<std::size_t>(1, operations.size())), ErrorCode::kTransferFail, "broke off in the middle");
    }
    real(*fake, operations);
  }

  template <typename Operation>
  static void fail(std::span<Operation> operations, ErrorCode code, const char* what) {
    for (auto& operation : operations) operation.status = Status(code, std::string("the fake peer ") + what);
  }

  void read_corrupted(const Peer& peer, FakePeer& fake, ReadOperation& operation, Deadline deadline) {
    const auto pin = fake.owner.begin_read(operation.extent);
    const bool flip = pin.ok() && operation.length > 0 && operation.start < pin->memory().size();
    if (flip) pin->memory()[operation.start] ^= std::byte{1};
    fake.real.read(peer, {&operation, 1}, deadline);
    if (flip) pin->memory()[operation.start] ^= std::byte{1};
  }

  mutable std::mutex mutex_;  // guards peers_ and their faults
  std::map<NodeId, std::shared_ptr<FakePeer>> peers_;
};

}  // namespace moonpool::transfer
