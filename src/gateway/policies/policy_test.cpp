// What each policy is chosen for, and the parts that they decide by.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "gateway/group.h"
#include "gateway/http_message.h"
#include "gateway/json_member.h"
#include "gateway/policies/prefix_index.h"
#include "gateway/prompt_chain.h"

namespace moonpool::gateway {
namespace {

using InFlights = std::vector<std::unique_ptr<Instance::InFlight>>;

struct TestGroup {
  explicit TestGroup(std::string_view policy, int count, const PolicyOptions& options = {})
      : group("prefill", make_policy(policy, options).value()) {
    for (int i = 0; i < count; ++i) add(i);
  }
  void add(int number) {
    auto made = std::make_shared<Instance>(InstanceName::parse("n" + std::to_string(number) + ":1").value(), "prefill", CircuitSettings{});
    EXPECT_TRUE(group.add(made));
    instances.push_back(std::move(made));
  }
  void load(std::size_t which, int requests) {
    for (int i = 0; i < requests; ++i) in_flight.push_back(std::make_unique<Instance::InFlight>(instances[which]));
  }
  [[nodiscard]] std::size_t pick(std::string_view body, const HeaderFields* headers = nullptr) const {
    const auto picked = group.pick({"/v1/completions", body, headers}, {});
    return static_cast<std::size_t>(std::find(instances.begin(), instances.end(), picked) - instances.begin());
  }

  Group group;
  InstanceList instances;
  InFlights in_flight;
};

std::string prompt(char letter, std::size_t bytes) { return R"({"prompt":")" + std::string(bytes, letter) + "\"}"; }

TEST(RoundRobinPolicyTest, TakesTurnsExactly) {
  const TestGroup test("round_robin", 3);
  std::map<std::size_t, int> counts;
  for (int i = 0; i < 30; ++i) ++counts[test.pick("")];
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(counts[i], 10);
}

TEST(LeastLoadPolicyTest, TakesTheIdlest) {
  TestGroup test("least_load", 3);
  test.load(0, 2);
  test.load(1, 1);
  test.load(2, 2);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(test.pick(""), 1U);
}

TEST(PowerOfTwoPolicyTest, NeverTakesTheBusiestOfThree) {
  TestGroup test("power_of_two", 3);
  test.load(0, 5);
  test.load(1, 1);
  std::map<std::size_t, int> counts;
  for (int i = 0; i < 300; ++i) ++counts[test.pick("")];
  EXPECT_EQ(counts[0], 0);
  EXPECT_GT(counts[1], 50);  // drawn with the busiest one: a third of the time
  EXPECT_GT(counts[2], 150);
}

HeaderFields session(const std::string& id) {
  HeaderFields fields;
  fields.add(http::field::unknown, "X-Session-Id", id);
  return fields;
}

TEST(AffinityPolicyTest, KeepsASessionTogetherByHeaderOrUser) {
  const TestGroup test("session_affinity", 8);
  std::set<std::size_t> used;
  for (int s = 0; s < 50; ++s) {
    const HeaderFields header = session(std::to_string(s));
    const auto first = test.pick("{}", &header);
    used.insert(first);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(test.pick(prompt('x', 10), &header), first);
    const std::string user = R"({"prompt":"p","user":"someone )" + std::to_string(s) + "\"}";
    const auto by_user = test.pick(user);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(test.pick(user), by_user);
  }
  EXPECT_EQ(used.size(), 8U);
}

TEST(AffinityPolicyTest, TheHeaderIsConfigurable) {
  PolicyOptions options;
  options.affinity_header = "X-Tenant";
  const TestGroup test("session_affinity", 8, options);
  const HeaderFields other = session("1");
  std::set<std::size_t> used;
  for (int i = 0; i < 200; ++i) used.insert(test.pick("{}", &other));
  EXPECT_EQ(used.size(), 8U);
  HeaderFields tenant;
  tenant.add(http::field::unknown, "x-tenant", "1");
  const auto first = test.pick("{}", &tenant);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(test.pick("{}", &tenant), first);
}

