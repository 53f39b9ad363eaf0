#include "master/coordinator.h"
#include "master/coordinator_test_support.h"

namespace moonpool::master {
namespace {

using test::kStart;
using test::kWall;
using test::TestNode;

// A pool of `places` objects of 4 KiB on one node.
class EvictionTest : public ::testing::Test {
 protected:
  void open(int places, MasterConfig config = test::quick_config()) {
    master = std::make_unique<Coordinator>(config, kStart, kWall);
    node = std::make_unique<TestNode>(*master, "n:1");
    ASSERT_TRUE(node->join(now).ok());
    ASSERT_TRUE(node->mount(static_cast<std::uint64_t>(places) * 4096, now).ok());
  }
  std::int32_t put(const std::string& key, const TestNode::PutWish& wish = {}) { return node->put(key, 4096, now, wish); }
  bool there(const std::string& key) { return master->table().peek(HashedKey(key)) == ErrorCode::kOk; }
  void evict(int objects, bool allow_soft = true) {
    static_cast<void>(master->table().evict(static_cast<std::uint64_t>(objects) * 4096, now, allow_soft));
  }
  // As the service does it: evict, let the owner acknowledge, try again.
  std::int32_t put_with_room(const std::string& key, std::uint64_t size) {
    wire::PutStartRequest request;
    request.set_node_id(node->id().to_bytes());
    request.add_key(key);
    request.add_size(size);
    request.set_replica_num(1);
    const test::Sent<lean::PutStartRequest> sent(request);
    auto batch = master->begin_put(*sent, now);
    if (!batch.ok()) return batch.status().number();
    for (int tries = 0; tries < 1000; ++tries) {
      EXPECT_TRUE(master->try_put(*batch, now).ok());
      if (batch->bytes_without_room() == 0) break;
      if (master->make_room(*batch, now, false) == RoomVerdict::kHopeless) break;
      node->obey(now);
    }
    const auto reply = master->put_reply(*batch);
    if (reply.status[0] != 0) return reply.status[0];
    return node->commit(key, {0, reply.term, reply.version_count[0], {}}, now);
  }
  void TearDown() override { test::check_invariants(*master); }

