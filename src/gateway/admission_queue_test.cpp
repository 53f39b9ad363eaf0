// The queue in front of the instances, over a clock of the test's own: who goes first, who is refused, and what always holds.
#include "gateway/admission_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>

namespace moonpool::gateway {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Request = AdmissionQueue::Request;
using State = Request::State;
using Time = AdmissionQueue::Time;

const Time kStart{std::chrono::hours(1)};
constexpr std::size_t kPlenty = std::size_t{1} << 30;

class AdmissionQueueTest : public ::testing::Test {
 protected:
  Request& make(const std::string& flow, double cost = 1, int priority = 0, double weight = 1, std::size_t bytes = 1) {
    auto request = std::make_unique<Request>();
    request->flow = flow;
    request->weight = weight;
    request->priority = priority;
    request->bytes = bytes;
    request->cost = cost;
    request->deadline = now + std::chrono::hours(1);
    all.push_back(std::move(request));
    return *all.back();
  }
  // One that has to wait or run.
  Request& enter(const std::string& flow, double cost = 1, int priority = 0, double weight = 1) {
    Request& request = make(flow, cost, priority, weight);
    EXPECT_FALSE(queue.arrive(request, now).refused.has_value());
    return request;
  }
  // The running one ends after `takes`; the next one runs.
  Request* serve(Request& running, milliseconds takes = milliseconds(10)) {
    now += takes;
    queue.ended(running, running.cost, now);
    return queue.next(now);
  }

  Time now = kStart;
  AdmissionQueue queue{{1, 1000, kPlenty}};
  std::vector<std::unique_ptr<Request>> all;
};

TEST_F(AdmissionQueueTest, WithoutALimitNothingWaits) {
  queue.change({0, 0, 0}, now);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(enter("a").state, State::kRunning);
}

TEST_F(AdmissionQueueTest, WithinAKeyFirstInFirstOut) {
  Request* running = &enter("a");
  std::vector<Request*> waiting;
  for (int i = 0; i < 5; ++i) waiting.push_back(&enter("a", 1 + i % 2));
  for (Request* expected : waiting) {
    running = serve(*running);
    EXPECT_EQ(running, expected);
  }
  EXPECT_EQ(serve(*running), nullptr);
  EXPECT_EQ(queue.running(), 0U);
}

TEST_F(AdmissionQueueTest, ATenfoldOfferGetsNoMoreService) {
  std::map<std::string, double> served;
  Request* running = &enter("first");
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < 10; ++i) enter("greedy", 100);
    enter("modest", 100);
    running = serve(*running);
    ASSERT_NE(running, nullptr);
    served[running->flow] += running->cost;
  }
  EXPECT_NEAR(served["greedy"], served["modest"], 100);
}

TEST_F(AdmissionQueueTest, ServiceIsSharedByWeightInTokensAndNotInRequests) {
  std::map<std::string, double> served;
  Request* running = &enter("first");
  for (int i = 0; i < 900; ++i) enter(i % 3 == 0 ? "long" : i % 3 == 1 ? "short" : "heavy", i % 3 == 0 ? 400 : 100, 0, i % 3 == 2 ? 3 : 1);
  for (int i = 0; i < 300; ++i) {
    running = serve(*running);
    served[running->flow] += running->cost;
  }
  EXPECT_NEAR(served["long"], served["short"], 400);
  EXPECT_NEAR(served["heavy"], 3 * served["short"], 400);
}

TEST_F(AdmissionQueueTest, WhatARequestTurnedOutToCostCounts) {
  std::map<std::string, int> started;
  Request* running = &enter("first");
  for (int i = 0; i < 400; ++i) enter(i % 2 == 0 ? "wordy" : "brief", 100);
  for (int i = 0; i < 200; ++i) {
    now += milliseconds(10);
    queue.ended(*running, running->flow == "wordy" ? 300 : 100, now);
    running = queue.next(now);
    ++started[running->flow];
  }
  EXPECT_NEAR(started["brief"], 3 * started["wordy"], 6);
}

