#include "master/coordinator.h"

#include "master/coordinator_test_support.h"

namespace moonpool::master {
namespace {

using test::Grant;
using test::kStart;
using test::kWall;
using test::TestNode;

constexpr auto number(ErrorCode code) { return static_cast<std::int32_t>(code); }

class CoordinatorTest : public ::testing::Test {
 protected:
  CoordinatorTest() : master(test::quick_config(), kStart, kWall), a(master, "a:1", 1), b(master, "b:1", 1) {
    EXPECT_TRUE(a.join(kStart).ok());
    EXPECT_TRUE(b.join(kStart).ok());
    EXPECT_TRUE(a.mount(1 << 20, kStart).ok());
    EXPECT_TRUE(b.mount(1 << 20, kStart).ok());
  }
  ~CoordinatorTest() override { test::check_invariants(master); }

  Coordinator master;
  TestNode a;
  TestNode b;
  TimeMs now = kStart + 10;
};

TEST_F(CoordinatorTest, NothingIsVisibleBeforeTheCommit) {
  const auto grant = a.start("k", 4096, now);
  ASSERT_EQ(grant.status, 0);
  ASSERT_EQ(grant.places.size(), 1U);
  EXPECT_EQ(b.exists("k", now), 0);
  EXPECT_EQ(b.get("k", now)->status(0), number(ErrorCode::kReplicaNotReady));
  EXPECT_EQ(a.commit("k", grant, now), 0);
  EXPECT_EQ(b.exists("k", now), 1);
  const auto found = b.get("k", now);
  EXPECT_EQ(found->status(0), 0);
  EXPECT_EQ(found->size(0), 4096U);
  EXPECT_EQ(found->checksum(0), TestNode::checksum_of("k"));
  EXPECT_EQ(found->version_count(0), grant.count);
  EXPECT_EQ(found->segment(0).incarnation(), grant.places[0].first);
  EXPECT_EQ(found->replica_offset(0), grant.places[0].second);
}

TEST_F(CoordinatorTest, ANodesObjectsAreHiddenWhileItsConnectionIsLostAndShownWhenItAttendsAgain) {
  const int first = 0;
  const int second = 0;
  ASSERT_TRUE(b.attend(&first, now).ok());
  ASSERT_EQ(a.put("on b", 100, now, {.preferred = {"b:1"}}), 0);
  ASSERT_EQ(a.put("on both", 100, now, {.replicas = 2}), 0);
  master.session_ended(&second);  // somebody else's
  EXPECT_EQ(a.exists("on b", now), 1);
  master.session_ended(&first);
  EXPECT_EQ(a.exists("on b", now), 0);
  EXPECT_EQ(a.get("on b", now)->status(0), number(ErrorCode::kObjectNotFound));
  EXPECT_EQ(a.get("on both", now)->replica_count(0), 1U) << "the other copy serves";
  const auto elsewhere = a.start("new", 100, now, {.preferred = {"b:1"}});
  ASSERT_EQ(elsewhere.status, 0);
  EXPECT_EQ(elsewhere.places[0].first, a.incarnation().to_bytes()) << "nothing is placed on it";
  ASSERT_TRUE(b.attend(&second, now).ok());
  EXPECT_EQ(a.exists("on b", now), 1);
  master.session_ended(&first);
  EXPECT_EQ(a.exists("on b", now), 1) << "an old connection's end says nothing";
}

TEST_F(CoordinatorTest, AKeyWhoseOnlyCopyIsHiddenCanBePutAnew) {
  const int session = 0;
  ASSERT_TRUE(b.attend(&session, now).ok());
  ASSERT_EQ(a.put("k", 100, now, {.preferred = {"b:1"}}), 0);
  master.session_ended(&session);
  ASSERT_EQ(a.put("k", 200, now), 0);
  EXPECT_EQ(a.get("k", now)->size(0), 200U);
  ASSERT_TRUE(b.attend(&session, now).ok());
  EXPECT_EQ(a.get("k", now)->size(0), 200U) << "the old copy is on its way out";
  EXPECT_EQ(b.obey(now), 1U);
}

TEST_F(CoordinatorTest, AWritersKeyIsFreeAsSoonAsItsConnectionIsLost) {
  const int session = 0;
  ASSERT_TRUE(b.attend(&session, now).ok());
  const auto grant = b.start("k", 100, now);
  ASSERT_EQ(grant.status, 0);
  EXPECT_EQ(a.start("k", 100, now).status, number(ErrorCode::kReplicaNotReady));
  master.session_ended(&session);
  EXPECT_EQ(a.put("k", 100, now), 0);
  EXPECT_NE(b.commit("k", grant, now), 0) << "whoever comes back with an old grant has lost it";
}

TEST_F(CoordinatorTest, ANodeAttendsOnlyWhenRegisteredInThisTerm) {
  const int session = 0;
  TestNode stranger(master, "s:1", 1);
  EXPECT_EQ(stranger.attend(&session, now).code(), ErrorCode::kNotRegistered);
}

TEST_F(CoordinatorTest, PutTellsApartWhyItIsNotGranted) {
  const auto grant = a.start("k", 100, now);
  EXPECT_EQ(b.start("k", 100, now).status, number(ErrorCode::kReplicaNotReady));
  EXPECT_EQ(a.start("k", 100, now).status, number(ErrorCode::kReplicaNotReady)) << "also for the same node";
  EXPECT_EQ(a.commit("k", grant, now), 0);
  EXPECT_EQ(b.start("k", 100, now).status, number(ErrorCode::kObjectAlreadyExists));
  EXPECT_EQ(a.start("", 100, now).status, number(ErrorCode::kInvalidParams));
  EXPECT_EQ(a.start("z", 0, now).status, number(ErrorCode::kInvalidParams));
  EXPECT_EQ(a.start(std::string(65537, 'x'), 1, now).status, number(ErrorCode::kInvalidKey));
  EXPECT_EQ(a.start(std::string(65536, 'x'), 1, now).status, 0);
  EXPECT_EQ(a.start("r", 100, now, {.replicas = 0}).status, number(ErrorCode::kInvalidParams));
  EXPECT_EQ(a.start("huge", 2 << 20, now).status, number(ErrorCode::kNoAvailableHandle));
  EXPECT_EQ(a.start("n", 1, now, {.tenant = std::string("x\0y", 3)}).status, number(ErrorCode::kInvalidParams));
  TestNode stranger(master, "s:1");
  EXPECT_EQ(stranger.start("s", 1, now).status, number(ErrorCode::kNotRegistered));
}

TEST_F(CoordinatorTest, ABatchIsAnsweredInItsOrder) {
  ASSERT_EQ(a.put("there", 10, now), 0);
  std::vector<std::pair<std::string, std::uint64_t>> keys;
  for (int i = 0; i < 200; ++i) keys.emplace_back("k" + std::to_string(i), 100 + i);
  keys.insert(keys.begin() + 50, {"there", 10});
  keys.insert(keys.begin() + 60, {"", 10});
  keys.insert(keys.begin() + 70, {"k3", 10});
  const auto grants = a.start(keys, now, {});
  ASSERT_EQ(grants.size(), keys.size());
  EXPECT_EQ(grants[50].status, number(ErrorCode::kObjectAlreadyExists));
  EXPECT_EQ(grants[60].status, number(ErrorCode::kInvalidParams));
  EXPECT_EQ(grants[70].status, number(ErrorCode::kReplicaNotReady));
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (i == 50 || i == 60 || i == 70) continue;
    ASSERT_EQ(grants[i].status, 0);
    ASSERT_EQ(a.commit(keys[i].first, grants[i], now), 0);
    ASSERT_EQ(b.get(keys[i].first, now)->size(0), keys[i].second);
  }
}

TEST_F(CoordinatorTest, CommitIsIdempotentAndBelongsToItsWriter) {
  const auto grant = a.start("k", 100, now);
  EXPECT_EQ(b.commit("k", grant, now), number(ErrorCode::kIllegalClient));
  EXPECT_EQ(a.commit("k", grant, now), 0);
  EXPECT_EQ(a.commit("k", grant, now), 0);
  auto other = grant;
  other.count += 1;
  EXPECT_EQ(a.commit("k", other, now), number(ErrorCode::kInvalidVersion));
  other.term -= 1;
  EXPECT_EQ(a.commit("k", other, now), number(ErrorCode::kStaleTerm));
  EXPECT_EQ(a.commit("never", grant, now), number(ErrorCode::kInvalidVersion));
}

TEST_F(CoordinatorTest, UpsertKeepsTheOldValueReadableUntilTheCommit) {
  ASSERT_EQ(a.put("k", 100, now), 0);
  const auto grant = b.start("k", 200, now, {.upsert = true});
  ASSERT_EQ(grant.status, 0);
  EXPECT_EQ(a.get("k", now)->size(0), 100U);
  EXPECT_EQ(b.commit("k", grant, now), 0);
  EXPECT_EQ(a.get("k", now)->size(0), 200U);
  EXPECT_EQ(a.obey(now) + b.obey(now), 1U) << "the old extent is retired";
}

TEST_F(CoordinatorTest, RetiredSpaceIsNotUsedBeforeItsOwnerHasAcknowledged) {
  Coordinator small(test::quick_config(), kStart, kWall);
  TestNode owner(small, "o:1");
  ASSERT_TRUE(owner.join(kStart).ok());
  ASSERT_TRUE(owner.mount(4096, kStart).ok());
  ASSERT_EQ(owner.put("k", 4096, now), 0);
  EXPECT_EQ(owner.remove("k", now).status, ErrorCode::kOk);
  EXPECT_EQ((*small.membership().segments())[0]->quarantine(), 4096U);
  EXPECT_EQ(owner.start("l", 256, now).status, number(ErrorCode::kNoAvailableHandle));
  const auto orders = owner.sync(now);
  ASSERT_EQ(orders->retirements_size(), 1);
  EXPECT_EQ(orders->retirements(0).length(), 4096U);
  EXPECT_EQ(owner.start("l", 256, now).status, number(ErrorCode::kNoAvailableHandle)) << "told is not acknowledged";
  EXPECT_EQ(owner.sync(now, {orders->retirements(0).sequence() + 7})->retirements_size(), 0) << "a made-up number frees nothing";
  EXPECT_EQ(owner.start("l", 256, now).status, number(ErrorCode::kNoAvailableHandle));
  EXPECT_EQ(owner.sync(now + 5000)->retirements_size(), 1) << "told again until it is acknowledged";
  ASSERT_TRUE(owner.sync(now, {orders->retirements(0).sequence()}).ok());
  EXPECT_EQ(owner.start("l", 256, now).status, 0);
  EXPECT_EQ((*small.membership().segments())[0]->quarantine(), 0U);
  test::check_invariants(small);
}

TEST_F(CoordinatorTest, ARevokedOrPartlyWrittenPutGoesThroughRetirement) {
  const auto revoked = a.start("k", 100, now, {.replicas = 2});
  ASSERT_EQ(revoked.places.size(), 2U);
  EXPECT_NE(revoked.places[0].first, revoked.places[1].first) << "two nodes";
  EXPECT_EQ(a.revoke("k", revoked, now), 0);
  EXPECT_EQ(a.revoke("k", revoked, now), 0);
  EXPECT_EQ(a.commit("k", revoked, now), number(ErrorCode::kInvalidVersion));
  EXPECT_EQ(a.obey(now), 1U);
  EXPECT_EQ(b.obey(now), 1U);
  const auto partly = a.start("k", 100, now, {.replicas = 2});
  EXPECT_EQ(a.commit("k", partly, now, 2), 0);
  const auto found = b.get("k", now);
  ASSERT_EQ(found->replica_count(0), 1U);
  EXPECT_EQ(found->segment(0).incarnation(), partly.places[1].first);
  EXPECT_EQ(a.obey(now) + b.obey(now), 1U);
  const auto unwritten = a.start("l", 100, now);
  EXPECT_EQ(a.commit("l", unwritten, now, 0), 0) << "like a revoke";
  EXPECT_EQ(a.exists("l", now), 0);
}

TEST_F(CoordinatorTest, UnfinishedPutsEndWithTimeOrWithTheirWriter) {
  const auto late = a.start("late", 100, now);
  for (auto t = now; t < now + 29'000; t += 1000) {
    a.obey(t), b.obey(t);
    master.sweep(t);
  }
  EXPECT_EQ(master.table().totals().pending, 1U);
  const auto fresh = a.start("fresh", 100, now + 29'000);
  a.obey(now + 30'100), b.obey(now + 30'100);
  master.sweep(now + 30'100);
  EXPECT_EQ(master.table().totals().pending, 1U);
  EXPECT_EQ(a.commit("late", late, now + 30'100), number(ErrorCode::kInvalidVersion));
  wire::DeregisterNodeRequest good_bye;
  good_bye.set_node_id(a.id().to_bytes());
  EXPECT_TRUE(master.deregister(good_bye).ok());
  EXPECT_EQ(master.table().totals().pending, 0U);
  EXPECT_NE(a.commit("fresh", fresh, now + 30'200), 0);
}

TEST_F(CoordinatorTest, OldestGrantFollowsThePutsInFlight) {
  const auto first = a.start("first", 100, now);
  const auto second = a.start("second", 100, now);
  EXPECT_EQ(a.sync(now)->oldest_grant().count(), first.count);
  EXPECT_EQ(a.commit("first", first, now), 0);
  EXPECT_EQ(a.sync(now)->oldest_grant().count(), second.count);
  EXPECT_EQ(a.revoke("second", second, now), 0);
  EXPECT_EQ(a.sync(now)->oldest_grant().count(), second.count + 1);
  EXPECT_EQ(a.sync(now)->oldest_grant().term(), master.term().value);
}

TEST_F(CoordinatorTest, RemoveHonoursLeasesUnlessForced) {
  ASSERT_EQ(a.put("k", 100, now), 0);
  EXPECT_EQ(b.exists("k", now), 1);
  EXPECT_EQ(a.remove("k", now).status, ErrorCode::kObjectHasLease);
  EXPECT_EQ(a.remove("k", now + 9'999).status, ErrorCode::kObjectHasLease);
  const auto item = a.remove("k", now + 10'000);
  EXPECT_EQ(item.status, ErrorCode::kOk);
  EXPECT_EQ(a.exists("k", now + 10'000), 0) << "invisible at once";
  ASSERT_TRUE(item.ticket);
  EXPECT_EQ(item.ticket->state(), RetirementTicket::State::kOutstanding) << "but not answered yet";
  EXPECT_EQ(a.obey(now + 10'000) + b.obey(now + 10'000), 1U);
  EXPECT_EQ(item.ticket->state(), RetirementTicket::State::kDone);
  EXPECT_EQ(a.remove("k", now + 10'000).status, ErrorCode::kObjectNotFound);
  ASSERT_EQ(a.put("f", 100, now), 0);
  EXPECT_EQ(b.exists("f", now), 1);
  EXPECT_EQ(a.remove("f", now, true).status, ErrorCode::kOk);
}

TEST_F(CoordinatorTest, ARemoveWaitsForOlderVersionsAndEvictionsUnderWay) {
  ASSERT_EQ(a.put("k", 100, now), 0);
  ASSERT_EQ(a.put("k", 200, now, {.upsert = true}), 0);
  const auto item = a.remove("k", now);
  EXPECT_EQ(a.obey(now) + b.obey(now), 2U);
  EXPECT_EQ(item.ticket->state(), RetirementTicket::State::kDone);
  ASSERT_EQ(a.put("e", 100, now), 0);
  EXPECT_EQ(master.table().evict(1, now, true).objects, 1U);
  const auto missing = a.remove("e", now);
  EXPECT_EQ(missing.status, ErrorCode::kObjectNotFound);
  ASSERT_TRUE(missing.ticket) << "its owner has not heard of the eviction";
  EXPECT_EQ(missing.ticket->state(), RetirementTicket::State::kOutstanding);
}

TEST_F(CoordinatorTest, RemoveMatchingSearchesOneTenantsKeys) {
  for (const auto* key : {"model@1@aa", "model@1@ab", "other@1"}) ASSERT_EQ(a.put(key, 100, now), 0);
  ASSERT_EQ(a.put("model@1@aa", 100, now, {.tenant = "red"}), 0);
  const auto run = [&](const std::string& regex, bool all, const std::string& tenant, bool force) -> std::int64_t {
    wire::RemoveMatchingRequest request;
    request.set_regex(regex);
    request.set_all(all);
    request.set_tenant(tenant);
    request.set_force(force);
    auto purge = master.begin_remove_matching(request, now);
    if (!purge.ok()) return purge.status().number();
    for (std::size_t s = 0; s < ObjectTable::kShards; ++s) EXPECT_TRUE(master.remove_matching(*purge, s, now).ok());
    return static_cast<std::int64_t>(purge->removed);
  };
  EXPECT_EQ(run("a(", false, "", false), number(ErrorCode::kInvalidParams));
  EXPECT_EQ(run(std::string(2000, 'a'), false, "", false), number(ErrorCode::kInvalidParams));
  EXPECT_EQ(b.exists("model@1@ab", now), 1) << "leased now";
  EXPECT_EQ(run("@1@a[ab]$", false, "", false), 1);
  const auto before = master.barrier();
  EXPECT_FALSE(master.over(before));
  a.obey(now), b.obey(now);
  EXPECT_TRUE(master.over(before));
  EXPECT_EQ(run("", true, "", true), 2);
  EXPECT_EQ(a.exists("model@1@aa", now, "red"), 1) << "another tenant's";
  EXPECT_EQ(run("", true, "red", true), 1);
}

TEST_F(CoordinatorTest, ThousandsOfCharactersDoNotStopAPattern) {
  ASSERT_EQ(a.put(std::string(60'000, 'a'), 100, now), 0);
  const auto pattern = KeyPattern::compile("^(a|aa)+$");
  ASSERT_TRUE(pattern.ok());
  EXPECT_TRUE((*pattern)->matches(std::string(60'000, 'a')));
  EXPECT_FALSE((*pattern)->matches(std::string(60'000, 'a') + "b"));
  EXPECT_FALSE(KeyPattern::compile("(a)\\1").ok()) << "back references need backtracking";
}

TEST_F(CoordinatorTest, TenantsDoNotSeeEachOthersKeys) {
  ASSERT_EQ(a.put("k", 100, now, {.tenant = "red"}), 0);
  EXPECT_EQ(a.exists("k", now), 0);
  EXPECT_EQ(a.exists("k", now, "red"), 1);
  EXPECT_EQ(a.exists(std::string("red\0k", 5), now), 0) << "a key cannot be spelled as another tenant's";
  ASSERT_EQ(a.put("d", 100, now, {.tenant = "default"}), 0);
  EXPECT_EQ(a.exists("d", now), 1);
}

TEST_F(CoordinatorTest, PlacementHonoursWishesAndSpreadsReplicas) {
  for (int i = 0; i < 20; ++i) {
    const auto key = std::to_string(i);
    const auto named = a.start("n" + key, 100, now, {.preferred = {"b:1"}});
    EXPECT_EQ(named.places[0].first, b.incarnation().to_bytes());
    const auto near = a.start("s" + key, 100, now, {.same_node = true});
    EXPECT_EQ(near.places[0].first, a.incarnation().to_bytes());
    EXPECT_EQ(a.start("u" + key, 100, now, {.preferred = {"gone:1"}}).status, 0) << "best effort";
    EXPECT_EQ(a.start("m" + key, 100, now, {.replicas = 1000}).places.size(), 2U);
  }
  int on_a = 0;
  for (int i = 0; i < 300; ++i) on_a += a.start("f" + std::to_string(i), 256, now).places[0].first == a.incarnation().to_bytes() ? 1 : 0;
  EXPECT_GT(on_a, 75) << "by free space, with chance";
  EXPECT_LT(on_a, 225);
}

TEST_F(CoordinatorTest, UnmountAndDeregisterTakeTheirReplicasAlong) {
  ASSERT_EQ(a.put("on-a", 100, now, {.preferred = {"a:1"}}), 0);
  ASSERT_EQ(a.put("both", 100, now, {.replicas = 2}), 0);
  const auto pending = b.start("pending", 100, now, {.preferred = {"a:1"}});
  wire::UnmountSegmentRequest unmount;
  unmount.set_node_id(b.id().to_bytes());
  unmount.set_incarnation(a.incarnation().to_bytes());
  EXPECT_EQ(master.unmount(unmount).code(), ErrorCode::kIllegalClient);
  unmount.set_node_id(a.id().to_bytes());
  EXPECT_TRUE(master.unmount(unmount).ok());
  EXPECT_TRUE(master.unmount(unmount).ok()) << "again";
  EXPECT_EQ(b.exists("on-a", now), 0);
  EXPECT_EQ(b.get("both", now)->replica_count(0), 1U);
  EXPECT_NE(b.commit("pending", pending, now), 0);
  EXPECT_EQ(a.mount(1 << 20, now, {}, true).code(), ErrorCode::kStaleIncarnation) << "an incarnation is mounted once";
  EXPECT_TRUE(a.mount(1 << 20, now).ok());
}

TEST_F(CoordinatorTest, AProcessRestartedOnItsPortFencesItsPredecessor) {
  ASSERT_EQ(a.put("k", 100, now, {.preferred = {"a:1"}}), 0);
  TestNode again(master, "a:1", 1);
  ASSERT_TRUE(again.join(now).ok());
  EXPECT_EQ(again.exists("k", now), 0);
  EXPECT_EQ(a.sync(now).code(), ErrorCode::kNotRegistered);
  EXPECT_TRUE(master.membership().fenced().contains(a.incarnation()));
  TestNode client(master, "c:0", 0);
  TestNode other_client(master, "c:0", 0);
  ASSERT_TRUE(client.join(now).ok());
  ASSERT_TRUE(other_client.join(now).ok());
  EXPECT_TRUE(client.sync(now).ok()) << "without a port there is nothing to restart on";
}

TEST_F(CoordinatorTest, ExpectedKeysAreOnTheirWayForOthersOnly) {
  wire::ExistRequest request;
  request.add_key("block");
  request.set_wait_ms(500);
  const auto on_their_way = [&](TestNode& node, TimeMs t) {
    request.set_node_id(node.id().to_bytes());
    const auto found = master.exist(*test::Sent<lean::ExistRequest>(request), t);
    return found.ok() ? found->on_their_way.size() : 99;
  };
  EXPECT_EQ(on_their_way(a, now), 0U);
  const auto wait_in_vain = [&](TestNode& node) {
    request.set_node_id(node.id().to_bytes());
    const test::Sent<lean::ExistRequest> sent(request);
    auto found = master.exist(*sent, now);
    ASSERT_EQ(found->on_their_way.size(), 1U) << "the other may be about to put for the first time";
    master.finish_wait(*found, node.id(), true, now);
  };
  wait_in_vain(b);
  EXPECT_EQ(on_their_way(b, now), 0U) << "a was waited for in vain and has never put anything";
  wait_in_vain(a);
  ASSERT_EQ(a.put("something", 100, now), 0);
  EXPECT_EQ(on_their_way(b, now), 1U);
  EXPECT_EQ(on_their_way(a, now), 0U) << "one's own expectation makes nobody wait";
  EXPECT_TRUE(master.still_on_its_way("block", b.id(), now));
  EXPECT_EQ(on_their_way(b, now + 60'001), 0U) << "a minute later nobody expects it";

  EXPECT_EQ(on_their_way(a, now), 0U);
  const auto grant = a.start("block", 100, now);
  EXPECT_EQ(on_their_way(b, now), 1U) << "being put";
  ASSERT_EQ(a.commit("block", grant, now), 0);
  EXPECT_FALSE(master.still_on_its_way("block", b.id(), now));
  EXPECT_EQ(b.exists("block", now), 1);
  EXPECT_EQ(a.remove("block", now, true).status, ErrorCode::kOk);
  EXPECT_EQ(on_their_way(b, now), 0U) << "the commit has met the expectation";

  EXPECT_EQ(on_their_way(a, now), 0U);
  request.set_node_id(b.id().to_bytes());
  const test::Sent<lean::ExistRequest> sent(request);
  auto existence = master.exist(*sent, now);
  ASSERT_EQ(existence->on_their_way.size(), 1U);
  master.finish_wait(*existence, b.id(), true, now);
  EXPECT_EQ(on_their_way(b, now), 0U) << "a wait in vain is paid once";

  const auto failed = a.start("block", 100, now);
  EXPECT_TRUE(master.still_on_its_way("block", b.id(), now));
  EXPECT_EQ(a.revoke("block", failed, now), 0);
  EXPECT_FALSE(master.still_on_its_way("block", b.id(), now));
}

}  // namespace
}  // namespace moonpool::master
