#include "gateway/request_edit.h"

#include <gtest/gtest.h>

#include <array>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <random>

#include "gateway/kv_transfer.h"

namespace moonpool::gateway {
namespace {

std::string edited(std::string_view body) {
  const auto result = make_prefill_body(body);
  return result.ok() ? result->text : "error: " + result.status().message();
}

TEST(RequestEditTest, AsksForOneTokenAndLeavesTheRestAlone) {
  EXPECT_EQ(edited(R"({"prompt":"a","max_tokens":1000})"), R"({"prompt":"a","max_tokens":1})");
  EXPECT_EQ(edited(R"({"prompt":"a"})"), R"({"max_tokens":1,"prompt":"a"})");
  EXPECT_EQ(edited(R"({ "temperature" : 1.0e-0 , "max_tokens" : null })"), R"({ "temperature" : 1.0e-0 , "max_tokens" : 1 })");
  EXPECT_EQ(edited(R"({"max_tokens":7,"max_completion_tokens":9})"), R"({"max_tokens":1,"max_completion_tokens":1})");
  EXPECT_EQ(edited("{}"), R"({"max_tokens":1})");
  EXPECT_EQ(edited(" {\n} "), " {\"max_tokens\":1\n} ");
}

TEST(RequestEditTest, AsksForTokenIdsUnlessTheClientSaysWhetherItWantsThem) {
  const auto asked = [](std::string body) {
    ask_for_token_ids(body);
    return body;
  };
  EXPECT_EQ(asked(R"( {"prompt":"a \"return_token_ids\" b"})"), R"( {"return_token_ids":true,"prompt":"a \"return_token_ids\" b"})");
  EXPECT_EQ(asked(R"({"prompt":"a","return_token_ids":false})"), R"({"prompt":"a","return_token_ids":false})");
}

TEST(RequestEditTest, TurnsStreamingOffWithItsOptions) {
  EXPECT_EQ(edited(R"({"stream":true,"stream_options":{"include_usage":true},"max_tokens":5})"), R"({"stream":false,"max_tokens":1})");
  EXPECT_EQ(edited(R"({"max_tokens":5,"stream":"yes", "stream_options" : null })"), R"({"max_tokens":1,"stream":false})");
  EXPECT_EQ(edited(R"({"stream_options":{}})"), R"({"max_tokens":1})");
}

TEST(RequestEditTest, KeepsMinTokensWithinTheOneToken) {
  EXPECT_EQ(edited(R"({"max_tokens":50,"min_tokens":10})"), R"({"max_tokens":1,"min_tokens":1})");
  EXPECT_EQ(edited(R"({"max_tokens":50,"min_tokens":0})"), R"({"max_tokens":1,"min_tokens":0})");
}

TEST(RequestEditTest, TouchesTopLevelFieldsOnly) {
  const std::string nested = R"("extra":{"max_tokens":5,"stream":true,"a":[{"stream_options":1,"x":"}]\"{"}]})";
  EXPECT_EQ(edited("{" + nested + R"(,"max_tokens":3})"), "{" + nested + R"(,"max_tokens":1})");
}

TEST(RequestEditTest, SeesThroughEscapedNamesAndDuplicates) {
  EXPECT_EQ(edited(R"({"max\u005ftokens":9})"), R"({"max\u005ftokens":1})");
  EXPECT_EQ(edited(R"({"max_tokens":9,"max_tokens":8})"), R"({"max_tokens":1,"max_tokens":1})");
  EXPECT_EQ(edited(R"({"\u006dax_tokens\u00e9":9})"), R"({"max_tokens":1,"\u006dax_tokens\u00e9":9})");
}

TEST(RequestEditTest, KnowsAnEmptyPrompt) {
  EXPECT_TRUE(make_prefill_body(R"({"prompt":""})").value().prompt_is_empty);
  EXPECT_TRUE(make_prefill_body(R"({"prompt": [ ] })").value().prompt_is_empty);
  EXPECT_TRUE(make_prefill_body(R"({"messages":[]})").value().prompt_is_empty);
  EXPECT_FALSE(make_prefill_body(R"({"prompt":" "})").value().prompt_is_empty);
  EXPECT_FALSE(make_prefill_body(R"({"prompt":["a"]})").value().prompt_is_empty);
  EXPECT_FALSE(make_prefill_body(R"({"model":"a"})").value().prompt_is_empty);
}

