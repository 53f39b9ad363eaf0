// Keys: digests, rings, the configuration's entries, fresh ones; and what is read out of requests and answers about their cost.
#include "gateway/api_keys.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "gateway/config_file.h"
#include "gateway/request_cost.h"
#include "gateway/settings.h"

namespace moonpool::gateway {
namespace {

constexpr std::string_view kDigestOfAbc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";  // FIPS 180-4's example

ApiKey key_of(const std::string& name, std::string_view secret, KeyRole role = KeyRole::kClient) {
  ApiKey key;
  key.name = name;
  key.digest = digest_of(secret);
  key.role = role;
  return key;
}

TEST(ApiKeyTest, DigestsAreSha256) {
  EXPECT_EQ(hex_of(digest_of("abc")), kDigestOfAbc);
  EXPECT_EQ(parse_digest(kDigestOfAbc).value(), digest_of("abc"));
  for (const std::string& bad : {std::string(), std::string(63, 'a'), std::string(65, 'a'), std::string(64, 'g')}) {
    EXPECT_FALSE(parse_digest(bad).ok()) << bad;
  }
}

TEST(ApiKeyTest, ARingFindsWhatWasAddedAndNothingElse) {
  KeyRing ring;
  EXPECT_FALSE(ring.has(KeyRole::kClient));
  ASSERT_TRUE(ring.add(key_of("one", "secret-1")).ok());
  ASSERT_TRUE(ring.add(key_of("two", "secret-2", KeyRole::kAdmin)).ok());
  EXPECT_TRUE(ring.has(KeyRole::kClient) && ring.has(KeyRole::kAdmin) && !ring.has(KeyRole::kMonitor));
  ASSERT_NE(ring.find("secret-2"), nullptr);
  EXPECT_EQ(ring.find("secret-2")->name, "two");
  for (const char* other : {"", "secret-", "secret-11", "SECRET-1", "one"}) EXPECT_EQ(ring.find(other), nullptr) << other;
  EXPECT_FALSE(ring.add(key_of("one", "secret-3")).ok());
  EXPECT_FALSE(ring.add(key_of("three", "secret-1")).ok());
  for (const char* name : {"", "-", "a b", "a\n", "a\"b"}) EXPECT_FALSE(ring.add(key_of(name, "secret-4")).ok()) << name;
  EXPECT_EQ(ring.all().size(), 2U);
}

TEST(ApiKeyTest, FreshKeysDifferAndTheirTextHoldsTheirDigest) {
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) {
    const auto key = new_key();
    ASSERT_TRUE(key.ok());
    EXPECT_EQ(key->size(), 3U + 43);
    EXPECT_TRUE(seen.insert(*key).second);
  }
  const auto text = new_key_text("team-a");
  ASSERT_TRUE(text.ok());
  const std::string key = text->substr(text->find("mp-"), 46);
  const std::string entry = text->substr(text->find('{'));
  const auto ring = apply_keys("{\"keys\": [" + entry + "]}", "f", {});
  ASSERT_TRUE(ring.ok()) << ring.status().message() << *text;
  ASSERT_NE(ring->find(key), nullptr) << *text;
  EXPECT_EQ(ring->find(key)->name, "team-a");
  EXPECT_FALSE(new_key_text("team a").ok());
}

TEST(ApiKeyTest, TheCommandLineMakesThem) {
  const std::vector<const char*> arguments{"gateway", "--new-key", "x"};
  const auto parsed = parse_command_line(3, arguments.data());
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  EXPECT_FALSE(parsed->settings.has_value());
  EXPECT_NE(parsed->help.find("\"sha256\""), std::string::npos);
}

TEST(ApiKeyTest, AnUpstreamKeyComesFromTheEnvironment) {
  const std::vector<const char*> arguments{"gateway", "-m", "m"};
  ::setenv("MOONPOOL_GATEWAY_UPSTREAM_API_KEY", "up-key", 1);
  const auto good = parse_command_line(3, arguments.data());
  ::setenv("MOONPOOL_GATEWAY_UPSTREAM_API_KEY", "up\r\nkey", 1);
  const auto bad = parse_command_line(3, arguments.data());
  ::unsetenv("MOONPOOL_GATEWAY_UPSTREAM_API_KEY");
  ASSERT_TRUE(good.ok()) << good.status().message();
  EXPECT_EQ(good->settings->upstream_api_key, "up-key");
  EXPECT_FALSE(bad.ok());
}

TEST(KeysInTheConfigurationTest, SayAllOfIt) {
  const auto settings =
      apply_config(R"({"keys": [{"name": "a", "sha256": ")" + std::string(kDigestOfAbc) +
                       R"(", "priority": -5, "weight": 2.5, "requests_per_minute": 60, "tokens_per_minute": 1000, "burst_s": 10},
          {"name": "b", "sha256": ")" +
                       hex_of(digest_of("b")) + R"(", "role": "monitor"}], "protect_status": true, "keys_file": "k.json",
          "overload": {"concurrent_requests": 8, "requests_per_instance": 4, "queue_requests": 5, "queue_bytes": 6, "queue_timeout_s": 7}})",
                   "f", Settings());
  ASSERT_TRUE(settings.ok()) << settings.status().message();
  const ApiKey expected{"a", digest_of("abc"), KeyRole::kClient, -5, 2.5, 60, 1000, 10};
  EXPECT_EQ(settings->keys.all().at(0), expected);
  EXPECT_EQ(settings->keys.all().at(1).role, KeyRole::kMonitor);
  EXPECT_TRUE(settings->protect_status);
  EXPECT_EQ(settings->keys_file, "k.json");
  EXPECT_EQ(settings->overload, (Overload{8, 4, 5, 6, std::chrono::seconds(7)}));
}