TEST_F(AdmissionQueueTest, AKeyThatWasAwayHasSavedNothing) {
  Request* running = &enter("first");
  for (int i = 0; i < 100; ++i) enter("steady", 10);
  for (int i = 0; i < 50; ++i) running = serve(*running);
  for (int i = 0; i < 50; ++i) enter("late", 10);
  int late = 0;
  for (int i = 0; i < 20; ++i) {
    running = serve(*running);
    late += running->flow == "late" ? 1 : 0;
  }
  EXPECT_NEAR(late, 10, 1);
}

TEST_F(AdmissionQueueTest, LowerPriorityNumbersGoFirst) {
  Request* running = &enter("a");
  Request& normal = enter("a");
  Request& background = enter("b", 1, 5);
  Request& urgent = enter("c", 1000, -5);
  EXPECT_EQ(running = serve(*running), &urgent);
  EXPECT_EQ(running = serve(*running), &normal);
  EXPECT_EQ(running = serve(*running), &background);
}

TEST_F(AdmissionQueueTest, WhoLeavesCostsItsKeyNothing) {
  Request* running = &enter("first");
  std::vector<Request*> gone;
  for (int i = 0; i < 50; ++i) gone.push_back(&enter("a", 1000));
  Request& stays = enter("a", 10);
  Request& other = enter("b", 10);
  Request& later = enter("b", 10);
  for (Request* one : gone) queue.leave(*one);
  EXPECT_EQ(queue.waiting(), 3U);
  EXPECT_EQ(running = serve(*running), &stays);
  EXPECT_EQ(running = serve(*running), &other);
  EXPECT_EQ(running = serve(*running), &later);
}

TEST_F(AdmissionQueueTest, AFullQueueKeepsRoomForThoseBelowTheirShare) {
  queue.change({1, 10, kPlenty}, now);
  enter("first");
  for (int i = 0; i < 10; ++i) enter("greedy");
  EXPECT_EQ(queue.arrive(make("greedy"), now).refused, Shed::kOverShare);
  for (int i = 0; i < 5; ++i) {
    Request& modest = make("modest");
    const auto arrival = queue.arrive(modest, now);
    EXPECT_EQ(modest.state, State::kWaiting);
    ASSERT_EQ(arrival.displaced.size(), 1U);
    EXPECT_EQ(arrival.displaced[0].first->flow, "greedy");
    EXPECT_EQ(arrival.displaced[0].second, Shed::kOverShare);
    EXPECT_EQ(arrival.displaced[0].first->state, State::kOutside);
  }
  EXPECT_EQ(queue.arrive(make("modest"), now).refused, Shed::kOverShare);
  EXPECT_EQ(queue.arrive(make("greedy"), now).refused, Shed::kOverShare);
  EXPECT_EQ(queue.waiting_of("greedy"), 5U);
}

TEST_F(AdmissionQueueTest, AHigherPriorityDisplacesTheNewestOfTheLowest) {
  queue.change({1, 3, kPlenty}, now);
  enter("first");
  enter("a", 1, 1);
  Request& older = enter("a", 1, 2);
  Request& newest = enter("a", 1, 2);
  auto arrival = queue.arrive(make("b", 1, 0), now);
  ASSERT_EQ(arrival.displaced.size(), 1U);
  EXPECT_EQ(arrival.displaced[0], std::pair(&newest, Shed::kDisplaced));
  arrival = queue.arrive(make("b", 1, 0), now);
  ASSERT_EQ(arrival.displaced.size(), 1U);
  EXPECT_EQ(arrival.displaced[0].first, &older);
  EXPECT_EQ(queue.arrive(make("c", 1, 3), now).refused, Shed::kQueueFull);  // nobody is below it, and its key has nothing waiting
}

TEST_F(AdmissionQueueTest, BytesAreLimitedTooAndAFailedDisplacementChangesNothing) {
  queue.change({1, 100, 1000}, now);
  enter("first");
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(queue.arrive(make("a", 1, 5, 1, 200), now).refused);
  EXPECT_FALSE(queue.arrive(make("b", 1, 0, 1, 200), now).refused);
  EXPECT_EQ(queue.waiting_bytes(), 1000U);
  EXPECT_EQ(queue.arrive(make("c", 1, 0, 1, 1001), now).refused, Shed::kQueueFull);
  const auto order_before = queue.waiting_of("a");
  // It would need b's bytes too, and b has no more than its share.
  EXPECT_EQ(queue.arrive(make("c", 1, 0, 1, 900), now).refused, Shed::kOverShare);
  EXPECT_EQ(queue.waiting_of("a"), order_before);
  EXPECT_EQ(queue.waiting_bytes(), 1000U);
  const auto arrival = queue.arrive(make("c", 1, 0, 1, 400), now);
  EXPECT_EQ(arrival.displaced.size(), 2U);
  EXPECT_EQ(queue.waiting_bytes(), 1000U);
}

