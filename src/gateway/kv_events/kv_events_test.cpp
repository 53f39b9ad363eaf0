// What vLLM's KV events are made of, and what is kept of them: the parsers on vLLM's own bytes, learned prompts, live blocks, the policy.
#include <gtest/gtest.h>

#include "gateway/group.h"
#include "gateway/kv_events/event_batch.h"
#include "gateway/kv_events/learned_prompts.h"
#include "gateway/kv_events/live_blocks.h"
#include "gateway/kv_events/msgpack.h"
#include "gateway/kv_events/token_ids.h"
#include "gateway/kv_events/zmtp.h"
#include "gateway/policies/prefix_index.h"

namespace moonpool::gateway {
namespace {

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return bytes;
}

// As vLLM 0.32 encodes two BlockStored (one on the CPU), a BlockRemoved and an AllBlocksCleared: events are maps.
const std::string kBatchOfMaps = from_hex(
    "93cb3ff8000000000000948ca474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392cf800000000000000507b1706172656e74"
    "5f626c6f636b5f68617368c0a9746f6b656e5f696473940102cd012cce00011170aa626c6f636b5f73697a6502a76c6f72615f696403a66d65646975"
    "6da3475055a96c6f72615f6e616d65a26164aa65787472615f6b6579739292a26164a473616c7491a26164a967726f75705f69647800b26b765f6361"
    "6368655f737065635f6b696e64ae66756c6c5f617474656e74696f6eaa73657373696f6e5f6964a17388a474797065ab426c6f636b53746f726564ac"
    "626c6f636b5f68617368657391c4200101010101010101010101010101010101010101010101010101010101010101b1706172656e745f626c6f636b"
    "5f6861736807a9746f6b656e5f696473920908aa626c6f636b5f73697a6502a76c6f72615f6964c0a66d656469756da3435055a96c6f72615f6e616d"
    "65c084a474797065ac426c6f636b52656d6f766564ac626c6f636b5f6861736865739107a66d656469756da3475055a967726f75705f6964780081a4"
    "74797065b0416c6c426c6f636b73436c656172656400");
// As versions with msgspec's array_like events did.
const std::string kBatchOfArrays = from_hex(
    "93cb3ff80000000000009397ab426c6f636b53746f7265649205c4200202020202020202020202020202020202020202020202020202020202020202"
    "c0940102cd012cce0001117002c0a347505593ac426c6f636b52656d6f7665649105a347505591b0416c6c426c6f636b73436c6561726564c0");

TEST(KvEventBatchTest, ReadsWhatVllmWrites) {
  const auto events = parse_kv_event_batch(kBatchOfMaps);
  ASSERT_TRUE(events.ok()) << events.status().message();
  ASSERT_EQ(events->size(), 3U) << "what is stored on the CPU is no block that a prompt can use at once";
  const auto& stored = std::get<KvBlocksStored>(events->at(0));
  EXPECT_EQ(stored.hashes, (std::vector<std::uint64_t>{(std::uint64_t{1} << 63) + 5, 7}));
  EXPECT_FALSE(stored.parent);
  EXPECT_EQ(stored.tokens, (std::vector<std::uint32_t>{1, 2, 300, 70000}));
  EXPECT_EQ(stored.block_size, 2U);
  EXPECT_EQ(stored.adapter, "ad");
  EXPECT_EQ(stored.extra, (std::vector<std::uint64_t>{kv_extra_of("salt", kv_extra_of("ad")), kv_extra_of("ad")}));
  EXPECT_EQ(std::get<KvBlocksRemoved>(events->at(1)).hashes, std::vector<std::uint64_t>{7});
  EXPECT_TRUE(std::holds_alternative<KvAllCleared>(events->at(2)));
}

TEST(KvEventBatchTest, ReadsWhatOlderVersionsWrote) {
  const auto events = parse_kv_event_batch(kBatchOfArrays);
  ASSERT_TRUE(events.ok()) << events.status().message();
  ASSERT_EQ(events->size(), 3U);
  const auto& stored = std::get<KvBlocksStored>(events->at(0));
  ASSERT_EQ(stored.hashes.size(), 2U);
  EXPECT_EQ(stored.hashes[0], 5U);
  EXPECT_EQ(stored.extra, (std::vector<std::uint64_t>{0, 0}));
  EXPECT_EQ(std::get<KvBlocksRemoved>(events->at(1)).hashes, std::vector<std::uint64_t>{5});
}

TEST(KvEventBatchTest, TruncatedAndForeignBytesAreErrors) {
  for (const std::string& whole : {kBatchOfMaps, kBatchOfArrays}) {
    for (std::size_t size = 0; size + 1 < whole.size(); ++size) {
      EXPECT_FALSE(parse_kv_event_batch(std::string_view(whole).substr(0, size)).ok() && size < whole.size() - 2) << size;
    }
  }
  EXPECT_FALSE(parse_kv_event_batch(from_hex("92c0dd7fffffff")).ok()) << "a list longer than its bytes";
  EXPECT_FALSE(parse_kv_event_batch("hello").ok());
  // An event of a kind that is not known yet is passed over.
  EXPECT_TRUE(parse_kv_event_batch(from_hex("92c09181a474797065a14e")).value().empty());
  std::string deep(100, '\x91');
  MsgpackReader reader(deep);
  EXPECT_FALSE(reader.skip());
}

TEST(ZmtpTest, ReadsItsOwnBytesHoweverTheyArrive) {
  const ZmtpMessage message{"topic", std::string(300, 'x'), ""};
  const std::string bytes = zmtp_greeting() + zmtp_ready("PUB") + zmtp_message(message) + zmtp_ping();
  for (const std::size_t step : {std::size_t{1}, std::size_t{7}, bytes.size()}) {
    ZmtpReader reader;
    std::vector<ZmtpReader::Item> items;
    for (std::size_t at = 0; at < bytes.size(); at += step) {
      reader.feed(std::string_view(bytes).substr(at, step));
      for (;;) {
        auto item = reader.next();
        ASSERT_TRUE(item.ok()) << item.status().message();
        if (!*item) break;
        items.push_back(std::move(**item));
      }
    }
    ASSERT_EQ(items.size(), 3U);
    EXPECT_EQ(std::get<ZmtpCommand>(items[0]).name, "READY");
    EXPECT_EQ(zmtp_socket_type(std::get<ZmtpCommand>(items[0])), "PUB");
    EXPECT_EQ(std::get<ZmtpMessage>(items[1]), message);
    EXPECT_EQ(std::get<ZmtpCommand>(items[2]).name, "PING");
  }
}

TEST(ZmtpTest, APongBringsThePingsContextBack) {
  EXPECT_EQ(zmtp_pong({"PING", std::string("\0\1ctx", 5)}), std::string("\x04\x08\x04PONGctx"));
  EXPECT_EQ(zmtp_pong({"PING", ""}), std::string("\x04\x05\x04PONG"));
}

TEST(ZmtpTest, RefusesWhatIsNoZmtp3OrTooLarge) {
  const auto refused = [](const std::string& bytes) {
    ZmtpReader reader;
    reader.feed(bytes);
    return !reader.next().ok();
  };
  EXPECT_TRUE(refused("HTTP/1.1 400 Bad Request\r\n"));
  std::string old = zmtp_greeting();
  old[10] = 1;
  EXPECT_TRUE(refused(old));
  std::string curve = zmtp_greeting();
  curve.replace(12, 5, "CURVE");
  EXPECT_TRUE(refused(curve));
  EXPECT_TRUE(refused(zmtp_greeting() + std::string("\x02\x00\x00\x00\x7f\x00\x00\x00\x00", 9)));
  EXPECT_TRUE(refused(zmtp_greeting() + "\x08"));
  EXPECT_TRUE(refused(zmtp_greeting() + zmtp_message(ZmtpMessage(kZmtpFramesAtMost + 1, "x"))));
  EXPECT_FALSE(refused(zmtp_greeting() + zmtp_message(ZmtpMessage(kZmtpFramesAtMost, "x"))));
}

TEST(TokenIdsTest, AreReadFromListsAndAnswers) {
  std::vector<std::size_t> ends;
  EXPECT_EQ(parse_token_ids("[1, 22,\n333 ]", &ends), (std::vector<std::uint32_t>{1, 22, 333}));
  EXPECT_EQ(ends, (std::vector<std::size_t>{2, 6, 11}));
  for (const char* other : {"", "[", "[]", "[1", "[1,", "[1,]", "\"text\"", "[[1]]", "[1.5]", "[-1]", "[\"a\"]"}) {
    EXPECT_TRUE(parse_token_ids(other).empty()) << other;
  }
  EXPECT_EQ(prompt_token_ids_of(R"({"id":"x","prompt_token_ids":[1,2],"choices":[]})"), "[1,2]");
  EXPECT_EQ(prompt_token_ids_of(R"({"prompt_token_ids":null,"choices":[{"text":"}","prompt_token_ids":[3]},{}]})"), "[3]");
  EXPECT_EQ(prompt_token_ids_of(R"({"choices":[{"text":""}]})"), "");
  EXPECT_EQ(prompt_token_ids_of("[]"), "");
}