TEST(RequestEditTest, PutsItsKvTransferParamsInPlaceOfAllOthers) {
  const auto with = [](std::string_view body) { return with_kv_transfer_params(body, R"({"x":[1]})"); };
  EXPECT_EQ(with(R"({"prompt":"a", "n":1 })"), R"({"kv_transfer_params":{"x":[1]},"prompt":"a", "n":1 })");
  EXPECT_EQ(with(R"({ "kv_transfer_params" : {"a":1} , "n" : 1 })"), R"({"kv_transfer_params":{"x":[1]}, "n" : 1 })");
  EXPECT_EQ(with(R"({"n":1,"kv_transfer\u005fparams":null,"kv_transfer_params":5})"), R"({"kv_transfer_params":{"x":[1]},"n":1})");
  EXPECT_EQ(with("{}"), R"({"kv_transfer_params":{"x":[1]}})");
  EXPECT_EQ(with(R"({"a":{"kv_transfer_params":1}})"), R"({"kv_transfer_params":{"x":[1]},"a":{"kv_transfer_params":1}})");
  EXPECT_EQ(with("[1]"), "[1]");
  EXPECT_EQ(with_kv_transfer_params(R"({"n":1,"kv_transfer_params":{},"m":2})", {}), R"({"n":1,"m":2})");
  EXPECT_EQ(with_kv_transfer_params(R"({"kv_transfer_params":{}})", {}), "{}");
}

TEST(RequestEditTest, KnowsSeveralSequences) {
  const auto several = [](std::string_view body) { return make_prefill_body(body).value().has_several_sequences; };
  for (const char* body : {R"({"prompt":["a","b"]})", R"({"prompt":[ [1,2] , [3]]})", R"({"n":2})", R"({"best_of":3,"n":1})",
                           R"({"use_beam_search":true})", R"({"n":1,"n":4})"}) {
    EXPECT_TRUE(several(body)) << body;
  }
  for (const char* body :
       {R"({"prompt":"a,b"})", R"({"prompt":["a"]})", R"({"prompt":[1,2,3]})", R"({"prompt":[[1,2]]})", R"({"prompt":[]})",
        R"({"n":1,"best_of":null})", R"({"n":null})", R"({"n":1.0})", R"({"messages":["a","b"]})", R"({"n":4,"n":1})"}) {
    EXPECT_FALSE(several(body)) << body;
  }
  EXPECT_TRUE(make_prefill_body(R"({"kv_transfer_params":null})").value().has_kv_transfer_params);
  EXPECT_FALSE(make_prefill_body(R"({"a":{"kv_transfer_params":1}})").value().has_kv_transfer_params);
}

TEST(RequestEditTest, FindsWhatAPrefillAnswerHandsOver) {
  EXPECT_EQ(handed_over(R"({"choices":[],"kv_transfer_params": {"a":[1,"}"]} ,"x":1})"), R"({"a":[1,"}"]})");
  for (const char* answer : {R"({"kv_transfer_params":null})", R"({"kv_transfer_params":{}})", R"({"kv_transfer_params":"{\"a\":1}"})",
                             "{}", "", R"({"kv_transfer_params":{"a":1)", R"({"text":"\"kv_transfer_params\":{\"a\":1}"})",
                             R"([{"kv_transfer_params":{"a":1}}])", R"({"x":{"kv_transfer_params":{"a":1}}})"}) {
    EXPECT_EQ(handed_over(answer), "") << answer;
  }
  EXPECT_TRUE(ended_for_length(R"({"choices":[{"text":"{","finish_reason":"length"}]})"));
  EXPECT_FALSE(ended_for_length(R"({"choices":[{"finish_reason":"stop"},{"finish_reason":"length"}]})"));
  EXPECT_FALSE(ended_for_length(R"({"choices":[]})"));
}

TEST(RequestEditTest, RefusesWhatIsNoJsonObject) {
  for (const char* body : {"", "null", "[]", "{", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "{\"a\":1,}", "{a:1}", "{\"a\":1} x",
                           "{\"a\":[}]}", "{\"a\":\"\\\"}", "{\"a\" 1}", "{\"a\":1 \"b\":2}", "\xEF\xBB\xBF{}", "{,}", "{\"a\":}"}) {
    const auto result = make_prefill_body(body);
    ASSERT_FALSE(result.ok()) << body;
    EXPECT_NE(result.status().message().find("at byte"), std::string::npos) << body;
  }
  EXPECT_FALSE(make_prefill_body("{\"a\":" + std::string(5000, '[') + std::string(5000, ']') + "}").ok());
}