TEST(AffinityPolicyTest, ANewInstanceMovesOnlyTheKeysItWins) {
  TestGroup test("session_affinity", 4);
  std::map<int, std::size_t> before;
  for (int s = 0; s < 500; ++s) {
    const HeaderFields header = session(std::to_string(s));
    before[s] = test.pick("{}", &header);
  }
  test.add(4);
  int moved = 0;
  for (int s = 0; s < 500; ++s) {
    const HeaderFields header = session(std::to_string(s));
    const auto now = test.pick("{}", &header);
    if (now == before[s]) continue;
    ++moved;
    EXPECT_EQ(now, 4U);
  }
  EXPECT_GT(moved, 50);
  EXPECT_LT(moved, 160);
}

TEST(AffinityPolicyTest, AnOverloadedInstanceIsPassedOver) {
  TestGroup test("session_affinity", 4);
  const HeaderFields header = session("popular");
  const auto home = test.pick("{}", &header);
  test.load(home, 3);
  EXPECT_EQ(test.pick("{}", &header), home);  // little to do: staying together counts more
  test.load(home, 30);
  const auto second = test.pick("{}", &header);
  EXPECT_NE(second, home);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(test.pick("{}", &header), second);  // not just anywhere
  for (std::size_t i = 0; i < 4; ++i) {
    if (i != home) test.load(i, 30);
  }
  EXPECT_EQ(test.pick("{}", &header), home);
}

TEST(PrefixPolicyTest, AWarmInstanceIsPreferred) {
  const TestGroup test("prefix_aware", 8);
  for (char letter = 'a'; letter < 'k'; ++letter) {
    const auto first = test.pick(prompt(letter, 4000));
    for (int i = 0; i < 10; ++i) EXPECT_EQ(test.pick(prompt(letter, 4000 + static_cast<std::size_t>(i) * 300)), first);
  }
}

TEST(PrefixPolicyTest, SeesTheLongestPrefixOfAGrowingChat) {
  const TestGroup test("prefix_aware", 8);
  std::string history = R"({"model":"m","messages":[{"role":"system","content":")" + std::string(1000, 's') + "\"}";
  const auto first = test.pick(history + "]}");
  for (int turn = 0; turn < 6; ++turn) {
    history += R"(,{"role":"user","content":"question )" + std::to_string(turn) + std::string(500, 'q') + "\"}";
    EXPECT_EQ(test.pick(history + "]}"), first);
  }
}

