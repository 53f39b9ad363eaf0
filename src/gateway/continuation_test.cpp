// What a stream that goes on at another instance asks of it, and what the client then gets.
#include "gateway/continuation.h"

#include <gtest/gtest.h>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>

#include "gateway/sse.h"

namespace moonpool::gateway {
namespace {

constexpr std::string_view kText = "/v1/completions";
constexpr std::string_view kChat = "/v1/chat/completions";

std::string said(const std::string& text, const std::string& more = {}) {
  return R"(data: {"id":"a","created":1,"model":"m","choices":[{"index":0,"text":")" + text + R"(","finish_reason":null)" + more +
         "}]}\n\n";
}
std::string said_in_chat(const std::string& delta) {
  return R"(data: {"id":"a","created":1,"model":"m","choices":[{"index":0,"delta":)" + delta +
         R"(,"finish_reason":null}]})"
         "\n\n";
}

boost::json::value next_of(Continuation& continuation) {
  const auto body = continuation.next_body();
  EXPECT_TRUE(body.ok()) << body.status().message();
  boost::system::error_code error;
  return body.ok() ? boost::json::parse(*body, error) : boost::json::value();
}

std::string refusal(std::string_view path, std::string_view body, const std::string& events) {
  Continuation continuation(path, body, true, true);
  continuation.sent(events);
  const auto next = continuation.next_body();
  return next.ok() ? "continued: " + *next : next.status().message();
}

TEST(ContinuationTest, AppendsTheTextToThePromptAndLowersTheLimits) {
  Continuation continuation(kText, R"({"prompt":"Tell","max_tokens":10,"min_tokens":3,"seed":7,"stream":true})", true, true);
  continuation.sent(said("Once") + said(" upon"));
  EXPECT_EQ(next_of(continuation),
            boost::json::parse(R"({"prompt":"TellOnce upon","max_tokens":8,"min_tokens":1,"seed":7,"stream":true})"));
}

TEST(ContinuationTest, CompletionsWithoutALimitHaveTheServersDefault) {
  Continuation continuation(kText, R"({"prompt":["Tell"]})", true, true);
  continuation.sent(said("Once"));
  EXPECT_EQ(next_of(continuation), boost::json::parse(R"({"prompt":"TellOnce","max_tokens":15})"));
}

TEST(ContinuationTest, ChatContinuesItsLastMessage) {
  Continuation continuation(kChat, R"({"messages":[{"role":"user","content":"q"}],"max_completion_tokens":5})", true, true);
  continuation.sent(said_in_chat(R"({"role":"assistant","content":""})") + said_in_chat(R"({"content":"Once"})"));
  EXPECT_EQ(continuation.tokens_sent(), 1U);
  EXPECT_EQ(next_of(continuation), boost::json::parse(R"({"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"Once"}],
                                   "max_completion_tokens":4,"continue_final_message":true,"add_generation_prompt":false})"));
  const auto role = continuation.rewrite(said_in_chat(R"({"role":"assistant","content":""})"));
  ASSERT_TRUE(role.ok());
  EXPECT_EQ(*role, "");
}

TEST(ContinuationTest, TokenIdsGoOnAsTheyAre) {
  Continuation continuation(kText, R"({"prompt":"Tell","max_tokens":10,"return_token_ids":true})", true, true);
  continuation.sent(said("Once", R"(,"token_ids":[11],"prompt_token_ids":[1,2,3])") + said(" upon", R"(,"token_ids":[12,13])"));
  EXPECT_EQ(next_of(continuation).at("prompt"), boost::json::parse("[1,2,3,11,12,13]"));
  EXPECT_EQ(next_of(continuation).at("max_tokens").to_number<int>(), 7);
  const auto rest = continuation.rewrite(said(" a", R"(,"token_ids":[14],"prompt_token_ids":[1,2,3,11,12,13])"));
  ASSERT_TRUE(rest.ok());
  EXPECT_EQ(rest->find("prompt_token_ids"), std::string::npos);
}

TEST(ContinuationTest, StartsBehindWhatTheTokenizerCutsTheSameAndHasTheRestRepeated) {
  Continuation continuation(kText, R"({"prompt":"Tell","max_tokens":10})", true, true);
  continuation.sent(said("Once") + said("\\n") + said(" "));
  EXPECT_EQ(next_of(continuation), boost::json::parse(R"({"prompt":"TellOnce","max_tokens":9})"));
  auto out = continuation.rewrite(said("\\n") + said(" upon"));
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(out->find("\\n\""), std::string::npos) << *out;
  EXPECT_NE(out->find(R"("text":"upon")"), std::string::npos) << *out;
  continuation.sent(*out);
  out = continuation.rewrite(said(" a"));
  EXPECT_NE(out->find(R"("text":" a")"), std::string::npos) << *out;
}

TEST(ContinuationTest, AnotherTextThanTheOneSentIsAnError) {
  Continuation continuation(kText, R"({"prompt":"Tell","max_tokens":10})", true, true);
  continuation.sent(said("Once") + said(" "));
  ASSERT_TRUE(continuation.next_body().ok());
  EXPECT_FALSE(continuation.rewrite(said("xx")).ok());
}