TEST(RequestEditTest, TellsWholeJsonFromACutOne) {
  EXPECT_TRUE(is_whole_json(R"( {"a":[1,2,{"b":"}"}]} )"));
  EXPECT_FALSE(is_whole_json(R"({"a":[1,2)"));
  EXPECT_FALSE(is_whole_json(""));
}

// Random bodies of which the expected edit is known by construction.
class Generator {
 public:
  explicit Generator(unsigned seed) : random_(seed) {}

  std::size_t below(std::size_t limit) { return std::uniform_int_distribution<std::size_t>(0, limit - 1)(random_); }

  std::string space() {
    static constexpr std::array<const char*, 5> kSpaces{"", "", " ", "\n\t", " \r\n "};
    return kSpaces[below(kSpaces.size())];
  }

  // The name in quotes, some of its characters as \u escapes in either case.
  std::string quoted(const std::string& name) {
    std::string text = "\"";
    for (const char c : name) {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), below(2) == 0 ? "\\u%04x" : "\\u%04X", static_cast<unsigned>(c));
      text += below(6) == 0 ? std::string(escaped) : std::string(1, c);
    }
    return text + "\"";
  }

  std::string value(int depth) {
    static const std::array<std::string, 9> kPlain{"1",
                                                   "-0.50e+3",
                                                   "1e400",
                                                   "true",
                                                   "null",
                                                   "\"\"",
                                                   R"("\"max_tokens\":5,{[")",
                                                   "\"\xC3\xA9 \\ud83d\\ude00 \\\\\"",
                                                   "123456789012345678901234567890"};
    const auto kind = below(depth > 3 ? 9 : 13);
    if (kind < 9) return kPlain[kind];
    const bool object = kind < 11;
    std::string text = object ? "{" : "[";
    const auto count = below(4);
    for (std::size_t i = 0; i < count; ++i) {
      if (i != 0) text += ",";
      text += space();
      if (object) text += quoted(kNames[below(kNames.size())]) + space() + ":" + space();
      text += value(depth + 1) + space();
    }
    return text + (object ? "}" : "]");
  }

  static inline const std::array<std::string, 8> kNames{
      "max_tokens", "max_completion_tokens", "stream", "stream_options", "model", "logit_bias", "user", "max_tokens2"};

 private:
  std::mt19937 random_;
};

TEST(RequestEditTest, RandomBodiesKeepEveryOtherByte) {
  Generator random(20261123);
  for (int round = 0; round < 20'000; ++round) {
    std::string body;
    std::string expected;
    bool has_max_tokens = false;
    const auto count = random.below(7);
    for (std::size_t i = 0; i < count; ++i) {
      const std::string name = Generator::kNames[random.below(Generator::kNames.size())];
      const std::string before = random.space() + random.quoted(name) + random.space() + ":" + random.space();
      const std::string value = random.value(0);
      const std::string after = random.space();
      body += (body.empty() ? "" : ",") + before + value + after;
      has_max_tokens = has_max_tokens || name == "max_tokens";
      if (name == "stream_options") continue;
      const bool one = name == "max_tokens" || name == "max_completion_tokens";
      expected += (expected.empty() ? "" : ",") + before + (one ? "1" : name == "stream" ? "false" : value) + after;
    }
    if (!has_max_tokens) expected = R"("max_tokens":1)" + (expected.empty() ? "" : "," + expected);
    ASSERT_EQ(edited("{" + body + "}"), "{" + expected + "}") << body;
    boost::system::error_code error;
    static_cast<void>(boost::json::parse("{" + expected + "}", error));
    ASSERT_FALSE(error) << expected;
    // The other edit puts a field in front of these bytes, whatever they are.
    ASSERT_EQ(with_kv_transfer_params("{" + body + "}", "7"),
              R"({"kv_transfer_params":7)" + std::string(count == 0 ? "" : ",") + body + "}");
  }
}

}  // namespace
}  // namespace moonpool::gateway