TEST(PrefixPolicyTest, WarmthIsWorthAQueueOfItsOwnLengthOnly) {
  TestGroup test("prefix_aware", 2);
  const auto warm = test.pick(prompt('a', 8000));
  test.load(warm, 1);  // the 8000 bytes are being computed
  EXPECT_EQ(test.pick(prompt('b', 8000)), 1 - warm);
  test.load(1 - warm, 1);
  // Cold on both; queued: 8000 bytes each. Warm a: shorter where it is.
  EXPECT_EQ(test.pick(prompt('a', 8000)), warm);
  test.load(warm, 2);
  // Now the queue there is about 8000 for 3 requests, of which two are small: still no reason to leave.
  EXPECT_EQ(test.pick(prompt('a', 8000)), warm);
  // A cold prompt of 40,000 bytes queues up at the warm one: what the warmth saves is less than that.
  TestGroup other("prefix_aware", 2);
  const auto home = other.pick(prompt('a', 8000));
  other.load(1 - home, 30);
  EXPECT_EQ(other.pick(prompt('c', 40'000)), home);
  other.load(home, 1);
  other.in_flight.erase(other.in_flight.begin(), other.in_flight.begin() + 30);
  EXPECT_EQ(other.pick(prompt('a', 8000)), 1 - home);
}

TEST(PrefixPolicyTest, ForgetsAnInstanceThatLeft) {
  TestGroup test("prefix_aware", 2);
  const auto warm = test.pick(prompt('a', 8000));
  const auto leaving = test.instances[warm];
  ASSERT_TRUE(test.group.remove(leaving));
  EXPECT_EQ(test.pick(prompt('b', 8000)), 1 - warm);
  ASSERT_TRUE(test.group.add(leaving));  // as a new one: nothing is known of it
  EXPECT_EQ(test.pick(prompt('b', 8000)), 1 - warm);
  std::set<std::size_t> used;
  for (char letter = 'c'; letter < 'z'; ++letter) used.insert(test.pick(prompt(letter, 8000)));
  EXPECT_EQ(used.size(), 2U);
}

TEST(PoolPolicyTest, WhatThePoolHoldsIsNearlyFreeAnywhere) {
  // Instance 0 computes the prompt, then gets a queue worth a fifth of it: its warmth loses to an idle one only if that can load it.
  const auto chosen_after_queue = [](std::string_view policy, double cost) {
    PolicyOptions options;
    options.pool_transfer_cost = cost;
    TestGroup test(policy, 2, options);
    const auto home = test.pick(prompt('a', 20'000));
    test.load(1 - home, 1'000);
    EXPECT_EQ(test.pick(prompt('b', 4'000)), home);
    test.load(home, 1);
    test.in_flight.erase(test.in_flight.begin(), test.in_flight.begin() + 1'000);
    return test.pick(prompt('a', 20'000)) == home;
  };
  EXPECT_TRUE(chosen_after_queue("prefix_aware", 0.1));
  EXPECT_FALSE(chosen_after_queue("pool_aware", 0.1));  // 2,000 to load against 4,000 queued
  EXPECT_TRUE(chosen_after_queue("pool_aware", 0.5));   // 10,000 to load against 4,000 queued
}

TEST(PoolPolicyTest, PrefersItsOwnCopyAtEqualLoad) {
  const TestGroup test("pool_aware", 4);
  const auto home = test.pick(prompt('a', 8000));
  for (int i = 0; i < 20; ++i) EXPECT_EQ(test.pick(prompt('a', 8000)), home);
}

std::string prompt_for(const std::string& model, const std::string& more = {}) {
  return R"({"model":")" + model + R"(",)" + more + R"("prompt":")" + std::string(8000, 'a') + "\"}";
}

TEST(PrefixPolicyTest, AnAdaptersPromptIsNoHitForAnother) {
  for (const std::string_view policy : {"prefix_aware", "pool_aware"}) {
    const TestGroup test(policy, 4);
    static_cast<void>(test.pick(prompt_for("base")));
    const auto left = [&](const std::string& body) { return test.group.uncached_bytes({"/v1/completions", body}).value(); };
    EXPECT_LT(left(prompt_for("base")), 300U);
    EXPECT_GT(left(prompt_for("adapter")), 8000U);
    EXPECT_GT(left(prompt_for("base", R"("cache_salt":"s",)")), 8000U);
    const auto home = test.pick(prompt_for("adapter"));
    EXPECT_LT(left(prompt_for("adapter")), 300U);
    for (int i = 0; i < 10; ++i) EXPECT_EQ(test.pick(prompt_for("adapter")), home);
  }
}

TEST(PrefixPolicyTest, TheUncachedBytesAreThoseOfTheWarmestInstance) {
  TestGroup test("prefix_aware", 3);
  const std::string body = prompt('a', 8000);
  const RequestFacts facts{"/v1/completions", body};
  EXPECT_EQ(test.group.uncached_bytes(facts), 8002U);  // with its quotes
  static_cast<void>(test.pick(prompt('a', 4200)));
  EXPECT_EQ(test.group.uncached_bytes(facts), 8002U - 4096U);
  EXPECT_EQ(test.group.uncached_bytes(facts), 8002U - 4096U);  // asking changes nothing
  EXPECT_EQ(TestGroup("least_load", 1).group.uncached_bytes(facts), std::nullopt);
}

TEST(PromptChainTest, IsMadeOnceForAllThatLook) {
  const std::string body = prompt('a', 8000);
  PromptChain chain(body);
  const auto blocks = chain.blocks();
  EXPECT_EQ(blocks.size(), 8002U / kPrefixBlockBytes);
  const TestGroup test("pool_aware", 2);
  const RequestFacts facts{"/v1/completions", body, nullptr, &chain};
  const auto first = test.group.pick(facts, {});
  EXPECT_EQ(test.group.pick(facts, {}), first);
  EXPECT_EQ(chain.blocks().data(), blocks.data());
}

std::vector<std::uint64_t> chain_of(const std::string& text) {
  std::vector<std::uint64_t> chain;
  make_prefix_chain(text, 0, chain);
  return chain;
}

TEST(PrefixIndexTest, MatchesTheLongestCommonPrefixInWholeBlocks) {
  PrefixIndex index(1 << 20);
  const std::string base(10 * kPrefixBlockBytes, 'a');
  EXPECT_EQ(index.match(chain_of(base)), 0U);
  index.insert(chain_of(base));
  EXPECT_EQ(index.match(chain_of(base)), 10U);
  EXPECT_EQ(index.match(chain_of(base + base)), 10U);
  for (std::size_t differs = 0; differs < base.size(); differs += 100) {
    std::string other = base;
    other[differs] = 'b';
    EXPECT_EQ(index.match(chain_of(other)), differs / kPrefixBlockBytes) << differs;
  }
  EXPECT_EQ(index.match({}), 0U);
  EXPECT_TRUE(chain_of(std::string(kPrefixBlockBytes - 1, 'a')).empty());
  EXPECT_EQ(chain_of(std::string((kPrefixBlocksAtMost + 5) * kPrefixBlockBytes, 'a')).size(), kPrefixBlocksAtMost);
}

TEST(PrefixIndexTest, StaysWithinItsBudgetAndForgetsTheLeastRecentFirst) {
  constexpr std::size_t kBudget = 64 * 1024;
  PrefixIndex index(kBudget);
  const auto text_of = [](int number) { return std::to_string(number) + std::string(8 * kPrefixBlockBytes, 'x'); };
  index.insert(chain_of(text_of(-1)));
  for (int i = 0; i < 5000; ++i) {
    index.insert(chain_of(text_of(i)));
    if (i % 10 == 0) index.insert(chain_of(text_of(-1)));  // kept in use
    ASSERT_LE(index.memory_bytes(), kBudget);
  }
  EXPECT_EQ(index.match(chain_of(text_of(-1))), 8U);
  EXPECT_EQ(index.match(chain_of(text_of(4999))), 8U);
  EXPECT_EQ(index.match(chain_of(text_of(0))), 0U);
  EXPECT_GT(index.blocks(), 1000U);
}

TEST(PrefixIndexTest, EvictsLeavesBeforeWhatTheyContinue) {
  PrefixIndex index(1);  // the smallest: 16 blocks
  const std::string base(12 * kPrefixBlockBytes, 'a');
  index.insert(chain_of(base));
  index.insert(chain_of("b" + std::string(8 * kPrefixBlockBytes, 'b')));
  EXPECT_EQ(index.blocks(), 16U);
  EXPECT_EQ(index.match(chain_of(base)), 8U);
  index.insert(chain_of(base + base));  // longer than everything: its start is kept
  EXPECT_EQ(index.match(chain_of(base + base)), 16U);
}

TEST(JsonMemberTest, WalksAnObjectWithoutParsingIt) {
  const std::string_view object = R"( { "a" : 1, "b\"x":"te\\\"xt,}", "c":{"a":[2,"]}"]},"d":[ {"user":"no"} ] , "user":"me" } )";
  EXPECT_EQ(json_member(object, "a"), "1");
  EXPECT_EQ(json_member(object, R"(b\"x)"), R"("te\\\"xt,}")");
  EXPECT_EQ(json_member(object, "c"), R"({"a":[2,"]}"]})");
  EXPECT_EQ(json_member(object, "user"), "\"me\"");
  EXPECT_EQ(json_member(object, "none"), "");
  const PromptParts parts = prompt_parts(R"({"stream":true,"messages":[{"role":"user"}],"cache_salt":"s","model":"m","prompt":"no"})");
  EXPECT_EQ(parts.prompt, R"([{"role":"user"}])");
  EXPECT_EQ(parts.model, R"("m")");
  EXPECT_EQ(parts.cache_salt, R"("s")");
  for (const char* broken :
       {"", "{", "[]", "{\"a", "{\"a\"", "{\"a\":", "{\"a\":\"x", "{\"a\":[1", "{\"a\":}", "\"a\":1}", "{a:1}", "{,}"}) {
    EXPECT_EQ(json_member(broken, "a"), "") << broken;
  }
}

}  // namespace
}  // namespace moonpool::gateway
