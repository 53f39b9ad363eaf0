#include "transfer/path_selector.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "transfer/checksum.h"
#include "transfer/fake_transport.h"

namespace moonpool::transfer {
namespace {

using std::chrono::seconds;

class PathSelectorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(owner_.adopt_term(Term{1}, Deadline::after(seconds(5))).ok());
    incarnation_ = *owner_.mount(1 << 20);
    selector_.add(std::make_unique<LocalTransport>(owner_, self_));
    auto fake = std::make_unique<FakeTransport>();
    fake->attach(far_, owner_);
    fake_ = fake.get();
    selector_.add(std::move(fake));
  }

  Status put(const Peer& peer, std::uint64_t offset, std::uint64_t count) {
    const std::vector<std::byte> data(100, std::byte{5});
    const ConstBytes piece(data);
    WriteOperation write{{incarnation_, offset, 100, Version{Term{1}, count}}, "key", {&piece, 1}, {}, 0};
    selector_.write(peer, {&write, 1}, Deadline::after(seconds(5)));
    return write.status;
  }

  Owner owner_;
  Incarnation incarnation_;
  const NodeId self_ = NodeId::generate();
  const NodeId far_ = NodeId::generate();
  FakeTransport* fake_ = nullptr;
  PathSelector selector_;
};

TEST_F(PathSelectorTest, TheFirstPathThatReachesThePeerIsTaken) {
  EXPECT_EQ(selector_.path_to({self_, {"host", 1}})->name(), "local");
  EXPECT_EQ(selector_.path_to({far_, {"host", 1}})->name(), "fake");
  EXPECT_EQ(selector_.path_to({NodeId::generate(), {"host", 1}}), nullptr);
}

TEST_F(PathSelectorTest, WhatWentWhereIsCounted) {
  const Peer near{self_, {"near", 1}};
  const Peer far{far_, {"far", 2}};
  EXPECT_TRUE(put(near, 0, 1).ok());
  EXPECT_TRUE(put(far, 4096, 2).ok());
  EXPECT_EQ(put(far, 4096, 3).code(), ErrorCode::kInvalidWrite);
  std::vector<std::byte> into(40);
  const MutableBytes piece(into);
  ReadOperation read{{incarnation_, 4096, 100, Version{Term{1}, 2}}, 60, 40, {&piece, 1}, 0, {}};
  selector_.read(far, {&read, 1}, Deadline::after(seconds(5)));
  EXPECT_TRUE(read.status.ok()) << read.status.to_string();
  ASSERT_EQ(selector_.use().size(), 2U);
  for (const auto& use : selector_.use()) {
    const bool is_far = use.peer.node == far_;
    EXPECT_EQ(use.path, is_far ? "fake" : "local");
    EXPECT_EQ(use.writes, is_far ? 2U : 1U);
    EXPECT_EQ(use.bytes_written, 100U);
    EXPECT_EQ(use.reads, is_far ? 1U : 0U);
    EXPECT_EQ(use.bytes_read, is_far ? 40U : 0U);
    EXPECT_EQ(use.failures, is_far ? 1U : 0U);
  }
}

TEST_F(PathSelectorTest, AnUnreachablePeerIsAnErrorThatNamesIt) {
  const Status status = put({NodeId::generate(), {"nowhere", 7}}, 0, 1);
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  EXPECT_NE(status.message().find("nowhere:7"), std::string::npos);
}

TEST_F(PathSelectorTest, TheFakesFaultsHappenOnCommand) {
  const Peer far{far_, {"far", 2}};
  fake_->set_faults(far_, {.dead = true});
  EXPECT_EQ(put(far, 0, 1).code(), ErrorCode::kUnavailable);
  fake_->set_faults(far_, {.lose = 1, .lost_writes_happen = true});
  EXPECT_EQ(put(far, 0, 1).code(), ErrorCode::kRpcTimeout);
  EXPECT_EQ(owner_.catalogue(incarnation_).size(), 1U);
  fake_->set_faults(far_, {.corrupt = 1});
  std::vector<std::byte> into(100);
  const MutableBytes piece(into);
  ReadOperation read{{incarnation_, 0, 100, Version{Term{1}, 1}}, 0, 100, {&piece, 1}, owner_.catalogue(incarnation_)[0].checksum, {}};
  selector_.read(far, {&read, 1}, Deadline::after(seconds(5)));
  EXPECT_EQ(read.status.code(), ErrorCode::kChecksumMismatch);
  selector_.read(far, {&read, 1}, Deadline::after(seconds(5)));
  EXPECT_TRUE(read.status.ok()) << "the segment itself is whole: " << read.status.to_string();
}