TEST(KeysInTheConfigurationTest, AnErrorSaysWhatIsAllowed) {
  const std::string good = "\"sha256\": \"" + std::string(kDigestOfAbc) + "\"";
  const std::vector<std::pair<std::string, std::string>> cases{
      {R"([{"name": "a"}])", "sha256"},
      {R"([{"name": "a", "sha256": "abc"}])", "64 hexadecimal digits"},
      {"[{" + good + "}]", "a key's name"},
      {R"([{"name": "a b", )" + good + "}]", "letters, digits"},
      {R"([{"name": "a", )" + good + R"(, "role": "root"}])", "\"monitor\""},
      {R"([{"name": "a", )" + good + R"(, "weight": 0}])", "0.001"},
      {R"([{"name": "a", )" + good + R"(, "key": "abc"}])", "sha256"},
      {R"([{"name": "a", )" + good + R"(}, {"name": "a", "sha256": ")" + hex_of(digest_of("b")) + "\"}]", "two keys are called a"},
      {R"([{"name": "a", )" + good + R"(}, {"name": "b", )" + good + "}]", "already"},
  };
  for (const auto& [keys, expected] : cases) {
    const auto ring = apply_keys("{\"keys\":\n" + keys + "}", "f", {});
    ASSERT_FALSE(ring.ok()) << keys;
    EXPECT_TRUE(ring.status().message().starts_with("f, line 2, keys: ")) << ring.status().message();
    EXPECT_NE(ring.status().message().find(expected), std::string::npos) << ring.status().message();
  }
  EXPECT_FALSE(apply_keys("{\"model\": \"m\"}", "f", {}).ok());
}

TEST(RequestCostTest, GuessesFromTheBody) {
  const auto text = request_cost(R"({"model":"m","prompt":"0123456789abcd","max_tokens":7,"priority":3})");
  EXPECT_EQ(text.prompt_tokens, 4U);  // 16 bytes with its quotes
  EXPECT_EQ(text.answer_tokens, 7U);
  EXPECT_EQ(text.priority, 3);
  const auto ids = request_cost(R"({"prompt": [15, 2, 3]})");
  EXPECT_EQ(ids.prompt_tokens, 3U);
  EXPECT_EQ(ids.answer_tokens, 256U);
  EXPECT_FALSE(ids.priority.has_value());
  EXPECT_EQ(request_cost(R"({"messages":[{"role":"user","content":"hi"}],"max_completion_tokens":1000000})").answer_tokens, 4096U);
  EXPECT_EQ(request_cost(R"({"prompt":"a","max_tokens":-1,"priority":99999999999})").answer_tokens, 256U);
  EXPECT_EQ(request_cost(R"({"prompt":"a","priority":-99999999})").priority, -kPriorityAtMost);
  EXPECT_EQ(request_cost("").prompt_tokens, 1U);
  EXPECT_EQ(request_cost(std::string(100, 'x')).prompt_tokens, 25U);
}

TEST(RequestCostTest, ReadsUsageWhereverItStands) {
  EXPECT_EQ(usage_tokens(R"({"choices":[],"usage":{"prompt_tokens":3,"total_tokens":12,"completion_tokens":9}})"), 12U);
  EXPECT_EQ(usage_tokens("data: {\"usage\": {\"total_tokens\": 5}}\n\ndata: {\"usage\":null}\n\ndata: [DONE]\n\n"), 5U);
  EXPECT_FALSE(usage_tokens(R"({"text":"\"usage\":{\"total_tokens\":7}"})").has_value());
  EXPECT_FALSE(usage_tokens(R"({"usage":null})").has_value());
  EXPECT_FALSE(usage_tokens(R"({"usage":{"total_tokens":-1}})").has_value());
  EXPECT_FALSE(usage_tokens("\"usage\"").has_value());
}

TEST(RequestCostTest, TimeoutsAreWholeMilliseconds) {
  EXPECT_EQ(parse_timeout_ms("250"), std::chrono::milliseconds(250));
  for (const char* bad : {"", "0", "-1", "1.5", "1s", "86400001", "99999999999999999999"}) {
    EXPECT_FALSE(parse_timeout_ms(bad).has_value()) << bad;
  }
}

}  // namespace
}  // namespace moonpool::gateway
