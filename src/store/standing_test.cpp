#include "store/standing.h"

#include <gtest/gtest.h>

#include <thread>

namespace moonpool::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(Standing, WaitsUntilTheNodeIsRegistered) {
  Standing standing;
  std::jthread membership([&] { standing.set_registered(Term{7}); });
  EXPECT_TRUE(standing.wait_registered(Deadline::after(seconds(10))).ok());
  EXPECT_EQ(standing.term(), Term{7});
}

TEST(Standing, TellsTheLastReasonAtTheDeadline) {
  Standing standing;
  standing.set_unregistered({ErrorCode::kUnavailable, "nobody there"});
  const Status status = standing.wait_registered(Deadline::after(milliseconds(1)));
  EXPECT_EQ(status.code(), ErrorCode::kUnavailable);
  EXPECT_EQ(status.message(), "nobody there");
}

TEST(Standing, AFinalErrorEndsTheWaitAtOnce) {
  Standing standing;
  standing.set_unregistered({ErrorCode::kUnauthenticated, "wrong token"}, true);
  const auto start = Deadline::Clock::now();
  EXPECT_EQ(standing.wait_registered(Deadline::after(seconds(30))).code(), ErrorCode::kUnauthenticated);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(10));
}

TEST(Standing, APauseEndsWithTheNextRegistrationAndWithTheClose) {
  Standing standing;
  standing.set_registered(Term{1});
  std::jthread membership([&] {
    // Comes and goes while the other thread pauses or before: the pause must not depend on seeing the state in between.
    while (!standing.stopped()) {
      standing.set_registered(Term{2});
      std::this_thread::yield();
    }
  });
  EXPECT_TRUE(standing.pause(seconds(30)));
  standing.stop();
  EXPECT_FALSE(standing.pause(seconds(30)));
}

TEST(Standing, KeepsTheTermOfTheLastRegistration) {
  Standing standing;
  standing.set_registered(Term{5});
  standing.set_unregistered({ErrorCode::kNotRegistered, "forgotten"});
  EXPECT_FALSE(standing.registered());
  EXPECT_EQ(standing.term(), Term{5});
}

}  // namespace
}  // namespace moonpool::store