constexpr std::uint32_t kBlockSize = 16;

// A prompt of `blocks` text blocks whose tokens are four bytes each, beginning with `start`.
struct TestPrompt {
  TestPrompt(char start, std::size_t blocks, const std::string& model = "m", const std::string& more = {})
      : body(R"({"model":")" + model + R"(",)" + more + R"("prompt":")" + start + std::string(blocks * kPrefixBlockBytes - 3, 'x') + "\"}"),
        chain(body) {
    for (std::size_t i = 0; i < blocks * kPrefixBlockBytes / 4; ++i) tokens.push_back(i == 0 ? static_cast<unsigned char>(start) : 7);
  }
  std::string body;
  PromptChain chain;
  std::vector<std::uint32_t> tokens;
};

// As an engine stores a prompt: block i has the hash first_hash + i.
KvBlocksStored stored_as(const std::vector<std::uint32_t>& tokens, std::uint64_t first_hash, std::size_t from = 0,
                         const std::string& adapter = {}) {
  KvBlocksStored stored;
  stored.block_size = kBlockSize;
  stored.adapter = adapter;
  if (from > 0) stored.parent = first_hash + from - 1;
  for (std::size_t i = from; (i + 1) * kBlockSize <= tokens.size(); ++i) {
    stored.hashes.push_back(first_hash + i);
    stored.extra.push_back(adapter.empty() ? 0 : kv_extra_of(adapter));
  }
  stored.tokens.assign(tokens.begin() + static_cast<std::ptrdiff_t>(from * kBlockSize), tokens.end());
  return stored;
}

