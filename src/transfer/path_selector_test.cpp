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

}  // namespace
}  // namespace moonpool::transfer
