// Buckets of requests and tokens, over a clock of the test's own.
#include "gateway/rate_limit.h"

#include <gtest/gtest.h>

namespace moonpool::gateway {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Limit = RateLimit::Limit;

const RateLimit::Time kStart{std::chrono::hours(1)};

TEST(RateLimitTest, ABurstThenTheRate) {
  RateLimit limit(60, 0, 10, kStart);  // ten at once, then one a second
  for (int i = 0; i < 10; ++i) EXPECT_EQ(limit.take(1, kStart).exceeded, Limit::kNone) << i;
  const auto refused = limit.take(1, kStart);
  EXPECT_EQ(refused.exceeded, Limit::kRequests);
  EXPECT_EQ(refused.retry_in, seconds(1));
  EXPECT_EQ(limit.take(1, kStart + milliseconds(999)).exceeded, Limit::kRequests);
  EXPECT_EQ(limit.take(1, kStart + seconds(1)).exceeded, Limit::kNone);
  EXPECT_EQ(limit.take(1, kStart + seconds(1)).exceeded, Limit::kRequests);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(limit.take(1, kStart + seconds(1000)).exceeded, Limit::kNone) << i;  // no more is saved up
  EXPECT_EQ(limit.take(1, kStart + seconds(1000)).exceeded, Limit::kRequests);
}

TEST(RateLimitTest, OverAMinuteNoMoreThanTheRatePasses) {
  RateLimit limit(600, 0, 1, kStart);
  int passed = 0;
  for (int ms = 0; ms < 60'000; ++ms) passed += limit.take(1, kStart + milliseconds(ms)).exceeded == Limit::kNone ? 1 : 0;
  EXPECT_GE(passed, 600);
  EXPECT_LE(passed, 610);
}

TEST(RateLimitTest, TokensAreCorrectedWhenTheyAreKnown) {
  RateLimit limit(0, 6000, 60, kStart);  // 100 a second
  EXPECT_EQ(limit.take(5000, kStart).exceeded, Limit::kNone);
  EXPECT_EQ(limit.take(2000, kStart).exceeded, Limit::kTokens);
  EXPECT_EQ(limit.take(2000, kStart).retry_in, seconds(10));
  limit.correct(-4000, kStart);  // it cost 1000
  EXPECT_EQ(limit.take(2000, kStart).exceeded, Limit::kNone);
  limit.correct(4000, kStart);  // and this one 6000: in debt
  EXPECT_EQ(limit.take(1, kStart).retry_in, milliseconds(10'010));
  limit.give_back(1e9, kStart);
  EXPECT_EQ(limit.take(6001, kStart).exceeded, Limit::kNone) << "whoever costs more than a bucket goes when it is full";
  EXPECT_EQ(limit.take(6001, kStart + seconds(60)).exceeded, Limit::kTokens);
  EXPECT_EQ(limit.take(6001, kStart + seconds(61)).exceeded, Limit::kNone);
}

TEST(RateLimitTest, ARefusalTakesNothing) {
  RateLimit limit(60, 60, 60, kStart);
  EXPECT_EQ(limit.take(50, kStart).exceeded, Limit::kNone);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(limit.take(50, kStart).exceeded, Limit::kTokens);
  EXPECT_NE(limit.fields(kStart).find("x-ratelimit-remaining-requests: 59\r\n"), std::string::npos) << limit.fields(kStart);
}

TEST(RateLimitTest, FieldsAreOpenAis) {
  RateLimit limit(600, 0, 60, kStart);
  EXPECT_EQ(limit.take(1, kStart).exceeded, Limit::kNone);
  EXPECT_EQ(limit.fields(kStart),
            "x-ratelimit-limit-requests: 600\r\nx-ratelimit-remaining-requests: 599\r\nx-ratelimit-reset-requests: 100ms\r\n");
  EXPECT_EQ(RateLimit(0, 0, 60, kStart).fields(kStart), "");
  EXPECT_EQ(duration_text(milliseconds(0)), "0ms");
  EXPECT_EQ(duration_text(milliseconds(1500)), "1.500s");
  EXPECT_EQ(duration_text(seconds(60)), "1m0s");
  EXPECT_EQ(duration_text(seconds(3661)), "1h1m1s");
}

TEST(RateLimitTest, NewLimitsKeepWhatWasUsed) {
  RateLimit limit(10, 0, 60, kStart);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(limit.take(1, kStart).exceeded, Limit::kNone);
  limit.change(20, 0, 60, kStart);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(limit.take(1, kStart).exceeded, Limit::kNone);
  EXPECT_EQ(limit.take(1, kStart).exceeded, Limit::kRequests);
  limit.change(0, 0, 60, kStart);
  EXPECT_EQ(limit.take(1, kStart).exceeded, Limit::kNone);
}

}  // namespace
}  // namespace moonpool::gateway
