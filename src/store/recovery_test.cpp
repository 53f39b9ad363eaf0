// The master goes and comes back, and clients come and go, in this process (tests/faults does the same to processes with kill -9).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/sync_point.h"
#include "store/client.h"
#include "store/testing/pool.h"
#include "tests/support/test_support.h"

namespace moonpool::store {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::Bytes;
using testing::pattern;
using testing::Pool;

class RecoveryTest : public ::testing::Test {
 protected:
  void TearDown() override { SyncPoints::instance().clear(); }
};

TEST_F(RecoveryTest, ARestartedMasterKnowsEveryObjectAgainAndNoneThatWasRemoved) {
  Pool pool;
  const auto a = pool.client();
  const auto b = pool.client();
  ReplicaPolicy two;
  two.replica_num = 2;
  for (int i = 0; i < 64; ++i) {
    const std::string key = "object " + std::to_string(i);
    ASSERT_EQ(testing::put_one(i % 2 == 0 ? *a : *b, key, pattern(key, 1, 100'000 + static_cast<std::size_t>(i)),
                               i % 3 == 0 ? two : ReplicaPolicy{}),
              0);
  }
  for (int i = 0; i < 64; i += 4) ASSERT_EQ(testing::remove_one(*a, "object " + std::to_string(i), true), 0);
  ASSERT_EQ(testing::upsert_one(*a, "object 1", pattern("object 1", 2, 5000)), 0);

  pool.stop_master();
  pool.start_master();
  const auto start = Deadline::Clock::now();
  for (int i = 0; i < 64; ++i) {
    const std::string key = "object " + std::to_string(i);
    const auto got = testing::get_fresh(i % 2 == 0 ? *b : *a, key);
    if (i % 4 == 0) {
      EXPECT_EQ(got.code(), ErrorCode::kObjectNotFound) << key;
      continue;
    }
    ASSERT_TRUE(got.ok()) << key << ": " << got.status().to_string();
    EXPECT_TRUE(*got == (i == 1 ? pattern(key, 2, 5000) : pattern(key, 1, 100'000 + static_cast<std::size_t>(i)))) << key;
  }
  RecordProperty("ms_to_read_all", static_cast<int>(std::chrono::duration_cast<milliseconds>(Deadline::Clock::now() - start).count()));
  EXPECT_LT(Deadline::Clock::now() - start, seconds(10));
  EXPECT_EQ(testing::put_one(*a, "after", pattern("after", 1, 100)), 0);
}

TEST_F(RecoveryTest, APutWhoseDataIsCompleteCommitsAtTheNextMaster) {
  Pool pool;
  const auto client = pool.client();
  std::atomic<bool> restarted{false};
  SyncPoints::instance().on("put.before_commit", [&] {
    if (restarted.exchange(true)) return;
    pool.stop_master();
    pool.start_master();
  });
  EXPECT_EQ(testing::put_one(*client, "k", pattern("k", 1, 200'000)), 0);
  ASSERT_TRUE(restarted);
  const auto got = testing::get_fresh(*client, "k");
  ASSERT_TRUE(got.ok()) << got.status().to_string();
  EXPECT_TRUE(*got == pattern("k", 1, 200'000));
}

TEST_F(RecoveryTest, PutsInFlightCommitOrFailWithinTheirDeadline) {
  Pool pool;
  auto options = pool.options();
  options.operation_timeout = seconds(8);
  const auto writer = pool.client(options);
  const auto owner = pool.client();
  std::atomic<bool> stop{false};
  std::atomic<int> late{0};
  std::mutex mutex;
  std::vector<std::string> committed;
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; !stop; ++i) {
        const std::string key = std::to_string(t) + "/" + std::to_string(i);
        const auto start = Deadline::Clock::now();
        const bool ok = testing::put_one(*writer, key, pattern(key, 1, 50'000)) == 0;
        if (Deadline::Clock::now() - start > seconds(12)) ++late;
        const std::scoped_lock lock(mutex);
        if (ok) committed.push_back(key);
        if (committed.size() > 600) break;
      }
    });
  }
  const auto count = [&] {
    const std::scoped_lock lock(mutex);
    return committed.size();
  };
  for (std::size_t round = 1; round <= 2; ++round) {
    ASSERT_TRUE(test::wait_until([&] { return count() > 30 * round; }, Deadline::after(seconds(30))));
    pool.stop_master();
    pool.start_master();
  }
  const std::size_t seen = count();
  ASSERT_TRUE(test::wait_until([&] { return count() > std::min<std::size_t>(seen + 30, 600); }, Deadline::after(seconds(30))));
  stop = true;
  threads.clear();
  EXPECT_EQ(late, 0);
  for (const auto& key : committed) {
    const auto got = testing::get_fresh(*owner, key);
    ASSERT_TRUE(got.ok()) << key << ": " << got.status().to_string();
    EXPECT_TRUE(*got == pattern(key, 1, 50'000)) << key;
  }
}

TEST_F(RecoveryTest, ALookUpWaitsForABlockThatIsBeingPut) {
  Pool pool;
  const auto producer = pool.client();
  auto options = pool.options();
  options.handover_wait = seconds(10);
  const auto consumer = pool.client(options);
  std::atomic<bool> data_written{false};
  std::atomic<bool> go_on{false};
  SyncPoints::instance().on("put.before_commit", [&] {
    data_written = true;
    static_cast<void>(test::wait_until([&] { return go_on.load(); }, Deadline::after(seconds(30))));
  });
  std::jthread put([&] { EXPECT_EQ(testing::put_one(*producer, "block", pattern("block", 1, 1000)), 0); });
  ASSERT_TRUE(test::wait_until([&] { return data_written.load(); }, Deadline::after(seconds(30))));
  std::atomic<int> found{-1};
  std::jthread look_up([&] { found = testing::exist_one(*consumer, "block"); });
  go_on = true;
  look_up.join();
  EXPECT_EQ(found, 1);
}

TEST_F(RecoveryTest, ALookUpForWhatNobodyPutsEndsWithItsWait) {
  Pool pool;
  auto options = pool.options();
  options.handover_wait = milliseconds(200);
  const auto consumer = pool.client(options);
  const auto start = Deadline::Clock::now();
  EXPECT_EQ(testing::exist_one(*consumer, "nothing"), 0);
  EXPECT_LT(Deadline::Clock::now() - start, seconds(5));
}

TEST_F(RecoveryTest, AFencedSegmentIsMountedAnewAndEmpty) {
  auto config = testing::test_master_config();
  config.client_ttl = milliseconds(1000);
  Pool pool(config);
  const auto reader = pool.client(std::uint64_t{0});
  const auto owner = pool.client();
  ASSERT_EQ(testing::put_one(*owner, "k", pattern("k", 1, 1000)), 0);
  // The owner's heartbeat stands still until the master has given it up.
  ASSERT_EQ(testing::put_one(*owner, "doomed", pattern("k", 1, 1000)), 0);
  std::atomic<bool> still{true};
  std::atomic<bool> held{false};
  SyncPoints::instance().on("membership.before_retire", [&] {
    held = true;
    static_cast<void>(test::wait_until([&] { return !still; }, Deadline::after(seconds(30))));
  });
  std::jthread remover([&] { static_cast<void>(testing::remove_one(*reader, "doomed", true)); });
  ASSERT_TRUE(test::wait_until([&] { return held.load(); }, Deadline::after(seconds(30))));
  EXPECT_TRUE(test::wait_until([&] { return testing::exist_one(*reader, "k") == 0; }, Deadline::after(seconds(30))));
  still = false;
  // It comes back by itself, with nothing in it.
  EXPECT_TRUE(
      test::wait_until([&] { return testing::put_one(*owner, "again", pattern("again", 1, 1000)) == 0; }, Deadline::after(seconds(30))));
  EXPECT_EQ(testing::get_fresh(*reader, "k").code(), ErrorCode::kObjectNotFound);
  EXPECT_TRUE(*testing::get_fresh(*reader, "again") == pattern("again", 1, 1000));
}

}  // namespace
}  // namespace moonpool::store
