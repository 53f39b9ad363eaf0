#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <vector>

#include "base/deadline.h"
#include "base/edit_distance.h"
#include "base/ids.h"
#include "base/logging.h"
#include "base/result.h"
#include "base/run_together.h"

namespace moonpool {
namespace {

TEST(ResultTest, CarriesAValueOrTheReasonForNone) {
  const Result<int> good = 7;
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(*good, 7);
  const Result<int> bad(ErrorCode::kNoAvailableHandle, "pool is full");
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.status().number(), -200);
  EXPECT_EQ(bad.status().to_string(), "no_available_handle: pool is full");
}

TEST(IdsTest, RoundTripThroughBytesAndNeverRepeat) {
  const NodeId id = NodeId::generate();
  EXPECT_EQ(NodeId::from_bytes(id.to_bytes()), id);
  EXPECT_NE(NodeId::generate(), id);
  EXPECT_FALSE(NodeId::from_bytes("short").has_value());
  EXPECT_EQ(id.to_string().size(), 32U);
}

TEST(VersionTest, LaterTermWinsOverHigherCount) { EXPECT_LT((Version{Term{1}, 900}), (Version{Term{2}, 1})); }

TEST(EditDistanceTest, CountsInsertionsDeletionsAndReplacements) {
  EXPECT_EQ(edit_distance("port", "port"), 0U);
  EXPECT_EQ(edit_distance("prot", "port"), 2U);
  EXPECT_EQ(edit_distance("", "port"), 4U);
  EXPECT_EQ(edit_distance("ports", "port"), 1U);
}

TEST(DeadlineTest, SoonerNeverExtends) {
  const auto deadline = Deadline::after(std::chrono::milliseconds(5));
  EXPECT_LE(deadline.sooner(std::chrono::hours(1)).time(), deadline.time());
}

TEST(RunTogetherTest, RunsEveryJobAndReturnsAfterTheLast) {
  std::atomic<int> runs{0};
  const std::function<void()> job = [&] { ++runs; };
  run_together({});
  run_together(std::vector{job});
  run_together(std::vector{job, job, job});
  EXPECT_EQ(runs, 4);
}

}  // namespace
}  // namespace moonpool
