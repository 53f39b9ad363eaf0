// Terms, fences, and what a restarted master makes of the owners' reports.
#include "master/coordinator.h"
#include "master/coordinator_test_support.h"

namespace moonpool::master {
namespace {

using test::Grant;
using test::kStart;
using test::kWall;
using test::Stored;
using test::TestNode;

constexpr auto number(ErrorCode code) { return static_cast<std::int32_t>(code); }
Version version(std::uint64_t term, std::uint64_t count) { return {Term{term}, count}; }
Stored stored(const std::string& key, std::uint64_t offset, std::uint64_t length, Version v) {
  return {key, offset, length, v, TestNode::checksum_of(key)};
}

TEST(RecoveryTest, UnknownKeysAreAskedForAgainUntilTheWindowIsOver) {
  MasterConfig config;
  Coordinator master(config, kStart, kWall);
  TestNode a(master, "a:1");
  ASSERT_TRUE(a.join(kStart).ok());
  EXPECT_EQ(a.exists("k", kStart), number(ErrorCode::kRecovering));
  EXPECT_EQ(a.start("k", 1, kStart).status, number(ErrorCode::kRecovering));
  EXPECT_EQ(a.remove("k", kStart).status, ErrorCode::kRecovering);
  EXPECT_FALSE(a.get("k", kStart).has_value());
  EXPECT_EQ(a.commit("k", {0, kWall - 1, 1, {}}, kStart), number(ErrorCode::kRecovering));
  ASSERT_TRUE(a.mount(1 << 20, kStart, {stored("known", 0, 100, version(kWall - 1, 5))}).ok());
  EXPECT_EQ(a.exists("known", kStart), 1);
  EXPECT_EQ(a.commit("known", {0, kWall - 1, 5, {}}, kStart), 0) << "complete before the restart, committed after it";
  EXPECT_EQ(a.exists("k", kStart + 999), number(ErrorCode::kRecovering));
  EXPECT_EQ(a.exists("k", kStart + 1000), 0);
  EXPECT_EQ(a.commit("k", {0, kWall - 1, 1, {}}, kStart + 1000), number(ErrorCode::kStaleTerm));
}

TEST(RecoveryTest, TheWindowWaitsForMountsInProgressButNotForEver) {
  MasterConfig config;
  Coordinator master(config, kStart, kWall);
  TestNode a(master, "a:1");
  ASSERT_TRUE(a.join(kStart + 800).ok());
  EXPECT_TRUE(master.recovering(kStart + 1200)) << "it has just registered";
  ASSERT_TRUE(a.mount(1 << 20, kStart + 1200, {}, false, false).ok());
  EXPECT_TRUE(master.recovering(kStart + 5000)) << "it is still reporting";
  EXPECT_FALSE(master.recovering(kStart + 10'000));
}

TEST(RecoveryTest, TheHigherVersionWinsAndTheLoserIsRetired) {
  Coordinator master(test::quick_config(), kStart, kWall);
  TestNode a(master, "a:1");
  TestNode b(master, "b:1");
  ASSERT_TRUE(a.join(kStart).ok());
  ASSERT_TRUE(b.join(kStart).ok());
  ASSERT_TRUE(a.mount(1 << 20, kStart, {stored("k", 4096, 100, version(7, 9)), stored("l", 8192, 100, version(7, 1))}).ok());
  ASSERT_TRUE(b.mount(1 << 20, kStart, {stored("k", 0, 200, version(8, 1)), stored("l", 512, 100, version(6, 50))}).ok());
  EXPECT_EQ(b.rejected, 1U);
  EXPECT_EQ(a.get("k", kStart)->size(0), 200U);
  EXPECT_EQ(a.get("l", kStart)->version_term(0), 7U);
  const auto from_a = a.sync(kStart);
  ASSERT_EQ(from_a->retirements_size(), 1);
  EXPECT_EQ(from_a->retirements(0).offset(), 4096U);
  EXPECT_EQ(from_a->retirements(0).version().count(), 9U);
  ASSERT_EQ(b.sync(kStart)->retirements_size(), 1);
  test::check_invariants(master);
}

TEST(RecoveryTest, TwoOwnersOfOneVersionAreTwoReplicas) {
  Coordinator master(test::quick_config(), kStart, kWall);
  TestNode a(master, "a:1");
  TestNode b(master, "b:1");
  TestNode c(master, "c:1");
  for (auto* node : {&a, &b, &c}) ASSERT_TRUE(node->join(kStart).ok());
  ASSERT_TRUE(a.mount(1 << 20, kStart, {stored("k", 0, 100, version(7, 9))}).ok());
  ASSERT_TRUE(b.mount(1 << 20, kStart, {stored("k", 256, 100, version(7, 9))}).ok());
  auto differing = stored("k", 256, 100, version(7, 9));
  differing.checksum += 1;
  ASSERT_TRUE(c.mount(1 << 20, kStart, {differing}).ok());
  EXPECT_EQ(c.rejected, 1U);
  EXPECT_EQ(a.get("k", kStart)->replica_count(0), 2U);
  test::check_invariants(master);
}

TEST(RecoveryTest, NonsenseInACatalogueIsRefusedAndTheRestTaken) {
  Coordinator master(test::quick_config(), kStart, kWall);
  TestNode a(master, "a:1");
  ASSERT_TRUE(a.join(kStart).ok());
  const auto v = version(7, 1);
  ASSERT_TRUE(a.mount(1 << 20, kStart,
                      {stored("good", 0, 1000, v), stored("overlap", 512, 1000, version(7, 2)), stored("outside", 1 << 20, 1, v),
                       stored("wraps", ~0ULL - 100, 4096, v), stored("empty", 4096, 0, v), stored("", 1 << 20, 10, v),
                       stored("crooked", 10'001, 10, v), stored("future", 16384, 10, version(kWall + 1, 1)),
                       stored("uncounted", 32768, 10, version(7, 0)), stored("also good", 65536, 10, version(7, 3))})
                  .ok());
  EXPECT_EQ(a.rejected, 8U);
  EXPECT_EQ(a.exists("good", kStart), 1);
  EXPECT_EQ(a.exists("also good", kStart), 1);
  EXPECT_EQ(master.table().totals().objects, 2U);
  test::check_invariants(master);
  a.obey(kStart);
  test::check_invariants(master);
  EXPECT_EQ(a.put("new", 1 << 18, kStart), 0);
}

TEST(RecoveryTest, SpaceOfARetiredExtentThatIsStillReadIsUsedOnlyAfterItsOwnersWord) {
  Coordinator master(test::quick_config(), kStart, kWall);
  TestNode a(master, "a:1");
  ASSERT_TRUE(a.join(kStart).ok());
  ASSERT_TRUE(a.mount(1 << 20, kStart, {stored("k", 0, 1000, version(7, 1)), stored("", 4096, 1 << 19, version(7, 2))}).ok());
  EXPECT_EQ(a.rejected, 0U);
  EXPECT_EQ(master.table().totals().objects, 1U);
  EXPECT_NE(a.put("large", 1 << 19, kStart), 0) << "half of the segment is still looked at";
  a.obey(kStart);
  EXPECT_EQ(a.put("large", 1 << 19, kStart), 0);
  test::check_invariants(master);
}

TEST(RecoveryTest, ReportingAgainInTheSameReignChangesNothing) {
  Coordinator master(test::quick_config(), kStart, kWall);
  TestNode a(master, "a:1");
  ASSERT_TRUE(a.join(kStart).ok());
  ASSERT_TRUE(a.mount(1 << 20, kStart).ok());
  const auto kept = a.start("kept", 100, kStart);
  ASSERT_EQ(a.commit("kept", kept, kStart), 0);
  const auto pending = a.start("pending", 100, kStart);
  const auto removed = a.start("removed", 100, kStart);
  ASSERT_EQ(a.commit("removed", removed, kStart), 0);
  EXPECT_EQ(a.remove("removed", kStart).status, ErrorCode::kOk);
  ASSERT_TRUE(a.join(kStart).ok());
  ASSERT_TRUE(a.mount(0, kStart,
                      {stored("kept", kept.places[0].second, 100, version(kept.term, kept.count)),
                       stored("pending", pending.places[0].second, 100, version(pending.term, pending.count)),
                       stored("removed", removed.places[0].second, 100, version(removed.term, removed.count))},
                      true)
                  .ok());
  EXPECT_EQ(a.rejected, 1U);
  EXPECT_EQ(a.exists("removed", kStart), 0);
  EXPECT_EQ(a.exists("kept", kStart), 1);
  EXPECT_EQ(a.exists("pending", kStart), 0);
  EXPECT_EQ(a.commit("pending", pending, kStart), 0);
  test::check_invariants(master);
  a.obey(kStart);
  test::check_invariants(master);
}

TEST(RecoveryTest, AHigherTermOfANodeStartsANewReign) {
  Coordinator master(test::quick_config(), kStart, kWall);
  TestNode a(master, "a:1");
  ASSERT_TRUE(a.join(kStart).ok());
  ASSERT_TRUE(a.mount(1 << 20, kStart).ok());
  const auto grant = a.start("k", 100, kStart);
  ASSERT_EQ(a.commit("k", grant, kStart), 0);
  const auto item = a.remove("k", kStart, true);
  wire::RegisterNodeRequest request;
  request.set_node_id(NodeId::generate().to_bytes());
  request.set_highest_term(kWall + 1000);
  const auto reply = master.register_node(request, kStart);
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->term(), kWall + 1001);
  EXPECT_EQ(item.ticket->state(), RetirementTicket::State::kLost) << "who waits for it has to ask again";
  EXPECT_EQ(a.sync(kStart).code(), ErrorCode::kNotRegistered);
  ASSERT_TRUE(a.join(kStart).ok());
  EXPECT_EQ(a.term(), kWall + 1001);
  EXPECT_TRUE(a.mount(0, kStart, {}, true).ok()) << "the same incarnation: it is not fenced";
  const auto next = a.start("k", 100, kStart);
  EXPECT_EQ(next.term, kWall + 1001);
  request.set_highest_term(~0ULL);
  EXPECT_EQ(master.register_node(request, kStart).code(), ErrorCode::kInvalidParams);
}

TEST(FenceTest, ASilentNodeIsFencedAndComesBackEmpty) {
  Coordinator master(test::quick_config(), kStart, kWall);
  TestNode a(master, "a:1");
  TestNode b(master, "b:1");
  for (auto* node : {&a, &b}) ASSERT_TRUE(node->join(kStart).ok());
  for (auto* node : {&a, &b}) ASSERT_TRUE(node->mount(1 << 20, kStart).ok());
  const auto grant = a.start("k", 100, kStart, {.preferred = {"a:1"}});
  ASSERT_EQ(a.commit("k", grant, kStart), 0);
  const auto of_b = b.start("pending", 100, kStart, {.preferred = {"a:1"}});
  const auto item = a.remove("k", kStart, true);
  EXPECT_EQ(item.ticket->state(), RetirementTicket::State::kOutstanding);
  for (TimeMs t = kStart; t <= kStart + 10'500; t += 500) {
    ASSERT_TRUE(b.sync(t).ok());
    master.sweep(t);
  }
  EXPECT_EQ(item.ticket->state(), RetirementTicket::State::kDone);
  EXPECT_TRUE(item.ticket->fenced()) << "whoever removed it has to remember the fence";
  EXPECT_EQ(b.commit("pending", of_b, kStart + 10'500), number(ErrorCode::kInvalidVersion));
  EXPECT_EQ(a.sync(kStart + 10'600).code(), ErrorCode::kNotRegistered);
  EXPECT_THAT(b.sync(kStart + 10'600)->fenced(), ::testing::Contains(a.incarnation().to_bytes()));
  ASSERT_TRUE(a.join(kStart + 10'600).ok());
  EXPECT_EQ(a.mount(0, kStart + 10'600, {}, true).code(), ErrorCode::kStaleIncarnation);
  EXPECT_TRUE(a.mount(1 << 20, kStart + 10'600).ok());
  EXPECT_EQ(a.exists("k", kStart + 10'600), 0);
  test::check_invariants(master);
}

TEST(FenceTest, TheMastersOwnStandstillExpiresNobody) {
  Coordinator master(test::quick_config(), kStart, kWall);
  TestNode a(master, "a:1");
  ASSERT_TRUE(a.join(kStart).ok());
  master.sweep(kStart);
  master.sweep(kStart + 60'000);
  EXPECT_TRUE(a.sync(kStart + 60'100).ok());
}

// An owner is cut off; the object in it is removed (its fence is the acknowledgement); the master dies; the owner comes back to the next
// one.
TEST(FenceTest, NothingRemovedComesBackAfterAPartitionAndARestart) {
  Coordinator first(test::quick_config(), kStart, kWall);
  TestNode a(first, "a:1");
  TestNode b(first, "b:1");
  for (auto* node : {&a, &b}) ASSERT_TRUE(node->join(kStart).ok());
  for (auto* node : {&a, &b}) ASSERT_TRUE(node->mount(1 << 20, kStart).ok());
  const auto grant = b.start("k", 100, kStart, {.preferred = {"a:1"}});
  ASSERT_EQ(b.commit("k", grant, kStart), 0);
  for (TimeMs t = kStart; t <= kStart + 10'500; t += 500) {
    ASSERT_TRUE(b.sync(t).ok());
    first.sweep(t);
  }
  EXPECT_EQ(b.remove("k", kStart + 10'500).status, ErrorCode::kObjectNotFound);
  ASSERT_TRUE(b.sync(kStart + 10'500).ok());
  const auto catalogue = std::vector<Stored>{stored("k", grant.places[0].second, 100, version(grant.term, grant.count))};

  for (const bool owner_first : {false, true}) {
    Coordinator second(test::quick_config(), kStart, kWall + 20'000);
    a.use(second);
    b.use(second);
    if (owner_first) {
      ASSERT_TRUE(a.join(kStart).ok());
      ASSERT_TRUE(a.mount(0, kStart, catalogue, true).ok()) << "nobody has told the new master yet";
    }
    ASSERT_TRUE(b.join(kStart, b.fenced()).ok());
    if (owner_first) {
      EXPECT_EQ(a.sync(kStart).code(), ErrorCode::kNotRegistered);
    }
    EXPECT_EQ(b.exists("k", kStart), 0);
    ASSERT_TRUE(a.join(kStart).ok());
    EXPECT_EQ(a.mount(0, kStart, catalogue, true).code(), ErrorCode::kStaleIncarnation);
    EXPECT_EQ(b.exists("k", kStart), 0);
    test::check_invariants(second);
  }
}

// The owner was cut off while the master restarted, so nothing is fenced; what was removed, replaced or purged meanwhile stays so.
TEST(FenceTest, ALateReportBringsBackNothingThatWasDroppedMeanwhile) {
  Coordinator master(test::quick_config(), kStart, kWall);
  TestNode a(master, "a:1");
  TestNode late(master, "late:1");
  ASSERT_TRUE(a.join(kStart).ok());
  ASSERT_TRUE(a.mount(1 << 20, kStart, {stored("replaced", 0, 100, version(7, 5))}).ok());
  EXPECT_EQ(a.remove("missing", kStart).status, ErrorCode::kObjectNotFound);
  EXPECT_EQ(a.remove("replaced", kStart).status, ErrorCode::kOk);
  wire::RemoveMatchingRequest matching;
  matching.set_regex("^old-");
  ASSERT_TRUE(master.begin_remove_matching(matching, kStart).ok());
  matching.set_all(true);
  matching.set_tenant("red");
  ASSERT_TRUE(master.begin_remove_matching(matching, kStart).ok());
  ASSERT_TRUE(late.join(kStart).ok());
  ASSERT_TRUE(late.mount(1 << 20, kStart,
                         {stored("missing", 0, 100, version(7, 1)), stored("replaced", 256, 100, version(7, 2)),
                          stored("old-1", 512, 100, version(7, 3)), stored(std::string("red\0x", 5), 768, 100, version(7, 4)),
                          stored("legitimate", 1024, 100, version(7, 6))})
                  .ok());
  EXPECT_EQ(late.rejected, 4U);
  EXPECT_EQ(a.exists("legitimate", kStart), 1);
  EXPECT_EQ(master.table().totals().objects, 1U);
  EXPECT_EQ(late.obey(kStart), 4U);
  test::check_invariants(master);
}

TEST(TombstoneTest, WhenThereAreTooManyToRememberAllOldReportsAreRefused) {
  DroppedKeys dropped;
  for (std::uint64_t i = 1; i <= DroppedKeys::kLimit; ++i) dropped.add(i, version(7, i));
  EXPECT_FALSE(dropped.covers(999'999, version(7, 1)));
  EXPECT_TRUE(dropped.covers(5, version(7, 5)));
  EXPECT_FALSE(dropped.covers(5, version(7, 6)));
  dropped.add(1'000'000, version(7, 9));
  EXPECT_TRUE(dropped.covers(999'999, version(7, DroppedKeys::kLimit)));
  EXPECT_FALSE(dropped.covers(999'999, version(8, 1)));
}

}  // namespace
}  // namespace moonpool::master
