// Retries: their budget, their pauses; and what a time limit says of itself.
#include "gateway/retry.h"

#include <gtest/gtest.h>

#include "gateway/time_limit.h"

namespace moonpool::gateway {
namespace {

using namespace std::chrono_literals;

int granted(RetryBudget& budget, RetryBudget::Clock::time_point now, int asked) {
  int count = 0;
  for (int i = 0; i < asked; ++i) count += budget.allow(now) ? 1 : 0;
  return count;
}

TEST(RetryBudgetTest, IsAShareOfTheRecentRequestsAndAnAllowance) {
  const auto now = RetryBudget::Clock::time_point(1000s);
  RetryBudget budget(0.2, 0.5);
  EXPECT_EQ(granted(budget, now, 100), 5);  // half a second's over ten seconds
  for (int i = 0; i < 1000; ++i) budget.request(now + 1s);
  EXPECT_EQ(granted(budget, now + 2s, 1000), 200);
  EXPECT_EQ(granted(budget, now + 9s, 1000), 0);
}

TEST(RetryBudgetTest, ForgetsAfterTenSeconds) {
  const auto now = RetryBudget::Clock::time_point(1000s);
  RetryBudget budget(0.1, 0);
  for (int i = 0; i < 100; ++i) budget.request(now);
  EXPECT_EQ(granted(budget, now, 100), 10);
  EXPECT_EQ(granted(budget, now + 10s, 100), 0);
  for (int i = 0; i < 100; ++i) budget.request(now + 10s);
  EXPECT_EQ(granted(budget, now + 10s, 100), 10);
}

TEST(RetryBudgetTest, NothingIsAllowedWhereNothingIsGiven) {
  RetryBudget budget(0, 0);
  budget.request();
  EXPECT_FALSE(budget.allow());
}

TEST(RetryPauseTest, DoublesUpToItsEndWithJitter) {
  for (int i = 0; i < 200; ++i) {
    const auto first = retry_pause(1, 10ms, 250ms);
    EXPECT_GE(first, 5ms);
    EXPECT_LE(first, 10ms);
    const auto third = retry_pause(3, 10ms, 250ms);
    EXPECT_GE(third, 20ms);
    EXPECT_LE(third, 40ms);
    EXPECT_LE(retry_pause(60, 10ms, 250ms), 250ms);
    EXPECT_EQ(retry_pause(1, 0ms, 0ms).count() > 1, false);
  }
}

TEST(TimeLimitTest, SaysWhatItWasFor) {
  const TimeLimit whole = TimeLimit::after({3s, "--request-timeout"});
  EXPECT_EQ(whole.text(), "3.000 s (--request-timeout)");
  EXPECT_EQ(whole.sooner({50ms, "--connect-timeout"}).text(), "0.050 s (--connect-timeout)");
  EXPECT_EQ(whole.sooner({50s, "--connect-timeout"}).text(), "3.000 s (--request-timeout)");
}

}  // namespace
}  // namespace moonpool::gateway
