// The races of shared memory, made on purpose, and the sessions' ends. What every transport has to do is in transport_conformance_test.cpp.
#include "transfer/shm/shm_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/sync_point.h"
#include "tests/support/test_support.h"
#include "transfer/checksum.h"
#include "transfer/shm/owner_server.h"

namespace moonpool::transfer {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Term kTerm{3};
constexpr std::uint64_t kSize = 3 * kChecksumChunk;

Deadline soon() { return Deadline::after(seconds(20)); }

// Stops the thread that reaches the point, once.
class Stop {
 public:
  explicit Stop(const char* point) {
    SyncPoints::instance().on(point, [this] {
      if (reached_.exchange(true)) return;
      reached_.notify_all();
      go_on_.wait(false);
    });
  }
  ~Stop() {
    go_on();
    SyncPoints::instance().clear();
  }
  void await() { reached_.wait(false); }
  void go_on() {
    go_on_ = true;
    go_on_.notify_all();
  }

 private:
  std::atomic<bool> reached_{false};
  std::atomic<bool> go_on_{false};
};

class ShmTransportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(server_->start().ok());
    ASSERT_TRUE(owner_.adopt_term(kTerm, soon()).ok());
    incarnation_ = *owner_.mount(std::uint64_t{64} << 20);
  }
  void TearDown() override { SyncPoints::instance().clear(); }

  ExtentRef extent(std::uint64_t offset, std::uint64_t length) { return {incarnation_, offset, length, Version{kTerm, ++count_}}; }
  WriteOperation write(const ExtentRef& ref, const std::vector<std::byte>& data) {
    const ConstBytes piece(data);
    WriteOperation operation{ref, "key", {&piece, 1}, {}, 0};
    transport_->write(peer_, {&operation, 1}, soon());
    return operation;
  }
  ViewOperation view(const ExtentRef& ref, std::uint64_t checksum) {
    ViewOperation operation;
    operation.extent = ref;
    operation.checksum = checksum;
    transport_->view(peer_, {&operation, 1}, soon());
    return operation;
  }
  // Without a pin.
  ViewOperation look(const ExtentRef& ref, std::uint64_t checksum) {
    ViewOperation operation;
    operation.extent = ref;
    operation.checksum = checksum;
    operation.pinned = false;
    transport_->view(peer_, {&operation, 1}, soon());
    return operation;
  }
  // How often the point was reached, from now on.
  static std::shared_ptr<std::atomic<int>> count(const char* point) {
    auto reached = std::make_shared<std::atomic<int>>(0);
    SyncPoints::instance().on(point, [reached] { ++*reached; });
    return reached;
  }
  std::size_t retire(const ExtentRef& ref, milliseconds wait) {
    const RetirementOrder order{ref.version.count, ref};
    return owner_.retire({&order, 1}, Deadline::after(wait)).size();
  }

  Peer peer_{NodeId::generate(), {"127.0.0.1", 1}};
  const net::Identity identity_{peer_.node, "token", "test"};
  Owner owner_;
  std::unique_ptr<OwnerServer> server_ = std::make_unique<OwnerServer>(owner_, identity_);
  std::unique_ptr<ShmTransport> transport_ = std::make_unique<ShmTransport>(net::Identity{NodeId::generate(), "token", "test"});
  Incarnation incarnation_;
  std::uint64_t count_ = 0;
  const std::vector<std::byte> data_ = std::vector<std::byte>(kSize, std::byte{7});
};