TEST_F(AdmissionQueueTest, NoQueueMeansNoWaiting) {
  queue.change({1, 0, kPlenty}, now);
  enter("a");
  EXPECT_EQ(queue.arrive(make("a"), now).refused, Shed::kQueueFull);
}

TEST_F(AdmissionQueueTest, TheEstimateIsWhatTheWaitTurnsOutToBe) {
  queue.change({4, 1000, kPlenty}, now);
  std::vector<Request*> running;
  for (int i = 0; i < 4; ++i) running.push_back(&enter("a", 100));
  for (int i = 0; i < 40; ++i) enter("a", 100);
  EXPECT_FALSE(queue.estimate(make("a", 100), now).has_value()) << "nothing has ended yet";
  // One of four ends every 250 ms: 4 requests, 400 tokens, a second.
  const auto step = [&] {
    Request* ended = running.front();
    running.erase(running.begin());
    running.push_back(serve(*ended, milliseconds(250)));
  };
  for (int i = 0; i < 20; ++i) step();
  const auto behind_all = queue.estimate(make("a", 100), now);
  ASSERT_TRUE(behind_all.has_value());
  EXPECT_NEAR(std::chrono::duration<double>(*behind_all).count(), 21 * 0.25, 0.6);
  const auto of_another = queue.estimate(make("b", 100), now);
  EXPECT_LE(*of_another, milliseconds(700)) << "its key has nothing waiting, so a's backlog is not in its way";
  const auto urgent = queue.estimate(make("a", 100, -1), now);
  EXPECT_LE(*urgent, milliseconds(400));
  // A promise that is kept: exactly those with a deadline behind the estimate are taken.
  Request& hopeless = make("a", 100);
  hopeless.deadline = now + seconds(3);
  EXPECT_EQ(queue.arrive(hopeless, now).refused, Shed::kDeadline);
  Request& patient = make("a", 100);
  patient.deadline = now + seconds(7);
  EXPECT_FALSE(queue.arrive(patient, now).refused.has_value());
  const Time arrived = now;
  while (patient.state != State::kRunning) step();
  EXPECT_NEAR(std::chrono::duration<double>(now - arrived).count(), std::chrono::duration<double>(*behind_all).count(), 0.8);
}

TEST_F(AdmissionQueueTest, SilenceLowersTheRate) {
  Request* running = &enter("a", 100);
  for (int i = 0; i < 20; ++i) enter("a", 100);
  for (int i = 0; i < 5; ++i) running = serve(*running, milliseconds(100));
  const auto lively = queue.estimate(make("a", 100), now);
  now += seconds(60);
  const auto stalled = queue.estimate(make("a", 100), now);
  EXPECT_GT(*stalled, 50 * *lively);
}

TEST_F(AdmissionQueueTest, MoreRoomStartsMore) {
  enter("a");
  for (int i = 0; i < 5; ++i) enter("a");
  queue.change({3, 1000, kPlenty}, now);
  EXPECT_NE(queue.next(now), nullptr);
  EXPECT_NE(queue.next(now), nullptr);
  EXPECT_EQ(queue.next(now), nullptr);
  queue.change({0, 1000, kPlenty}, now);
  for (int i = 0; i < 3; ++i) EXPECT_NE(queue.next(now), nullptr);
  EXPECT_EQ(queue.running(), 6U);
}