  std::unique_ptr<Coordinator> master;
  std::unique_ptr<TestNode> node;
  TimeMs now = kStart;
};

TEST_F(EvictionTest, TheOldestGoesFirstWhateverItsShard) {
  open(100);
  for (int i = 0; i < 50; ++i) ASSERT_EQ(put("k" + std::to_string(i)), 0);
  evict(20);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(there("k" + std::to_string(i)), i >= 20) << i;
}

TEST_F(EvictionTest, WhatWasReadStaysLonger) {
  open(100);
  for (int i = 0; i < 10; ++i) ASSERT_EQ(put("k" + std::to_string(i)), 0);
  for (int i = 0; i < 10; i += 2) EXPECT_EQ(node->exists("k" + std::to_string(i), now), 1);
  now += 20'000;  // the leases are over
  evict(5);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(there("k" + std::to_string(i)), i % 2 == 0) << i;
  evict(5);
  EXPECT_EQ(master->table().totals().objects, 0U) << "hits delay, they do not protect";
}

TEST_F(EvictionTest, LeasedNeverHardPinnedNeverSoftPinnedLast) {
  open(100);
  ASSERT_EQ(put("leased"), 0);
  EXPECT_EQ(node->exists("leased", now), 1);
  ASSERT_EQ(put("hard", {.hard_pin = true}), 0);
  ASSERT_EQ(put("soft", {.soft_pin = true}), 0);
  ASSERT_EQ(put("plain"), 0);
  evict(1);
  EXPECT_FALSE(there("plain"));
  EXPECT_TRUE(there("soft"));
  evict(100, false);
  EXPECT_TRUE(there("soft")) << "not without leave";
  evict(100);
  EXPECT_FALSE(there("soft"));
  EXPECT_TRUE(there("leased"));
  EXPECT_TRUE(there("hard"));
  now += 10'000;
  evict(100);
  EXPECT_FALSE(there("leased"));
  EXPECT_TRUE(there("hard"));
  EXPECT_EQ(node->remove("hard", now).status, ErrorCode::kOk) << "a pin is about eviction";
}

TEST_F(EvictionTest, ASoftPinRunsOut) {
  auto config = test::quick_config();
  config.soft_pin_ttl = std::chrono::milliseconds(1000);
  open(10, config);
  ASSERT_EQ(put("soft", {.soft_pin = true}), 0);
  evict(1, false);
  EXPECT_TRUE(there("soft"));
  now += 1001;
  evict(1, false);
  EXPECT_FALSE(there("soft"));
}

TEST_F(EvictionTest, AGroupGoesTogetherOrNotAtAll) {
  open(100);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(put("g" + std::to_string(i), {.group = "block"}), 0);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(put("k" + std::to_string(i)), 0);
  EXPECT_EQ(node->exists("g3", now), 1);
  evict(1);
  EXPECT_TRUE(there("g0")) << "a lease on one keeps all";
  EXPECT_FALSE(there("k0"));
  now += 20'000;
  evict(100);
  EXPECT_EQ(master->table().totals().objects, 0U);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(put("h" + std::to_string(i), {.group = "next"}), 0);
  ASSERT_EQ(put("last"), 0);
  evict(1);
  for (int i = 0; i < 4; ++i) EXPECT_FALSE(there("h" + std::to_string(i))) << "one goes, all go";
  EXPECT_TRUE(there("last"));
}

TEST_F(EvictionTest, APutNeverFailsWhileEvictableBytesExist) {
  open(64);
  for (int i = 0; i < 5000; ++i) {
    const auto size = i % 17 == 0 ? std::uint64_t{64} * 4096 : static_cast<std::uint64_t>(1 + (i * 7919) % 40'000);
    ASSERT_EQ(put_with_room("k" + std::to_string(i), size), 0) << i;
  }
  EXPECT_EQ(put_with_room("too large", 65 * 4096), -200);
  ASSERT_EQ(put_with_room("all", 64 * 4096), 0);
  EXPECT_EQ(node->exists("all", now), 1);
  EXPECT_EQ(put_with_room("none", 1), -200) << "everything is leased";
  EXPECT_EQ(put_with_room("none", 1), -200);
  now += 10'000;
  EXPECT_EQ(put_with_room("none", 1), 0) << "the lease is over";
}

TEST_F(EvictionTest, TheSweepKeepsTheWatermark) {
  open(1000);
  for (int i = 0; i < 890; ++i) ASSERT_EQ(put("k" + std::to_string(i)), 0);
  master->sweep(now);
  EXPECT_EQ(master->table().totals().objects, 890U);
  for (int i = 890; i < 950; ++i) ASSERT_EQ(put("k" + std::to_string(i)), 0);
  EXPECT_TRUE(master->above_watermark());
  master->sweep(now);
  EXPECT_LE(master->table().totals().objects, 850U);
  EXPECT_GE(master->table().totals().objects, 848U);
  EXPECT_FALSE(master->above_watermark()) << "what is in quarantine is on its way back";
  EXPECT_FALSE(there("k0"));
  EXPECT_TRUE(there("k949"));
}

TEST_F(EvictionTest, RoomIsMadeAheadOfDemandSoThatPutsFindIt) {
  open(1000);
  int refused = 0;
  // Twenty times the pool, with the sweep that a put's nudge brings: no put has to make room itself.
  for (int i = 0; i < 20'000; ++i) {
    if (put("k" + std::to_string(i)) != 0) ++refused;
    if (!master->above_watermark()) continue;
    master->sweep(now);
    node->obey(now);
  }
  EXPECT_EQ(refused, 0);
  EXPECT_GE(master->table().totals().objects, 840U) << "and no more of it than need be";
}

}  // namespace
}  // namespace moonpool::master
