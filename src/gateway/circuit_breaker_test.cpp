// The states of a circuit, and what moves it between them.
#include "gateway/circuit_breaker.h"

#include <gtest/gtest.h>

namespace moonpool::gateway {
namespace {

using namespace std::chrono_literals;
using State = CircuitBreaker::State;

constexpr CircuitSettings kSettings{3, 1'000ms, 4'000ms};

class CircuitBreakerTest : public ::testing::Test {
 protected:
  void fail(int times) {
    for (int i = 0; i < times; ++i) circuit.request_failed(now);
  }

  CircuitBreaker circuit{kSettings};
  CircuitBreaker::Clock::time_point now{1000s};
};

TEST_F(CircuitBreakerTest, OpensAfterConsecutiveFailuresOnly) {
  fail(2);
  circuit.request_succeeded();
  fail(2);
  EXPECT_EQ(circuit.state(), State::kClosed);
  EXPECT_TRUE(circuit.request_failed(now));
  EXPECT_EQ(circuit.state(), State::kOpen);
  EXPECT_FALSE(circuit.admits());
  EXPECT_FALSE(circuit.request_failed(now));  // no second change
}

TEST_F(CircuitBreakerTest, GoodCheckHalfOpensAfterTheOpenTime) {
  fail(3);
  circuit.check_succeeded(now + 400ms);  // jitter: between half a second and one
  EXPECT_EQ(circuit.state(), State::kOpen);
  circuit.check_succeeded(now + 1'000ms);
  EXPECT_EQ(circuit.state(), State::kHalfOpen);
  EXPECT_TRUE(circuit.admits());
}

TEST_F(CircuitBreakerTest, AnInstanceSeenComingBackIsLetInAtOnce) {
  fail(3);
  EXPECT_FALSE(circuit.check_failed(false, now));
  circuit.check_succeeded(now);
  EXPECT_EQ(circuit.state(), State::kHalfOpen);
}

TEST_F(CircuitBreakerTest, HalfOpenTakesOneRequestAtATime) {
  EXPECT_FALSE(circuit.begin_trial());
  fail(3);
  circuit.check_succeeded(now + 1s);
  ASSERT_TRUE(circuit.begin_trial());
  EXPECT_FALSE(circuit.admits());
  EXPECT_FALSE(circuit.begin_trial());
  circuit.end_trial();  // its client left: nothing is known
  EXPECT_TRUE(circuit.admits());
  ASSERT_TRUE(circuit.begin_trial());
  EXPECT_TRUE(circuit.request_answering());
  EXPECT_EQ(circuit.state(), State::kClosed);
  EXPECT_TRUE(circuit.request_failed(now));  // within its answer
  EXPECT_EQ(circuit.state(), State::kOpen);
}

TEST_F(CircuitBreakerTest, OpenTimesDoubleUpToTheirEndAndStartAnewAfterAnAnswer) {
  fail(3);
  now += 1s;
  circuit.check_succeeded(now);
  circuit.request_failed(now);
  circuit.check_succeeded(now + 900ms);
  EXPECT_EQ(circuit.state(), State::kOpen);
  now += 2s;
  circuit.check_succeeded(now);
  EXPECT_EQ(circuit.state(), State::kHalfOpen);
  for (int i = 0; i < 5; ++i) {
    circuit.request_failed(now);
    now += 4s;
    circuit.check_succeeded(now);
    EXPECT_EQ(circuit.state(), State::kHalfOpen);
  }
  EXPECT_TRUE(circuit.request_succeeded());
  fail(3);
  circuit.check_succeeded(now + 1s);
  EXPECT_EQ(circuit.state(), State::kHalfOpen);
}

TEST_F(CircuitBreakerTest, ChecksOpenItToo) {
  EXPECT_FALSE(circuit.check_failed(false, now));
  EXPECT_FALSE(circuit.check_failed(false, now));
  EXPECT_TRUE(circuit.check_failed(false, now));
  EXPECT_EQ(circuit.name(), "open");
  CircuitBreaker fresh(kSettings);
  EXPECT_TRUE(fresh.check_failed(true, now));
}

TEST_F(CircuitBreakerTest, AWholeAnswerClosesFromAnyState) {
  fail(3);
  EXPECT_TRUE(circuit.request_succeeded());
  EXPECT_EQ(circuit.name(), "closed");
  EXPECT_EQ(circuit.failures(), 0U);
}

}  // namespace
}  // namespace moonpool::gateway