TEST_F(ShmTransportTest, ARetirementWaitsForAWriterInMidCopy) {
  Stop stop("shm.write.chunk_copied");
  const auto ref = extent(0, kSize);
  Status outcome;
  std::thread writer([&] { outcome = write(ref, data_).status; });
  stop.await();
  EXPECT_EQ(retire(ref, milliseconds(50)), 0U) << "its memory is still being written";
  stop.go_on();
  EXPECT_EQ(owner_.retire({}, soon()).size(), 1U);
  writer.join();
  EXPECT_EQ(outcome.code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
}

TEST_F(ShmTransportTest, AWriterRetiredBetweenItsAnnouncementAndItsFirstByteTouchesNothing) {
  Stop stop("shm.write.announced");
  const auto ref = extent(0, kSize);
  Status outcome;
  std::thread writer([&] { outcome = write(ref, data_).status; });
  stop.await();
  EXPECT_EQ(retire(ref, milliseconds(50)), 0U);
  stop.go_on();
  writer.join();
  EXPECT_EQ(outcome.code(), ErrorCode::kStaleTerm);
  EXPECT_EQ(owner_.retire({}, soon()).size(), 1U);
  EXPECT_EQ(*reinterpret_cast<std::byte*>(owner_.segments()[0].base), std::byte{0});
}

TEST_F(ShmTransportTest, AWriterInPlaceThatIsRetiredBeforeItsFirstByteIsNotAskedToFill) {
  Stop stop("shm.write.announced");
  std::vector<WriteOperation> batch{{extent(0, kSize), "key", {}, {}, 0}, {extent(kSize, kSize), "key", {}, {}, 0}};
  std::vector<std::size_t> filled;
  const auto fill = [&](std::span<OpenExtent> extents) {
    for (auto& open : extents) {
      filled.push_back(open.operation);
      open.checksums.assign(chunks_of(open.memory.size()), 7);
    }
  };
  std::thread writer([&] { transport_->write_in_place(peer_, batch, fill, soon()); });
  stop.await();
  EXPECT_EQ(retire(batch[0].extent, milliseconds(50)), 0U);
  stop.go_on();
  writer.join();
  EXPECT_EQ(batch[0].status.code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(batch[1].status.ok()) << batch[1].status.to_string();
  EXPECT_THAT(filled, ::testing::ElementsAre(1U));
  EXPECT_EQ(owner_.retire({}, soon()).size(), 1U);
}

TEST_F(ShmTransportTest, AGrantThatWasRetiredFirstIsRefusedAndItsNeighbourIsNot) {
  const auto doomed = extent(0, kSize);
  EXPECT_EQ(retire(doomed, seconds(20)), 1U);
  EXPECT_EQ(write(doomed, data_).status.code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(write(extent(0, kSize), data_).status.ok());
}

TEST_F(ShmTransportTest, ANewTermWaitsForWritersOfTheOldOneAndRefusesLaterOnes) {
  Stop stop("shm.write.chunk_copied");
  const auto ref = extent(0, kSize);
  Status outcome;
  std::thread writer([&] { outcome = write(ref, data_).status; });
  stop.await();
  EXPECT_EQ(owner_.adopt_term(Term{4}, Deadline::after(milliseconds(50))).code(), ErrorCode::kRpcTimeout);
  stop.go_on();
  EXPECT_TRUE(owner_.adopt_term(Term{4}, soon()).ok());
  writer.join();
  EXPECT_EQ(outcome.code(), ErrorCode::kStaleTerm);
  EXPECT_EQ(write(extent(0, kSize), data_).status.code(), ErrorCode::kStaleTerm);
  EXPECT_TRUE(owner_.catalogue(incarnation_).empty());
}

TEST_F(ShmTransportTest, WhatWasCompleteBeforeANewTermIsInItsCatalogue) {
  ASSERT_TRUE(write(extent(0, kSize), data_).status.ok());
  ASSERT_TRUE(owner_.adopt_term(Term{4}, soon()).ok());
  EXPECT_EQ(owner_.catalogue(incarnation_).size(), 1U);
}

TEST_F(ShmTransportTest, OlderGrantsThanTheOldestLiveOneAreRefused) {
  const auto old = extent(0, kSize);
  owner_.set_oldest_grant(Version{kTerm, 50});
  EXPECT_EQ(write(old, data_).status.code(), ErrorCode::kStaleTerm);
  count_ = 50;
  EXPECT_TRUE(write(extent(0, kSize), data_).status.ok());
}

TEST_F(ShmTransportTest, AClosingSegmentWaitsForItsWriter) {
  Stop stop("shm.write.chunk_copied");
  std::thread writer([&] { static_cast<void>(write(extent(0, kSize), data_)); });
  stop.await();
  EXPECT_EQ(owner_.remount(incarnation_, Deadline::after(milliseconds(50))).code(), ErrorCode::kRpcTimeout);
  stop.go_on();
  EXPECT_TRUE(owner_.remount(incarnation_, soon()).ok());
  writer.join();
}

TEST_F(ShmTransportTest, TheRingIsUsedManyTimesOver) {
  const std::vector<std::byte> small(100, std::byte{9});
  const ConstBytes piece(small);
  std::vector<WriteOperation> batch;
  for (std::uint64_t i = 0; i < 5 * kRingSlots; ++i) batch.push_back({extent(i * 128, 100), "key", {&piece, 1}, {}, 0});
  transport_->write(peer_, batch, soon());
  for (const auto& operation : batch) ASSERT_TRUE(operation.status.ok()) << operation.status.to_string();
  EXPECT_EQ(owner_.catalogue(incarnation_).size(), batch.size());
}

TEST_F(ShmTransportTest, AReadWhoseExtentIsReusedMeanwhileIsNeverWrong) {
  const auto ref = extent(0, kSize);
  const auto written = write(ref, data_);
  ASSERT_TRUE(written.status.ok());
  std::vector<std::byte> into(kSize);
  const MutableBytes target(into);
  ReadOperation operation{ref, 0, kSize, {&target, 1}, written.checksum, {}};
  Stop stop("shm.read.chunk_copied");
  std::thread reader([&] { transport_->read(peer_, {&operation, 1}, soon()); });
  stop.await();
  ASSERT_EQ(retire(ref, seconds(20)), 1U) << "an unpinned read holds nobody up";
  ShmTransport other(net::Identity{NodeId::generate(), "token", "test"});
  const std::vector<std::byte> others(kSize, std::byte{8});
  const ConstBytes piece(others);
  WriteOperation newer{extent(0, kSize), "other", {&piece, 1}, {}, 0};
  other.write(peer_, {&newer, 1}, soon());
  ASSERT_TRUE(newer.status.ok());
  stop.go_on();
  reader.join();
  EXPECT_EQ(operation.status.code(), ErrorCode::kReplicaGone);
}

TEST_F(ShmTransportTest, AViewHoldsItsExtentUntilItIsLetGo) {
  const auto ref = extent(4096, kSize);
  const auto written = write(ref, data_);
  auto seen = view(ref, written.checksum);
  ASSERT_TRUE(seen.status.ok()) << seen.status.to_string();
  EXPECT_TRUE(std::ranges::equal(seen.bytes, data_));
  EXPECT_EQ(retire(ref, milliseconds(50)), 0U);
  transport_.reset();
  EXPECT_EQ(owner_.retire({}, Deadline::after(milliseconds(50))).size(), 0U) << "views outlive the transport";
  EXPECT_TRUE(std::ranges::equal(seen.bytes, data_));
  seen.pin.reset();
  EXPECT_EQ(owner_.retire({}, soon()).size(), 1U);
}

TEST_F(ShmTransportTest, AViewWithoutAPinNeedsNothingOfTheOwnerAndHoldsNobodyUp) {
  const auto ref = extent(4096, kSize);
  const auto written = write(ref, data_);
  const auto asked = count("owner_session.pinned");
  auto seen = look(ref, written.checksum);
  ASSERT_TRUE(seen.status.ok()) << seen.status.to_string();
  EXPECT_TRUE(std::ranges::equal(seen.bytes, data_));
  EXPECT_EQ(seen.region.memory.size(), std::size_t{64} << 20);
  EXPECT_EQ(*asked, 0);
  EXPECT_EQ(retire(ref, seconds(20)), 1U);
  transport_.reset();
  server_->stop();
  EXPECT_TRUE(owner_.unmount(incarnation_, soon()).ok());
  EXPECT_TRUE(std::ranges::equal(seen.bytes, data_)) << "it stays mapped";
}

TEST_F(ShmTransportTest, AViewWithoutAPinOfWhatIsOrMayBeRetiredAsksTheOwner) {
  const auto ref = extent(0, kSize);
  const auto other = extent(kSize, kSize);
  const auto written = write(ref, data_);
  ASSERT_TRUE(write(other, data_).status.ok());
  const auto asked = count("owner_session.pinned");
  ASSERT_EQ(retire(ref, seconds(20)), 1U);
  EXPECT_EQ(look(ref, written.checksum).status.code(), ErrorCode::kReplicaGone);
  EXPECT_EQ(*asked, 1);
  EXPECT_TRUE(look(other, written.checksum).status.ok());
  EXPECT_EQ(*asked, 1);
  // One batch: what has to be asked for is, the rest is not.
  std::vector<ViewOperation> batch(3);
  for (std::size_t i = 0; i < 3; ++i) {
    batch[i].extent = i == 1 ? ref : other;
    batch[i].checksum = written.checksum;
    batch[i].pinned = i == 2;
  }
  transport_->view(peer_, batch, soon());
  EXPECT_EQ(*asked, 2);
  EXPECT_TRUE(batch[0].status.ok()) << batch[0].status.to_string();
  EXPECT_EQ(batch[1].status.code(), ErrorCode::kReplicaGone);
  EXPECT_TRUE(batch[2].status.ok()) << batch[2].status.to_string();
  EXPECT_EQ(retire(other, milliseconds(50)), 0U) << "the one with a pin holds it";
  // Its bit is set by now, as it would be by another grant of the same bit.
  EXPECT_FALSE(look(other, written.checksum).status.ok());
  EXPECT_EQ(*asked, 3);
  batch.clear();
  EXPECT_EQ(owner_.retire({}, soon()).size(), 1U);
}

TEST_F(ShmTransportTest, AViewOfOtherBytesIsRefusedAndPinsNothing) {
  const auto ref = extent(0, kSize);
  const auto written = write(ref, data_);
  EXPECT_EQ(view(ref, written.checksum + 1).status.code(), ErrorCode::kChecksumMismatch);
  EXPECT_EQ(view(extent(0, kSize), written.checksum).status.code(), ErrorCode::kReplicaGone);
  EXPECT_EQ(retire(ref, seconds(20)), 1U);
}

TEST_F(ShmTransportTest, AViewOutlivesItsOwner) {
  const auto ref = extent(0, kSize);
  const auto written = write(ref, data_);
  const auto seen = view(ref, written.checksum);
  ASSERT_TRUE(seen.status.ok());
  server_->stop();
  EXPECT_TRUE(owner_.unmount(incarnation_, soon()).ok());
  EXPECT_TRUE(std::ranges::equal(seen.bytes, data_));
  EXPECT_EQ(write(extent(0, kSize), data_).status.code(), ErrorCode::kUnavailable);
  EXPECT_FALSE(transport_->reaches(peer_));
}

TEST_F(ShmTransportTest, AskingForAClosedSegmentAgainLeavesItsViewsAlone) {
  const auto ref = extent(0, kSize);
  const auto written = write(ref, data_);
  const auto seen = view(ref, written.checksum);
  ASSERT_TRUE(seen.status.ok());
  ASSERT_TRUE(owner_.unmount(incarnation_, soon()).ok());
  EXPECT_EQ(view(ref, written.checksum).status.code(), ErrorCode::kStaleIncarnation);
  EXPECT_TRUE(std::ranges::equal(seen.bytes, data_));
}

TEST_F(ShmTransportTest, AClosedSegmentIsLetGoWhenAnotherOneIsMapped) {
  const auto ref = extent(0, kSize);
  const auto written = write(ref, data_);
  auto seen = view(ref, written.checksum);
  ASSERT_TRUE(seen.status.ok());
  const std::weak_ptr<const void> mapping = seen.region.keeper;
  const auto remounted = owner_.remount(incarnation_, soon());
  ASSERT_TRUE(remounted.ok()) << remounted.status().to_string();
  incarnation_ = *remounted;
  ASSERT_TRUE(write(extent(0, kSize), data_).status.ok());
  EXPECT_FALSE(mapping.expired());
  seen = {};
  EXPECT_TRUE(mapping.expired()) << "nobody looks at it any more";
}

TEST_F(ShmTransportTest, AWriterIsNotToldSuccessByAnOwnerThatEnded) {
  Stop stop("shm.write.chunk_copied");
  Status outcome;
  std::thread writer([&] { outcome = write(extent(0, kSize), data_).status; });
  stop.await();
  server_->stop();
  stop.go_on();
  writer.join();
  EXPECT_EQ(outcome.code(), ErrorCode::kUnavailable);
}

TEST_F(ShmTransportTest, AWrongTokenAndAnAbsentNodeAreNotReachedAndSayWhy) {
  ShmTransport stranger(net::Identity{NodeId::generate(), "another token", "test"});
  EXPECT_FALSE(stranger.reaches(peer_));
  EXPECT_THAT(stranger.why_not(peer_), ::testing::HasSubstr("token"));
  const Peer absent{NodeId::generate(), {"127.0.0.1", 1}};
  EXPECT_FALSE(transport_->reaches(absent));
  EXPECT_THAT(transport_->why_not(absent), ::testing::HasSubstr("Unix socket namespace"));
  const Peer far{NodeId::generate(), {"198.51.100.7", 1}};
  EXPECT_FALSE(transport_->reaches(far));
  EXPECT_EQ(transport_->why_not(far), "other host");
}

TEST_F(ShmTransportTest, LentMemoryIsLeftToOtherPaths) {
  std::vector<std::byte> memory(1 << 20);
  incarnation_ = *owner_.mount(MutableBytes(memory));
  EXPECT_EQ(write(extent(0, 1000), std::vector<std::byte>(1000)).status.code(), ErrorCode::kNotSupported);
  ASSERT_TRUE(owner_.unmount(incarnation_, soon()).ok());
}

}  // namespace
}  // namespace moonpool::transfer
