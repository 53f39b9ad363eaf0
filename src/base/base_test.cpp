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
#include "base/size_text.h"

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

TEST(ParseSize, TakesTheUsualForms) {
  for (const auto& [text, bytes] :
       {std::pair{"0", std::uint64_t{0}}, std::pair{"4 GB", std::uint64_t{4} << 30}, std::pair{"16mb", std::uint64_t{16} << 20},
        std::pair{"1.5KiB", std::uint64_t{1536}}, std::pair{"2T", std::uint64_t{2} << 40}, std::pair{" 7 B ", std::uint64_t{7}}}) {
    const auto size = parse_size(text);
    ASSERT_TRUE(size.ok()) << text;
    EXPECT_EQ(*size, bytes) << text;
  }
  for (const char* text : {"", "GB", "50%", "-1", "4 XB", "1e30", "9999999 TB", "4 G B x", "nan", "inf"})
    EXPECT_EQ(parse_size(text).code(), ErrorCode::kConfig) << text;
}

}  // namespace
}  // namespace moonpool