// Says what was asked of it.
class Nics final : public Transport {
 public:
  explicit Nics(NodeId reached) : reached_(reached) {}
  [[nodiscard]] std::string_view name() const override { return "nics"; }
  [[nodiscard]] bool reaches(const Peer& peer) const override { return peer.node == reached_; }
  void write(const Peer&, std::span<WriteOperation>, Deadline) override { ADD_FAILURE() << "as if the host could touch it"; }
  void read(const Peer&, std::span<ReadOperation>, Deadline) override { ADD_FAILURE() << "as if the host could touch it"; }
  [[nodiscard]] bool moves_device_memory(const Peer&) const override { return true; }
  void write_device(const Peer&, std::span<WriteOperation> operations, Deadline) override {
    for (auto& operation : operations) operation.status = {ErrorCode::kUnavailable, "the cable is out"};
  }
  void read_device(const Peer&, std::span<ReadOperation> operations, Deadline) override {
    for (auto& operation : operations) operation.status = {};
  }

 private:
  const NodeId reached_;
};

TEST(PathSelectorDeviceTest, DeviceMemoryGoesOverTheBestPathOrNone) {
  Owner owner;
  const Peer by_nic{NodeId::generate(), {"far", 2}};
  const Peer near{NodeId::generate(), {"near", 1}};
  PathSelector selector;
  selector.add(std::make_unique<LocalTransport>(owner, near.node));
  selector.add(std::make_unique<Nics>(by_nic.node));
  auto touches = std::make_unique<FakeTransport>();
  touches->attach(by_nic.node, owner);
  selector.add(std::move(touches));

  EXPECT_TRUE(selector.moves_device_memory(by_nic));
  EXPECT_FALSE(selector.moves_device_memory(near));
  EXPECT_FALSE(selector.moves_device_memory({NodeId::generate(), {"nowhere", 7}}));
  WriteOperation write;
  selector.write_device(by_nic, {&write, 1}, Deadline::after(seconds(5)));
  EXPECT_EQ(write.status.code(), ErrorCode::kUnavailable) << "and no other path was tried";
  selector.write_device(near, {&write, 1}, Deadline::after(seconds(5)));
  EXPECT_EQ(write.status.code(), ErrorCode::kNotSupported);
  ReadOperation read;
  selector.read_device(by_nic, {&read, 1}, Deadline::after(seconds(5)));
  EXPECT_TRUE(read.status.ok());
  selector.read_device(near, {&read, 1}, Deadline::after(seconds(5)));
  EXPECT_EQ(read.status.code(), ErrorCode::kNotSupported);
  for (const auto& use : selector.use()) {
    if (use.path != "nics") continue;
    EXPECT_EQ(use.writes, 1U);
    EXPECT_EQ(use.reads, 1U);
    EXPECT_EQ(use.failures, 1U);
  }
}

// Fills an extent of 100 bytes, or says that it cannot.
WriteOperation in_place(Transport& transport, const Peer& peer, const ExtentRef& extent, const Status& outcome = {}) {
  WriteOperation write{extent, "key", {}, {}, 0};
  const auto fill = [&](std::span<OpenExtent> extents) {
    ASSERT_EQ(extents.size(), 1U);
    std::ranges::fill(extents[0].memory, std::byte{6});
    extents[0].checksums = {checksum(extents[0].memory)};
    extents[0].status = outcome;
  };
  transport.write_in_place(peer, {&write, 1}, fill, Deadline::after(seconds(5)));
  return write;
}

TEST_F(PathSelectorTest, WritesInPlaceAreCountedAsWritesAre) {
  const Peer near{self_, {"near", 1}};
  EXPECT_TRUE(in_place(selector_, near, {incarnation_, 0, 100, Version{Term{1}, 1}}).status.ok());
  const auto failed = in_place(selector_, near, {incarnation_, 4096, 100, Version{Term{1}, 2}}, {ErrorCode::kTransferFail, "no device"});
  EXPECT_EQ(failed.status.code(), ErrorCode::kTransferFail);
  ASSERT_EQ(selector_.use().size(), 1U);
  EXPECT_EQ(selector_.use()[0].path, "local");
  EXPECT_EQ(selector_.use()[0].writes, 2U);
  EXPECT_EQ(selector_.use()[0].bytes_written, 100U);
  EXPECT_EQ(selector_.use()[0].failures, 1U);
  const Status nowhere = in_place(selector_, {NodeId::generate(), {"nowhere", 7}}, {incarnation_, 0, 100, {}}).status;
  EXPECT_EQ(nowhere.code(), ErrorCode::kUnavailable);
  EXPECT_NE(nowhere.message().find("nowhere:7"), std::string::npos);
}

