#include "transfer/path_selector.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace moonpool::transfer