KvBlocksRemoved removed(std::uint64_t first, std::size_t count) {
  KvBlocksRemoved gone;
  for (std::size_t i = 0; i < count; ++i) gone.hashes.push_back(first + i);
  return gone;
}

void tell(LiveBlocks& live, KvEvent event) { live.apply(std::span<const KvEvent>(&event, 1)); }

class LiveBlocksTest : public ::testing::Test {
 protected:
  // How many text blocks of the prompt the instance has, once the prompt's tokens are known.
  std::size_t there(TestPrompt& prompt) {
    prompts->learn(prompt.chain, prompt.tokens);
    return live.match(prompts->reach(prompt.chain));
  }
  std::shared_ptr<LearnedPrompts> prompts = std::make_shared<LearnedPrompts>();
  LiveBlocks live{prompts};
};

TEST_F(LiveBlocksTest, FollowWhatIsStoredAndRemoved) {
  TestPrompt prompt('a', 10);
  EXPECT_EQ(there(prompt), 0U);
  tell(live, stored_as(prompt.tokens, 1000));
  EXPECT_EQ(there(prompt), 10U);
  EXPECT_EQ(live.blocks(), 40U);
  tell(live, stored_as(prompt.tokens, 1000));  // said again
  EXPECT_EQ(live.blocks(), 40U);
  tell(live, removed(1000 + 20, 20));
  EXPECT_EQ(there(prompt), 5U);
  tell(live, removed(1000 + 20, 20));  // unknown ones, and again
  tell(live, removed(77, 5));
  EXPECT_EQ(live.blocks(), 20U);
  // A removed block can still be continued: the engine may have a second copy.
  TestPrompt longer('a', 12);
  tell(live, stored_as(longer.tokens, 1000, 40));
  EXPECT_EQ(live.blocks(), 28U);
  tell(live, KvAllCleared{});
  EXPECT_EQ(there(prompt), 0U);
  EXPECT_EQ(live.blocks(), 0U);
  EXPECT_TRUE(live.is_whole());
}