TEST(ContinuationTest, NothingThatCanBeKeptStartsAgainFromTheClientsOwnBytes) {
  const std::string body = R"({ "prompt":"Tell", "max_tokens":10 })";
  Continuation continuation(kText, body, true, true);
  continuation.sent(said(" "));
  EXPECT_EQ(continuation.next_body().value(), body);
  const auto out = continuation.rewrite(said(" Once"));
  EXPECT_NE(out->find(R"("text":"Once")"), std::string::npos) << *out;
}

TEST(ContinuationTest, TheClientSeesOneAnswer) {
  Continuation continuation(kText, R"({"prompt":"Tell","max_tokens":10,"stream_options":{"include_usage":true}})", true, true);
  continuation.sent(said("Once") + said(" upon"));
  ASSERT_TRUE(continuation.next_body().ok());
  const auto out = continuation.rewrite(
      "data: {\"id\":\"b\",\"created\":9,\"model\":\"x\",\"choices\":[],\"usage\":{\"prompt_tokens\":6,\"completion_tokens\":3,"
      "\"total_tokens\":9}}\n\ndata: [DONE]\n\n");
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(*out,
            "data: {\"id\":\"a\",\"created\":1,\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":5,"
            "\"total_tokens\":9}}\n\ndata: [DONE]\n\n");
}

TEST(ContinuationTest, ReadsEventsThatDifferInTheirTextAloneAsItReadsTheOthers) {
  Continuation continuation(kText, R"({"prompt":"","max_tokens":10})", true, true);
  continuation.sent(said("a") + said(" b") + said("\\\"") + said("c\\n") + said("") + said("d") + said("\u00e9"));
  EXPECT_EQ(continuation.tokens_sent(), 7U);
  EXPECT_EQ(next_of(continuation), boost::json::parse("{\"prompt\":\"a b\\\"c\\nd\u00e9\",\"max_tokens\":3}"));
}

TEST(ContinuationTest, KnowsWhenOnlyTheEndIsMissing) {
  const std::string last = R"(data: {"choices":[{"index":0,"text":"a","finish_reason":"stop"}]})"
                           "\n\n";
  Continuation plain(kText, R"({"prompt":"Tell"})", true, true);
  EXPECT_FALSE(plain.finished());
  plain.sent(last);
  EXPECT_TRUE(plain.finished());
  Continuation counted(kText, R"({"prompt":"Tell","stream_options":{"include_usage":true}})", true, true);
  counted.sent(last);
  EXPECT_FALSE(counted.finished());
  EXPECT_FALSE(counted.next_body().ok());
  counted.sent("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n");
  EXPECT_TRUE(counted.finished());
}

TEST(ContinuationTest, RefusesWhatWouldNotBeTheSame) {
  const std::string once = said("Once");
  for (const char* field : {R"("n":2)", R"("echo":true)", R"("suffix":"x")", R"("logprobs":1)", R"("presence_penalty":0.5)",
                            R"("response_format":{"type":"json_object"})", R"("guided_regex":"a")", R"("tools":[{}])"}) {
    const auto text = refusal(kText, std::string(R"({"prompt":"Tell",)") + field + "}", once);
    EXPECT_EQ(text.find("continued"), std::string::npos) << field << ": " << text;
  }
  EXPECT_NE(refusal(kText, R"({"prompt":[1,2]})", once).find("return_token_ids"), std::string::npos);
  EXPECT_NE(refusal(kText, R"({"prompt":["a","b"]})", once).find("list"), std::string::npos);
  EXPECT_NE(refusal(kText, R"({"prompt":"a","max_tokens":1})", once).find("all tokens"), std::string::npos);
  EXPECT_NE(refusal(kChat, R"({"messages":[{}]})", said_in_chat(R"({"tool_calls":[{}]})")).find("more than text"), std::string::npos);
  EXPECT_NE(refusal(kText, R"({"prompt":"a"})", "data: {").find("too long"), std::string::npos);
  EXPECT_NE(refusal(kText, R"({"prompt":"a"})", "data: {\n").find("JSON"), std::string::npos);
}

TEST(SseErrorTest, AnErrorEventIsHeldBackWithAllBehindIt) {
  SseStream events;
  const std::string error = R"(data: {"error":{"message":"EngineCore died","code":500}})"
                            "\n\n";
  EXPECT_EQ(events.feed("data: a\n\n" + error + "data: [DO"), "data: a\n\n");
  EXPECT_EQ(events.feed("NE]\n\n"), "");
  ASSERT_TRUE(events.has_error());
  EXPECT_TRUE(events.between_events());
  EXPECT_FALSE(events.done());
  EXPECT_EQ(status_in_error(events.error()), 500U);
  EXPECT_EQ(events.pass_error(), error + "data: [DONE]\n\n");
  EXPECT_TRUE(events.done());
  EXPECT_EQ(status_in_error(R"({"object":"error","code":404})"), 404U);
  EXPECT_EQ(status_in_error("{"), 500U);
}

TEST(SseErrorTest, KnowsWhetherAnEventIsWhole) {
  SseStream events;
  EXPECT_EQ(events.feed("data: a\n"), "data: a\n");
  EXPECT_FALSE(events.between_events());
  EXPECT_EQ(events.feed("\r\n"), "\r\n");
  EXPECT_TRUE(events.between_events());
}

}  // namespace
}  // namespace moonpool::gateway