TEST_F(PathSelectorTest, TheFakesFaultsHappenToWritesInPlace) {
  const Peer far{far_, {"far", 2}};
  std::uint64_t count = 0;
  const auto write = [&] {
    ++count;
    return in_place(selector_, far, {incarnation_, count * 4096, 100, Version{Term{1}, count}}).status.code();
  };
  fake_->set_faults(far_, {.dead = true});
  EXPECT_EQ(write(), ErrorCode::kUnavailable);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
  fake_->set_faults(far_, {.lose = 1, .lost_writes_happen = true});
  EXPECT_EQ(write(), ErrorCode::kRpcTimeout);
  EXPECT_EQ(owner_.catalogue(incarnation_).size(), 1U);
  EXPECT_EQ(write(), ErrorCode::kOk) << "one was to be lost";
  fake_->set_faults(far_, {.truncate = 1});
  std::vector<WriteOperation> batch;
  for (std::uint64_t i = 0; i < 3; ++i) batch.push_back({{incarnation_, (10 + i) * 4096, 100, Version{Term{1}, 10 + i}}, "key", {}, {}, 0});
  const auto fill = [](std::span<OpenExtent> extents) {
    for (auto& extent : extents) extent.checksums = {checksum(extent.memory)};
  };
  selector_.write_in_place(far, batch, fill, Deadline::after(seconds(5)));
  EXPECT_TRUE(batch[0].status.ok()) << batch[0].status.to_string();
  EXPECT_EQ(batch[1].status.code(), ErrorCode::kTransferFail);
  EXPECT_EQ(batch[2].status.code(), ErrorCode::kTransferFail);
}

// A path that reaches everybody and can do nothing.
class UselessPath final : public Transport {
 public:
  explicit UselessPath(ErrorCode code) : code_(code) {}
  [[nodiscard]] std::string_view name() const override { return "useless"; }
  [[nodiscard]] bool reaches(const Peer&) const override { return true; }
  void write(const Peer&, std::span<WriteOperation> operations, Deadline) override {
    // Every second operation succeeds, so that what is left over is no front of the batch.
    for (std::size_t i = 0; i < operations.size(); ++i) operations[i].status = i % 2 == 0 ? Status(code_, "useless") : Status();
  }
  void read(const Peer&, std::span<ReadOperation> operations, Deadline) override {
    for (auto& operation : operations) operation.status = Status(code_, "useless");
  }
  [[nodiscard]] std::string why_not(const Peer&) const override { return "the reason"; }

 private:
  const ErrorCode code_;
};

TEST(PathSelectorFallThroughTest, WhatAPathCannotDoGoesOverTheNextOneAndTheReasonIsShown) {
  Owner owner;
  ASSERT_TRUE(owner.adopt_term(Term{1}, Deadline::after(seconds(5))).ok());
  const auto incarnation = *owner.mount(1 << 20);
  const NodeId self = NodeId::generate();
  const std::vector<std::byte> data(100, std::byte{5});
  const ConstBytes piece(data);
  for (const auto code : {ErrorCode::kUnavailable, ErrorCode::kNotSupported, ErrorCode::kStaleTerm}) {
    PathSelector selector;
    selector.add(std::make_unique<UselessPath>(code));
    selector.add(std::make_unique<LocalTransport>(owner, self));
    std::vector<WriteOperation> writes;
    for (std::uint64_t i = 0; i < 3; ++i) {
      const auto offset = (static_cast<std::uint64_t>(-static_cast<std::int32_t>(code)) * 8 + i) * 128;
      writes.push_back({{incarnation, offset % (1 << 19), 100, Version{Term{1}, offset}}, "key", {&piece, 1}, {}, 0});
    }
    selector.write({self, {"host", 1}}, writes, Deadline::after(seconds(5)));
    const bool passes_on = code != ErrorCode::kStaleTerm;
    for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(writes[i].status.ok(), passes_on || i == 1) << i << writes[i].status.to_string();
    const auto use = selector.use();
    ASSERT_EQ(use.size(), passes_on ? 2U : 1U);
    if (passes_on) {
      EXPECT_EQ(use[1].path, "local");
      EXPECT_EQ(use[1].writes, 2U);
      EXPECT_EQ(use[1].reason, "the reason");
    }
  }
}

TEST(PathSelectorFallThroughTest, AWriteInPlaceGoesOverTheBestPathAloneAndARefusalIsNotCounted) {
  Owner owner;
  ASSERT_TRUE(owner.adopt_term(Term{1}, Deadline::after(seconds(5))).ok());
  const auto incarnation = *owner.mount(1 << 20);
  const NodeId self = NodeId::generate();
  PathSelector selector;
  selector.add(std::make_unique<UselessPath>(ErrorCode::kUnavailable));
  selector.add(std::make_unique<LocalTransport>(owner, self));
  const auto write = in_place(selector, {self, {"host", 1}}, {incarnation, 0, 100, Version{Term{1}, 1}});
  EXPECT_EQ(write.status.code(), ErrorCode::kNotSupported);
  EXPECT_TRUE(owner.catalogue(incarnation).empty());
  EXPECT_TRUE(selector.use().empty());
}

}  // namespace
}  // namespace moonpool::transfer
