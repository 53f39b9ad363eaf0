#include <gtest/gtest.h>

#include <array>

#include "master/entry_table.h"
#include "master/handover.h"
#include "master/membership.h"
#include "master/object_key.h"

namespace moonpool::master {
namespace {

TEST(ObjectKeyTest, NoKeyOfOneTenantIsSpelledAsAnothers) {
  EXPECT_EQ(qualify("", "k"), "k");
  EXPECT_EQ(qualify("default", "k"), "k");
  EXPECT_EQ(qualify("red", "k"), std::string("red\0k", 5));
  EXPECT_EQ(qualify("", std::string("red\0k", 5)), std::string("default\0red\0k", 13));
  for (const auto& tenant : {std::string(), std::string("red")}) {
    for (const auto& key : {std::string("k"), std::string("\0", 1), std::string("a\0b\0", 4)}) {
      const auto whole = qualify(tenant, key);
      const auto [found_tenant, found_key] = split_qualified(whole);
      EXPECT_EQ(found_tenant, tenant.empty() ? "default" : tenant);
      EXPECT_EQ(found_key, key);
    }
  }
}

TEST(FencedListTest, KeepsTheNewest) {
  FencedList list;
  std::vector<Incarnation> all;
  for (std::size_t i = 0; i < FencedList::kLimit + 10; ++i) {
    all.push_back(Incarnation::generate());
    EXPECT_TRUE(list.add(all.back()));
    EXPECT_FALSE(list.add(all.back()));
  }
  EXPECT_FALSE(list.contains(all[9]));
  EXPECT_TRUE(list.contains(all[10]));
  EXPECT_EQ(list.all().size(), FencedList::kLimit);
  EXPECT_EQ(list.all().back(), all.back().to_bytes());
}

TEST(HandoverTest, SeveralNodesMayExpectOneKey) {
  Handover handover;
  const auto decode = NodeId::generate();
  const auto prefill = NodeId::generate();
  const auto only_prefill = [&](NodeId id) { return id == prefill; };
  handover.missed(1, prefill, 1000);
  handover.missed(1, decode, 1001);
  handover.missed(1, decode, 1002);
  EXPECT_TRUE(handover.expected_by_other(1, decode, 1003, only_prefill));
  EXPECT_FALSE(handover.expected_by_other(1, prefill, 1003, only_prefill));
  EXPECT_EQ(handover.settle(1).size(), 2U);
  EXPECT_FALSE(handover.expected_by_other(1, decode, 1003, only_prefill));
  handover.missed(2, NodeId(), 1000);
  EXPECT_EQ(handover.size(), 0U) << "nobody in particular expects nothing";
}

TEST(HandoverTest, IsBounded) {
  Handover handover;
  const auto node = NodeId::generate();
  for (std::uint64_t i = 0; i < 3 * Handover::kPerShard * Handover::kShards; ++i) handover.missed(i << 20, node, 1000);
  EXPECT_LE(handover.size(), Handover::kPerShard * Handover::kShards);
}

TEST(HandoverTest, CountsWaitsByTheirLength) {
  Handover handover;
  handover.count_wait(0, true);
  handover.count_wait(30, true);
  handover.count_wait(501, false);
  EXPECT_EQ(handover.counters.satisfied, 2U);
  EXPECT_EQ(handover.counters.timed_out, 1U);
  EXPECT_EQ(handover.counters.buckets[0], 1U);
  EXPECT_EQ(handover.counters.buckets[4], 1U);
  EXPECT_EQ(handover.counters.buckets[8], 1U);
}

TEST(EntryTableTest, FindsVisitsAndLetsTheVisitedEntryGo) {
  EntryTable table;
  std::vector<std::string> keys;
  for (int i = 0; i < 5000; ++i) keys.push_back("key" + std::to_string(i));
  for (const auto& key : keys) table.insert(*Entry::make(HashedKey(key)));
  for (const auto& key : keys) {
    const Entry* const found = table.find(HashedKey(key));
    ASSERT_NE(found, nullptr);
    ASSERT_EQ(found->key(), key);
  }
  EXPECT_EQ(table.find(HashedKey("another")), nullptr);
  for (const auto& key : keys) table.prefetch(HashedKey(key));
  table.prefetch(HashedKey("another"));
  std::size_t visited = 0;
  table.for_each([&](Entry& entry) {
    if (++visited % 2 == 0) return;
    table.erase(entry);
    Entry::destroy(&entry);
  });
  EXPECT_EQ(visited, keys.size());
  std::size_t left = 0;
  table.for_each([&](const Entry& entry) { left += table.find(HashedKey(entry.key())) == &entry ? 1 : 0; });
  EXPECT_EQ(left, keys.size() / 2);
  table.for_each([](Entry& entry) { Entry::destroy(&entry); });
  table.clear();
  EXPECT_EQ(table.find(HashedKey(keys[0])), nullptr);
}

class OutboxTest : public ::testing::Test {
 protected:
  OutboxTest() {
    node = members.register_node(NodeId::generate(), "n:1", "h", 1, 0).node;
    segment = *members.mount(node, {Incarnation::generate(), "n:1", "h", 1, 1 << 20, 0, "tcp", node->id});
    segment->set_ready();
  }
  Membership members;
  std::shared_ptr<Node> node;
  std::shared_ptr<Segment> segment;
};

TEST_F(OutboxTest, SendsAgainOnlyAfterAWhile) {
  const auto offset = *segment->allocate(100);
  segment->retire(offset, 100, Version{Term{1}, 1}, nullptr);
  EXPECT_TRUE(node->outbox->has_unsent());
  EXPECT_EQ(node->outbox->collect(1000, 500, 10).size(), 1U);
  EXPECT_FALSE(node->outbox->has_unsent());
  EXPECT_EQ(node->outbox->collect(1400, 500, 10).size(), 0U);
  EXPECT_EQ(node->outbox->collect(1500, 500, 10).size(), 1U);
  EXPECT_EQ(segment->quarantine(), 256U);
  const std::uint64_t one = 1;
  EXPECT_EQ(node->outbox->acknowledge({&one, 1}), 1U);
  EXPECT_EQ(node->outbox->acknowledge({&one, 1}), 0U);
  EXPECT_EQ(segment->used(), 0U);
}

TEST_F(OutboxTest, AnOrderThatWasNeverSentCannotBeAcknowledged) {
  segment->retire(*segment->allocate(100), 100, Version{Term{1}, 1}, nullptr);
  const std::uint64_t one = 1;
  EXPECT_EQ(node->outbox->acknowledge({&one, 1}), 0U);
  EXPECT_EQ(segment->used(), 256U);
}

TEST_F(OutboxTest, WhatIsWithdrawnAnswersRemovesAndKeepsItsSpace) {
  const auto ticket = std::make_shared<RetirementTicket>();
  segment->retire(*segment->allocate(100), 100, Version{Term{1}, 1}, ticket);
  const std::uint64_t one = 1;
  EXPECT_EQ(node->outbox->withdraw({&one, 1}), 0U) << "it was never sent";
  ASSERT_EQ(node->outbox->collect(1000, 500, 10).size(), 1U);
  EXPECT_FALSE(node->outbox->all_over_up_to(1));
  EXPECT_EQ(node->outbox->withdraw({&one, 1}), 1U);
  EXPECT_EQ(node->outbox->withdraw({&one, 1}), 0U);
  EXPECT_EQ(ticket->state(), RetirementTicket::State::kDone);
  EXPECT_TRUE(node->outbox->all_over_up_to(1));
  EXPECT_EQ(node->outbox->outstanding(), 1U);
  EXPECT_EQ(node->outbox->collect(9000, 500, 10).size(), 0U) << "its owner knows";
  EXPECT_EQ(segment->quarantine(), 256U);
  EXPECT_EQ(segment->viewed(), 256U);
  EXPECT_EQ(node->outbox->acknowledge({&one, 1}), 1U);
  EXPECT_EQ(segment->viewed(), 0U);
  EXPECT_EQ(segment->used(), 0U);
}

TEST_F(OutboxTest, WhatAnEarlierReignRetiredKeepsItsSpaceUntilItsOwnerAcknowledges) {
  const auto fresh = *members.mount(node, {Incarnation::generate(), "s2", "h", 1, 1 << 20, 0, "tcp", node->id});
  fresh->retire_again(4096, 100, Version{Term{1}, 1});
  fresh->retire_again(4096, 100, Version{Term{1}, 1});  // its owner's report was repeated
  fresh->set_ready();
  EXPECT_EQ(fresh->quarantine(), 256U);
  EXPECT_EQ(node->outbox->collect(1000, 500, 10).size(), 2U);
  const std::array<std::uint64_t, 2> both{1, 2};
  EXPECT_EQ(node->outbox->acknowledge(both), 2U);
  EXPECT_EQ(fresh->used(), 0U);
  EXPECT_EQ(fresh->quarantine(), 0U);
}

TEST_F(OutboxTest, MoreOrdersThanOneSliceAreSentOnceAndFreedTogether) {
  const auto other = *members.mount(node, {Incarnation::generate(), "n:2", "h", 1, 1 << 20, 0, "tcp", node->id});
  other->set_ready();
  constexpr std::size_t kOrders = 1000;
  for (std::size_t i = 0; i < kOrders; ++i) {
    auto& home = i % 3 == 0 ? *other : *segment;
    home.retire(*home.allocate(300), 300, Version{Term{1}, i + 1}, nullptr);
  }
  EXPECT_EQ(segment->quarantine() + other->quarantine(), kOrders * 512);
  EXPECT_EQ(node->outbox->collect(1000, 500, 700).size(), 700U) << "the caller's limit";
  std::vector<std::uint64_t> sequences;
  for (std::uint64_t i = 1; i <= kOrders; ++i) sequences.push_back(i);
  EXPECT_EQ(node->outbox->acknowledge(sequences), 700U);
  const auto rest = node->outbox->collect(1001, 500, 4096);
  ASSERT_EQ(rest.size(), 300U);
  EXPECT_EQ(rest.front().sequence, 701U);
  EXPECT_EQ(rest.back().sequence, 1000U);
  EXPECT_EQ(node->outbox->acknowledge(sequences), 300U);
  for (const auto& home : {segment, other}) {
    EXPECT_EQ(home->used(), 0U);
    EXPECT_EQ(home->quarantine(), 0U);
    EXPECT_TRUE(home->consistent());
  }
}

TEST_F(OutboxTest, AFenceEndsAllOrders) {
  for (int i = 0; i < 5; ++i) segment->retire(*segment->allocate(100), 100, Version{Term{1}, 1}, nullptr);
  EXPECT_EQ(node->outbox->collect(1, 1, 2).size(), 2U);
  EXPECT_TRUE(node->outbox->has_unsent());
  const auto removed = members.remove_node(node->id);
  ASSERT_EQ(removed.size(), 1U);
  EXPECT_FALSE(removed[0]->alive());
  EXPECT_EQ(node->outbox->outstanding(), 0U);
  EXPECT_FALSE(node->outbox->has_unsent());
  EXPECT_FALSE(segment->allocate(100).has_value());
  segment->retire(0, 100, Version{Term{1}, 1}, nullptr);
  EXPECT_EQ(node->outbox->outstanding(), 0U);
}

}  // namespace
}  // namespace moonpool::master