// Random arrivals, ends, departures and changes of the limits: the limits hold at every moment, nothing is lost, everything ends.
TEST(AdmissionQueuePropertyTest, LimitsHoldAndEverythingEnds) {
  for (unsigned seed = 0; seed < 300; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](unsigned limit) { return std::uniform_int_distribution<unsigned>(0, limit - 1)(random); };
    QueueLimits limits{1 + below(6), below(12), 200 + below(2000)};
    AdmissionQueue queue(limits);
    Time now = kStart;
    std::vector<std::unique_ptr<Request>> all;
    std::vector<Request*> running;
    std::vector<Request*> waiting;
    std::size_t ended = 0;
    std::size_t shed = 0;
    std::size_t left = 0;
    const auto drop = [](std::vector<Request*>& from, Request* one) { from.erase(std::find(from.begin(), from.end(), one)); };
    const auto drain = [&] {
      while (Request* next = queue.next(now)) {
        ASSERT_EQ(next->state, State::kRunning);
        drop(waiting, next);
        running.push_back(next);
      }
    };
    const auto check = [&] {
      std::size_t bytes = 0;
      for (const Request* one : waiting) {
        ASSERT_EQ(one->state, State::kWaiting);
        bytes += one->bytes;
      }
      ASSERT_EQ(queue.running(), running.size()) << seed;
      ASSERT_EQ(queue.waiting(), waiting.size()) << seed;
      ASSERT_EQ(queue.waiting_bytes(), bytes) << seed;
      // No lost wake-up: nobody waits beside a free place.
      ASSERT_TRUE(waiting.empty() || running.size() >= limits.running) << seed;
      ASSERT_EQ(all.size(), running.size() + waiting.size() + ended + shed + left) << seed;
    };
    const auto end_one = [&] {
      Request* one = running[below(static_cast<unsigned>(running.size()))];
      drop(running, one);
      queue.ended(*one, 1 + below(200), now);
      ++ended;
      drain();
    };
    std::size_t most_waiting = limits.waiting;
    std::size_t most_bytes = limits.waiting_bytes;
    for (int step = 0; step < 400; ++step) {
      now += milliseconds(below(50));
      const unsigned what = below(20);
      if (what < 12) {
        auto request = std::make_unique<Request>();
        request->flow = std::string(1, static_cast<char>('a' + below(5)));
        request->weight = 0.5 + below(4);
        request->priority = static_cast<int>(below(3)) - 1;
        request->bytes = below(300);
        request->cost = 1 + below(100);
        request->deadline = now + milliseconds(below(4000));
        Request& one = *request;
        all.push_back(std::move(request));
        const auto arrival = queue.arrive(one, now);
        for (const auto& [victim, cause] : arrival.displaced) {
          ASSERT_NE(victim, &one);
          ASSERT_EQ(victim->state, State::kOutside);
          ASSERT_TRUE(cause == Shed::kDisplaced ? victim->priority > one.priority : cause == Shed::kOverShare);
          drop(waiting, victim);
          ++shed;
        }
        if (arrival.refused) {
          ASSERT_TRUE(arrival.displaced.empty());
          ASSERT_EQ(one.state, State::kOutside);
          ++shed;
        } else {
          (one.state == State::kRunning ? running : waiting).push_back(&one);
          ASSERT_LE(queue.running(), std::max(limits.running, running.size()));
          ASSERT_LE(queue.waiting(), most_waiting);
          ASSERT_LE(queue.waiting_bytes(), most_bytes);
        }
      } else if (what < 17 && !running.empty()) {
        end_one();
      } else if (what < 19 && !waiting.empty()) {
        Request* one = waiting[below(static_cast<unsigned>(waiting.size()))];
        drop(waiting, one);
        queue.leave(*one);
        ++left;
      } else if (what == 19) {
        limits = {1 + below(6), below(12), 200 + below(2000)};
        queue.change(limits, now);
        most_waiting = std::max(limits.waiting, queue.waiting());  // what waits beyond new limits stays
        most_bytes = std::max(limits.waiting_bytes, queue.waiting_bytes());
        drain();
      }
      check();
      if (::testing::Test::HasFatalFailure()) return;
      most_waiting = std::max(limits.waiting, std::min(most_waiting, queue.waiting()));
      most_bytes = std::max(limits.waiting_bytes, std::min(most_bytes, queue.waiting_bytes()));
    }
    while (!running.empty()) {
      now += milliseconds(10);
      end_one();
    }
    EXPECT_TRUE(waiting.empty()) << seed;
    EXPECT_EQ(queue.waiting() + queue.waiting_bytes() + queue.running(), 0U);
  }
}

}  // namespace
}  // namespace moonpool::gateway