TEST_F(LiveBlocksTest, SharedPrefixesAreFoundUnderOtherHashes) {
  TestPrompt first('a', 10);
  TestPrompt other('b', 10);
  tell(live, stored_as(first.tokens, 1000));
  EXPECT_EQ(there(first), 10U);
  EXPECT_EQ(there(other), 0U);
  LiveBlocks neighbour(prompts);
  tell(neighbour, stored_as(first.tokens, 555'000));
  EXPECT_EQ(neighbour.match(prompts->reach(first.chain)), 10U);
  TestPrompt longer('a', 20);
  EXPECT_EQ(there(longer), 10U);
}

TEST_F(LiveBlocksTest, WhatCannotBePlacedIsLeftOut) {
  TestPrompt prompt('a', 10);
  tell(live, stored_as(prompt.tokens, 1000, 4));  // its parent was stored before we listened
  EXPECT_EQ(live.blocks(), 0U);
  EXPECT_FALSE(live.is_whole());
  tell(live, stored_as(prompt.tokens, 1000));
  EXPECT_EQ(there(prompt), 10U);
  live.disconnected("gone");
  EXPECT_EQ(there(prompt), 0U);
  EXPECT_EQ(live.why_not_connected(), "gone");
}

TEST_F(LiveBlocksTest, AdaptersAndSaltsAreApart) {
  TestPrompt base('a', 10);
  TestPrompt adapter('a', 10, "tuned");
  tell(live, stored_as(base.tokens, 1000));
  tell(live, stored_as(base.tokens, 2000, 0, "other"));
  prompts->add_adapter("tuned");
  EXPECT_EQ(there(base), 10U);
  EXPECT_EQ(there(adapter), 0U);
  tell(live, stored_as(base.tokens, 3000, 0, "tuned"));
  EXPECT_EQ(there(adapter), 10U);
  TestPrompt salted('a', 10, "m", R"("cache_salt":"s",)");
  EXPECT_EQ(there(salted), 0U);
  auto stored = stored_as(base.tokens, 4000);
  stored.extra[0] = kv_extra_of("s");
  tell(live, std::move(stored));
  EXPECT_EQ(there(salted), 10U);
}

TEST_F(LiveBlocksTest, OneCacheGroupCounts) {
  TestPrompt prompt('a', 10);
  tell(live, stored_as(prompt.tokens, 1000));
  auto sliding = removed(1000, 40);
  sliding.group = 1;
  tell(live, sliding);
  EXPECT_EQ(there(prompt), 10U);
}

TEST_F(LiveBlocksTest, StayBoundedWhileBlocksComeAndGo) {
  for (std::uint64_t round = 0; round < 200; ++round) {
    TestPrompt prompt('a', 10);
    prompt.tokens[0] = static_cast<std::uint32_t>(round);
    tell(live, stored_as(prompt.tokens, round * 1000));
    if (round > 0) tell(live, removed((round - 1) * 1000, 40));
    ASSERT_EQ(live.blocks(), 40U);
  }
}

TEST(LearnedPromptsTest, APromptOfTokenIdsNeedsNoLearning) {
  const auto prompts = std::make_shared<LearnedPrompts>();
  LiveBlocks live(prompts);
  std::vector<std::uint32_t> tokens;
  std::string list = "[";
  for (std::uint32_t i = 0; i < 1000; ++i) {
    tokens.push_back(i);
    list += (i == 0 ? "" : ", ") + std::to_string(i);
  }
  const std::string body = R"({"model":"m","prompt":)" + list + "]}";
  PromptChain chain(body);
  EXPECT_TRUE(prompts->reach(chain).empty()) << "the block size is not known yet";
  tell(live, stored_as(tokens, 1000));
  EXPECT_EQ(live.match(prompts->reach(chain)), chain.blocks().size());
  EXPECT_FALSE(prompts->wants(chain));
  tell(live, removed(1000 + 10, 60));
  const std::size_t there = live.match(prompts->reach(chain));
  // 160 tokens are left, in 4 and 5 bytes each.
  EXPECT_EQ(there, list.find(", 176") / kPrefixBlockBytes);
}

TEST(LearnedPromptsTest, WantsWhatItDoesNotKnowAndForgetsTheOld) {
  LearnedPrompts prompts;
  TestPrompt first('a', 10);
  EXPECT_FALSE(prompts.wants(first.chain));
  prompts.set_block_size(kBlockSize);
  EXPECT_TRUE(prompts.wants(first.chain));
  prompts.learn(first.chain, first.tokens);
  EXPECT_FALSE(prompts.wants(first.chain));
  EXPECT_EQ(prompts.reach(first.chain).size(), 10U);
  TestPrompt list('a', 10, "m");
  const std::string two = R"({"prompt":["a)" + std::string(1000, 'x') + R"(","b"]})";
  PromptChain several(two);
  EXPECT_FALSE(prompts.wants(several));
  for (std::size_t i = 0; i < 60; ++i) {
    TestPrompt filler(static_cast<char>('b' + i % 20), 4000, "m" + std::to_string(i));
    prompts.learn(filler.chain, filler.tokens);
    if (i >= 20) continue;
    EXPECT_EQ(prompts.reach(first.chain).size(), 10U) << "what is used stays";
  }
  EXPECT_TRUE(prompts.wants(first.chain));
}

TEST(PrefixPolicyWithEventsTest, AnInstanceAnswersFromWhatItHas) {
  const auto prompts = std::make_shared<LearnedPrompts>();
  Group group("prefill", make_policy("prefix_aware").value());
  std::vector<std::shared_ptr<Instance>> instances;
  for (int i = 0; i < 3; ++i) {
    auto instance = std::make_shared<Instance>(InstanceName::parse("n" + std::to_string(i) + ":1").value(), "prefill", CircuitSettings{});
    instance->set_live_blocks(std::make_shared<LiveBlocks>(prompts));
    ASSERT_TRUE(group.add(instance));
    instance->live_blocks()->forget(true);
    instance->live_blocks()->connected();
    instances.push_back(std::move(instance));
  }
  TestPrompt prompt('a', 20);
  const RequestFacts facts{"/v1/completions", prompt.body, nullptr, &prompt.chain};
  // Not answered yet: what was sent counts.
  const auto home = group.pick(facts, {});
  for (int i = 0; i < 10; ++i) EXPECT_EQ(group.pick(facts, {}), home);
  tell(*home->live_blocks(), stored_as(prompt.tokens, 1000));
  prompts->learn(prompt.chain, prompt.tokens);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(group.pick(facts, {}), home);
  EXPECT_LT(group.uncached_bytes(facts).value(), 300U);
  // It evicts the prompt, another has it: through another gateway, or from a pool.
  const auto other = instances[instances[0] == home ? 1 : 0];
  tell(*other->live_blocks(), stored_as(prompt.tokens, 7000));
  tell(*home->live_blocks(), removed(1000, 80));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(group.pick(facts, {}), other);
  tell(*other->live_blocks(), removed(7000, 80));
  EXPECT_EQ(group.uncached_bytes(facts).value(), prompt.chain.bytes());
  // Events that were missed: what was sent counts again.
  other->live_blocks()->disconnected("test");
  EXPECT_LT(group.uncached_bytes(facts).value(), 300U);
}

}  // namespace
}  // namespace moonpool::gateway
