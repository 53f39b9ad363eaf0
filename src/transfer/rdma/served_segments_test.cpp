// Registrations follow the owner's mounted segments, whatever the order in which things happen.
#include "transfer/rdma/served_segments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/sync_point.h"
#include "transfer/rdma/pair_for_test.h"

namespace moonpool::transfer::rdma {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr std::uint64_t kSize = 1 << 20;

Deadline soon() { return Deadline::after(seconds(20)); }

class ServedSegmentsTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(owner_.adopt_term(Term{1}, soon()).ok()); }
  void TearDown() override {
    served_->stop();
    SyncPoints::instance().clear();
  }

  SimulatedFabric fabric_;
  Owner owner_;
  std::shared_ptr<MemoryMap> memory_ = std::make_shared<MemoryMap>(simulated_devices(fabric_, "nic", 2));
  std::shared_ptr<ServedSegments> served_ = std::make_shared<ServedSegments>(owner_, memory_);
};

TEST_F(ServedSegmentsTest, WhatWasMountedBeforeTheStartAndAfterItIsServedOnEveryNic) {
  const auto before = *owner_.mount(kSize);
  served_->start();
  const auto after = *owner_.mount(kSize);
  for (const auto& incarnation : {before, after}) {
    const Status status = served_->wait_served(incarnation, soon());
    ASSERT_TRUE(status.ok()) << status.to_string();
    const auto ranges = memory_->served(incarnation);
    ASSERT_EQ(ranges.size(), 1U);
    EXPECT_EQ(ranges[0].length, kSize);
    EXPECT_THAT(ranges[0].remote_keys, ::testing::SizeIs(2));
    EXPECT_THAT(ranges[0].remote_keys, ::testing::Not(::testing::Contains(0U)));
  }
}

TEST_F(ServedSegmentsTest, ClosingRevokesBeforeItWaitsForAnybody) {
  served_->start();
  const auto incarnation = *owner_.mount(kSize);
  ASSERT_TRUE(served_->wait_served(incarnation, soon()).ok());
  const auto writer = owner_.begin_write({incarnation, 0, 100, Version{Term{1}, 1}}, [] {});
  ASSERT_TRUE(writer.ok());
  EXPECT_EQ(owner_.unmount(incarnation, Deadline::after(milliseconds(10))).code(), ErrorCode::kRpcTimeout) << "the writer has not left";
  EXPECT_TRUE(memory_->served(incarnation).empty());
  EXPECT_EQ(served_->wait_served(incarnation, soon()).code(), ErrorCode::kStaleIncarnation);
}

TEST_F(ServedSegmentsTest, ARemountedSegmentHasNewKeysAndTheOldOnesAreDead) {
  served_->start();
  const auto old = *owner_.mount(kSize);
  ASSERT_TRUE(served_->wait_served(old, soon()).ok());
  const auto fresh = owner_.remount(old, soon());
  ASSERT_TRUE(fresh.ok()) << fresh.status().to_string();
  EXPECT_TRUE(memory_->served(old).empty());
  ASSERT_TRUE(served_->wait_served(*fresh, soon()).ok());
  EXPECT_EQ(memory_->served(*fresh).size(), 1U);
  EXPECT_EQ(fabric_.counts("nic0").registered, 1U);
  EXPECT_EQ(fabric_.counts("nic0").registrations, 2U);
}

TEST_F(ServedSegmentsTest, ASegmentThatClosesWhileItIsBeingRegisteredIsNotServed) {
  std::atomic<bool> closed{false};
  std::atomic<bool> reached{false};
  Incarnation doomed;
  SyncPoints::instance().on("served_segments.served", [&] {
    if (reached.exchange(true)) return;
    reached.notify_all();
    closed.wait(false);
  });
  served_->start();
  doomed = *owner_.mount(kSize);
  reached.wait(false);
  EXPECT_TRUE(owner_.unmount(doomed, soon()).ok());
  closed = true;
  closed.notify_all();
  const auto next = *owner_.mount(kSize);  // registered by the same thread, afterwards
  ASSERT_TRUE(served_->wait_served(next, soon()).ok());
  EXPECT_TRUE(memory_->served(doomed).empty());
  EXPECT_EQ(fabric_.counts("nic0").registered, 1U);
}

TEST_F(ServedSegmentsTest, ARefusedRegistrationIsToldWithItsReason) {
  fabric_.refuse_registrations("nic0", true);
  fabric_.refuse_registrations("nic1", true);
  served_->start();
  const auto incarnation = *owner_.mount(kSize);
  const Status status = served_->wait_served(incarnation, soon());
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  EXPECT_THAT(status.message(), ::testing::HasSubstr("memlock"));
}

TEST_F(ServedSegmentsTest, NothingIsServedAfterTheStop) {
  served_->start();
  const auto incarnation = *owner_.mount(kSize);
  ASSERT_TRUE(served_->wait_served(incarnation, soon()).ok());
  served_->stop();
  EXPECT_TRUE(memory_->served(incarnation).empty());
  EXPECT_EQ(fabric_.counts("nic1").registered, 0U);
  EXPECT_TRUE(owner_.unmount(incarnation, soon()).ok());
}

}  // namespace
}  // namespace moonpool::transfer::rdma
