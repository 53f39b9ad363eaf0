// A completion's way through prefill and decode, and every stage x failure of the contract in relay.h, over real sockets.
#include <gtest/gtest.h>

#include <set>

#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {
namespace {

using RelayTest = GatewayTest;

TEST_F(RelayTest, PrefillGetsOneTokenAndDecodeTheClientsOwnBytes) {
  start_gateway(1, 1);
  const std::string body = R"({ "model":"m", "prompt":"T\u00e9ll", "max_tokens":40, "temperature":1.0e-0, "unknown":[1,{"a":null}] })";
  const auto answer = complete(body, "Authorization: Bearer abc\r\nX-Request-Id: r-1\r\n");
  EXPECT_EQ(answer.status, 200U);
  EXPECT_TRUE(answer.complete);
  EXPECT_NE(answer.body.find(kWholeText), std::string::npos);
  EXPECT_EQ(answer.fields.at("server"), "simulator");

  const auto first = prefill[0]->completions();
  const auto second = decode[0]->completions();
  ASSERT_EQ(first.size(), 1U);
  ASSERT_EQ(second.size(), 1U);
  EXPECT_EQ(first[0].body, R"({ "model":"m", "prompt":"T\u00e9ll", "max_tokens":1, "temperature":1.0e-0, "unknown":[1,{"a":null}] })");
  EXPECT_EQ(second[0].body, body);
  for (const auto* seen : {&first[0], &second[0]}) {
    EXPECT_EQ(seen->target, "/v1/completions");
    EXPECT_EQ(seen->fields.at("authorization"), "Bearer abc");
    EXPECT_EQ(seen->fields.at("x-request-id"), "r-1");
    EXPECT_EQ(seen->fields.at("content-type"), "application/json");
  }
  EXPECT_EQ(first[0].fields.at("host"), prefill[0]->name());
}

TEST_F(RelayTest, AnInstanceWithoutTheEventsThatWereNamedIsServedAsBefore) {
  const UpstreamSimulator no_zeromq;
  Settings settings = test_settings();
  settings.scheduling = "prefix_aware";
  settings.prefill_events.port = no_zeromq.port();
  start_gateway(1, 1, std::move(settings));
  const std::string body = R"({"model":"m","prompt":")" + std::string(2000, 'a') + R"(","max_tokens":4})";
  EXPECT_EQ(complete(body).status, 200U);
  EXPECT_EQ(prefill[0]->completions().at(0).body.find("return_token_ids"), std::string::npos);
  const auto events = [&] { return instance_status(prefill[0]->name()).at("kv_events"); };
  ASSERT_TRUE(test::wait_until([&] { return events().at("why_not_connected").as_string() != "not yet"; }, soon()));
  EXPECT_FALSE(events().at("connected").as_bool());
  EXPECT_TRUE(instance_status(decode[0]->name()).at("kv_events").is_null());
  EXPECT_EQ(complete(body).status, 200U);
}

// A traceparent's trace-id and parent-id, empty when it has not the shape of version 00.
struct Traced {
  std::string trace_id;
  std::string parent_id;
  std::string flags;
};

Traced traced(const SeenRequest& seen) {
  const auto field = seen.fields.find("traceparent");
  if (field == seen.fields.end() || field->second.size() != 55 || !field->second.starts_with("00-")) return {};
  return {field->second.substr(3, 32), field->second.substr(36, 16), field->second.substr(53)};
}

TEST_F(RelayTest, BothHopsStayInTheClientsTrace) {
  start_gateway(1, 1);
  const std::string trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
  const std::string parent_id = "00f067aa0ba902b7";
  EXPECT_EQ(complete(kPlain, "Traceparent: 00-" + trace_id + "-" + parent_id + "-01\r\ntracestate: a=1, b@c=x:y\r\n").status, 200U);
  const Traced first = traced(prefill[0]->completions().at(0));
  const Traced second = traced(decode[0]->completions().at(0));
  for (const Traced& hop : {first, second}) {
    EXPECT_EQ(hop.trace_id, trace_id);
    EXPECT_EQ(hop.flags, "01");
    EXPECT_NE(hop.parent_id, parent_id);
    EXPECT_NE(hop.parent_id, std::string(16, '0'));
  }
  EXPECT_NE(first.parent_id, second.parent_id);
  EXPECT_EQ(prefill[0]->completions()[0].fields.at("tracestate"), "a=1, b@c=x:y");
  EXPECT_EQ(decode[0]->completions()[0].fields.at("tracestate"), "a=1, b@c=x:y");
}

TEST_F(RelayTest, WithoutAValidTraceANewOneStarts) {
  start_gateway(1, 1);
  const std::string valid = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
  const std::vector<std::string> cases{"", "traceparent: 00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01\r\n", valid + valid};
  std::set<std::string> trace_ids{"", "4bf92f3577b34da6a3ce929d0e0e4736", "4BF92F3577B34DA6A3CE929D0E0E4736"};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    EXPECT_EQ(complete(kPlain, cases[i] + "tracestate: a=1\r\n").status, 200U);
    const auto seen = decode[0]->completions().at(i);
    const Traced decoded = traced(seen);
    EXPECT_TRUE(trace_ids.insert(decoded.trace_id).second) << decoded.trace_id;
    EXPECT_EQ(decoded.flags, "00");
    EXPECT_EQ(traced(prefill[0]->completions().at(i)).trace_id, decoded.trace_id);
    EXPECT_FALSE(seen.fields.contains("tracestate")) << cases[i];
  }
}

TEST_F(RelayTest, EveryTryIsAHopOfItsOwn) {
  Settings settings = test_settings();
  settings.sample_traces = true;
  start_gateway(0, 2, settings);
  Behaviour broken;
  broken.fault = Fault::kStatus;
  for (const auto& one : decode) one->set_next(broken);
  EXPECT_EQ(complete(kPlain).status, 500U);
  const Traced first = traced(decode[0]->completions().at(0));
  const Traced second = traced(decode[1]->completions().at(0));
  EXPECT_EQ(first.trace_id, second.trace_id);
  EXPECT_NE(first.parent_id, second.parent_id);
  EXPECT_EQ(first.flags, "01");
}

TEST_F(RelayTest, ChatCompletionsTakeTheSameWay) {
  start_gateway(1, 1);
  const auto answer =
      TestClient(port()).post("/v1/chat/completions?x=1", R"({"messages":[{"role":"user","content":"a"}],"max_completion_tokens":9})");
  EXPECT_EQ(answer.status, 200U);
  EXPECT_EQ(prefill[0]->completions().at(0).body,
            R"({"max_tokens":1,"messages":[{"role":"user","content":"a"}],"max_completion_tokens":1})");
  EXPECT_EQ(decode[0]->completions().at(0).target, "/v1/chat/completions?x=1");
}

TEST_F(RelayTest, EveryTokenReachesTheClientBeforeTheNextIsSent) {
  start_gateway(1, 1);
  TestClient client(port());
  decode[0]->hold_tokens();
  ASSERT_TRUE(client.send_request("POST", "/v1/completions", kStreamed));
  std::string last;
  for (int i = 0; i < 4; ++i) {
    decode[0]->release_tokens(1);  // the instance cannot send the next one before this test has seen this one
    if (i == 0) {
      const auto head = client.read_head();
      EXPECT_EQ(head.status, 200U);
      EXPECT_EQ(head.fields.at("content-type"), "text/event-stream; charset=utf-8");
    }
    const auto chunk = client.read_chunk();
    ASSERT_TRUE(chunk.has_value());
    EXPECT_TRUE(chunk->starts_with("data: {") && chunk->ends_with("\n\n")) << *chunk;
    last = *chunk;
  }
  std::string rest = last;  // [DONE] follows the last token at once and may share its chunk
  while (auto chunk = client.read_chunk()) rest += *chunk;
  EXPECT_TRUE(rest.ends_with("data: [DONE]\n\n")) << rest;
  EXPECT_FALSE(client.ended_badly());
  EXPECT_EQ(client.get("/health").status, 200U);  // the connection lives on
}

TEST_F(RelayTest, InstancesTakeTurnsFairly) {
  start_gateway(2, 3);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  for (const auto& one : prefill) EXPECT_EQ(one->completions().size(), 6U);
  for (const auto& one : decode) EXPECT_EQ(one->completions().size(), 4U);
}

TEST_F(RelayTest, WithoutPrefillOrPromptOnlyDecodeWorks) {
  start_gateway(1, 1);
  EXPECT_EQ(complete(R"({"prompt":"","max_tokens":3})").status, 200U);
  EXPECT_TRUE(prefill[0]->completions().empty());
  gateway.reset();
  start_gateway(0, 1);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(decode[0]->completions().size(), 1U);
}

TEST_F(RelayTest, WithoutDecodeTheAnswerSaysWhatToDo) {
  start_gateway(1, 0);
  const auto answer = complete(kPlain);
  EXPECT_EQ(answer.status, 503U);
  EXPECT_NE(message_of(answer).find("--decode"), std::string::npos) << answer.body;
}

TEST_F(RelayTest, BodyThatIsNoJsonIsTheClientsError) {
  start_gateway(1, 1);
  const auto answer = complete(R"({"prompt":)");
  EXPECT_EQ(answer.status, 400U);
  EXPECT_NE(message_of(answer).find("byte 10"), std::string::npos) << answer.body;
  EXPECT_TRUE(decode[0]->completions().empty());
}

TEST_F(RelayTest, UpstreamConnectionsAreKeptAndStaleOnesReplacedUnseen) {
  start_gateway(1, 1);
  TestClient client(port());
  EXPECT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  EXPECT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  const auto seen = decode[0]->completions();
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_EQ(seen[0].connection, seen[1].connection);
  prefill[0]->close_idle_connections();
  decode[0]->close_idle_connections();
  EXPECT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  EXPECT_EQ(instance_status(decode[0]->name()).at("errors").to_number<int>(), 0);
  EXPECT_EQ(instance_status(prefill[0]->name()).at("errors").to_number<int>(), 0);
}

// ---- every failure of the prefill hop -------------------------------------------------------------------------------------------------

Settings quick_deadlines(Settings settings) {
  settings.timeouts.prefill = std::chrono::milliseconds(300);
  settings.timeouts.first_byte = std::chrono::milliseconds(300);
  settings.timeouts.between_bytes = std::chrono::milliseconds(300);
  return settings;
}

struct FaultCase {
  const char* name;
  Fault fault;
};

constexpr FaultCase kOwnFailures[] = {
    {"Status500", Fault::kStatus},           {"CloseBeforeHead", Fault::kCloseBeforeHead}, {"CloseInHead", Fault::kCloseInHead},
    {"CloseInBody", Fault::kCloseInBody},    {"StallBeforeHead", Fault::kStallBeforeHead}, {"Garbage", Fault::kGarbage},
    {"UntilCloseCut", Fault::kUntilCloseCut}};

std::string case_name(const ::testing::TestParamInfo<FaultCase>& info) { return info.param.name; }

class OwnFailure : public GatewayTest, public ::testing::WithParamInterface<FaultCase> {
 protected:
  [[nodiscard]] static Behaviour broken() {
    Behaviour behaviour;
    behaviour.fault = GetParam().fault;
    return behaviour;
  }
};

TEST_P(OwnFailure, OfOnePrefillInstanceMovesOnToTheOther) {
  if (GetParam().fault == Fault::kUntilCloseCut) return;  // a prefill's answer is thrown away: nothing can be missing from it
  start_gateway(2, 1, quick_deadlines(test_settings()));
  prefill[0]->set(broken());
  for (int i = 0; i < 2; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(prefill[1]->completions().size(), 2U);
  EXPECT_EQ(counter("prefill_given_up"), 0);
  EXPECT_GE(instance_status(prefill[0]->name()).at("errors").to_number<int>(), 1);
}

TEST_P(OwnFailure, OfAllPrefillInstancesLeavesTheJobToDecode) {
  if (GetParam().fault == Fault::kUntilCloseCut) return;
  start_gateway(2, 1, quick_deadlines(test_settings()));
  for (const auto& one : prefill) one->set(broken());
  const auto answer = complete(kStreamed);
  EXPECT_EQ(answer.status, 200U);
  EXPECT_TRUE(answer.complete);
  EXPECT_NE(answer.body.find("[DONE]"), std::string::npos);
  EXPECT_EQ(counter("prefill_given_up"), 1);
}

// ---- every failure of the decode hop before the first byte ----------------------------------------------------------------------------

TEST_P(OwnFailure, OfOneDecodeInstanceIsNotSeenByTheClient) {
  start_gateway(0, 2, quick_deadlines(test_settings()));
  decode[0]->set(broken());
  for (const auto body : {kPlain, kPlain, kStreamed, kStreamed}) {
    if (body == kStreamed && GetParam().fault == Fault::kUntilCloseCut) continue;
    const auto answer = complete(body);
    EXPECT_EQ(answer.status, 200U) << answer.body;
    EXPECT_TRUE(answer.complete);
    EXPECT_NE(answer.body.find(body == kPlain ? kWholeText : "data: [DONE]"), std::string::npos) << answer.body;
    EXPECT_EQ(answer.body.find("error"), std::string::npos);
  }
}

TEST_P(OwnFailure, OfAllDecodeInstancesIsToldInOpenAiShape) {
  start_gateway(0, 2, quick_deadlines(test_settings()));
  for (const auto& one : decode) one->set(broken());
  const auto answer = complete(kPlain);
  EXPECT_TRUE(answer.complete);
  const std::string message = message_of(answer);
  if (GetParam().fault == Fault::kStatus) {
    EXPECT_EQ(answer.status, 500U);  // the instance's own answer
    EXPECT_EQ(message, "simulated 500");
    return;
  }
  EXPECT_EQ(answer.status, GetParam().fault == Fault::kStallBeforeHead ? 504U : 502U) << answer.body;
  EXPECT_TRUE(message.find(decode[0]->name()) != std::string::npos || message.find(decode[1]->name()) != std::string::npos) << message;
  EXPECT_NE(message.find("2 instances were tried"), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(Every, OwnFailure, ::testing::ValuesIn(kOwnFailures), case_name);

TEST_F(RelayTest, RefusedConnectionMovesOnInBothHops) {
  start_gateway(2, 2);
  prefill[0]->stop();
  decode[1]->stop();
  for (int i = 0; i < 6; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(prefill[1]->completions().size(), 6U);
  EXPECT_EQ(decode[0]->completions().size(), 6U);
  EXPECT_EQ(counter("prefill_given_up"), 0);
}

TEST_F(RelayTest, AttemptsAreBounded) {
  Settings settings = test_settings();
  settings.attempts = 2;
  start_gateway(0, 4, settings);
  for (const auto& one : decode) one->stop();
  const auto answer = complete(kPlain);
  EXPECT_EQ(answer.status, 502U);
  EXPECT_NE(message_of(answer).find("2 instances were tried"), std::string::npos);
}

// ---- 4xx: the client's own -----------------------------------------------------------------------------------------------------------

TEST_F(RelayTest, ClientErrorsPassThroughAndBlameNobody) {
  start_gateway(1, 1);
  Behaviour refusal;
  refusal.fault = Fault::kStatus;
  refusal.extra_fields = "Retry-After: 7\r\nX-Own: 1\r\nKeep-Alive: timeout=5\r\n";
  for (const unsigned code : {400U, 401U, 404U, 422U, 429U}) {
    refusal.status = code;
    prefill[0]->set(refusal);
    const auto from_prefill = complete(kStreamed);
    EXPECT_EQ(from_prefill.status, code);
    EXPECT_EQ(message_of(from_prefill), "simulated " + std::to_string(code));
    EXPECT_EQ(from_prefill.fields.at("retry-after"), "7");
    EXPECT_EQ(from_prefill.fields.at("x-own"), "1");
    EXPECT_FALSE(from_prefill.fields.contains("keep-alive"));
    prefill[0]->set({});
    decode[0]->set(refusal);
    EXPECT_EQ(complete(kPlain).status, code);
    decode[0]->set({});
  }
  EXPECT_EQ(decode[0]->completions().size(), 5U);
  for (const auto* one : {prefill[0].get(), decode[0].get()}) {
    EXPECT_TRUE(is_healthy(*one));
    EXPECT_EQ(instance_status(one->name()).at("errors").to_number<int>(), 0);
  }
}

// ---- decode fails after the first byte: never as if complete ---------------------------------------------------------------------------

class CutStream : public GatewayTest, public ::testing::WithParamInterface<FaultCase> {};

TEST_P(CutStream, EndsWithAnErrorEventAndWithoutTheLastChunk) {
  start_gateway(1, 2, quick_deadlines(test_settings()));
  Behaviour cut;
  cut.fault = GetParam().fault;
  for (const auto& one : decode) one->set(cut);
  TestClient client(port());
  const auto answer = client.post("/v1/completions", kStreamed);
  EXPECT_EQ(answer.status, 200U);
  EXPECT_FALSE(answer.complete);
  EXPECT_EQ(answer.body.find("[DONE]"), std::string::npos);
  EXPECT_NE(answer.body.find(" upon"), std::string::npos);
  // Each event is whole, the last is the error.
  const std::size_t last = answer.body.rfind("data: ");
  ASSERT_NE(last, std::string::npos);
  boost::system::error_code error;
  const auto document = boost::json::parse(answer.body.substr(last + 6), error);
  ASSERT_FALSE(error) << answer.body;
  EXPECT_EQ(document.at("error").at("code").to_number<int>(), 502);
  EXPECT_EQ(answer.body.find("\"te\n"), std::string::npos);
  EXPECT_TRUE(client.sees_close());
  EXPECT_EQ(counter("cut"), 1);
  EXPECT_EQ(decode[0]->completions().size() + decode[1]->completions().size(), 1U);
}

INSTANTIATE_TEST_SUITE_P(Every, CutStream,
                         ::testing::Values(FaultCase{"CloseInStream", Fault::kCloseInStream},
                                           FaultCase{"CloseInEvent", Fault::kCloseInEvent},
                                           FaultCase{"EndWithoutDone", Fault::kEndWithoutDone},
                                           FaultCase{"StallInStream", Fault::kStallInStream}),
                         case_name);

TEST_F(RelayTest, PlainAnswerCutShortIsAskedOfAnotherInstance) {
  start_gateway(0, 2, quick_deadlines(test_settings()));
  for (const Fault fault : {Fault::kCloseInBody, Fault::kStallInStream}) {
    Behaviour cut;
    cut.fault = fault;
    decode[0]->set(cut);
    for (int i = 0; i < 2; ++i) {
      const auto answer = complete(kPlain);
      EXPECT_EQ(answer.status, 200U);
      EXPECT_TRUE(answer.complete);
      EXPECT_NE(answer.body.find(decode[1]->name()), std::string::npos) << answer.body;
    }
  }
}

TEST_F(RelayTest, AnswerTooLongToHoldIsPassedOnAndVisiblyCutWhenItsInstanceDies) {
  Settings settings = test_settings();
  settings.limits.buffered_answer_bytes = 1000;
  start_gateway(0, 1, settings);
  Behaviour whole;
  whole.tokens = {std::string(200'000, 'x')};
  decode[0]->set(whole);
  const auto good = complete(kPlain);
  EXPECT_TRUE(good.complete);
  EXPECT_GT(good.body.size(), 200'000U);
  whole.fault = Fault::kCloseInBody;
  decode[0]->set(whole);
  const auto bad = complete(kPlain);
  EXPECT_EQ(bad.status, 200U);
  EXPECT_FALSE(bad.complete);
}

TEST_F(RelayTest, Http10ClientsGetTheirStreamUntilTheEndOfTheConnection) {
  start_gateway(0, 1);
  TestClient client(port());
  ASSERT_TRUE(client.send("POST /v1/completions HTTP/1.0\r\nContent-Length: " + std::to_string(kStreamed.size()) + "\r\n\r\n" +
                          std::string(kStreamed)));
  const auto answer = client.read_answer();
  EXPECT_EQ(answer.status, 200U);
  EXPECT_FALSE(answer.fields.contains("transfer-encoding"));
  EXPECT_TRUE(answer.body.ends_with("data: [DONE]\n\n")) << answer.body;
}

// ---- the client goes away ---------------------------------------------------------------------------------------------------------------

TEST_F(RelayTest, ClientThatLeavesStopsThePrefill) {
  start_gateway(1, 1);
  Behaviour stall;
  stall.fault = Fault::kStallBeforeHead;
  prefill[0]->set(stall);
  TestClient client(port());
  ASSERT_TRUE(client.send_request("POST", "/v1/completions", kPlain));
  ASSERT_TRUE(test::wait_until([&] { return prefill[0]->completions().size() == 1; }, soon()));
  client.close();
  EXPECT_TRUE(test::wait_until([&] { return prefill[0]->abandoned() == 1; }, soon()));
  EXPECT_TRUE(test::wait_until([&] { return counter("client_gone") == 1; }, soon()));
  EXPECT_TRUE(decode[0]->completions().empty());
  EXPECT_EQ(instance_status(prefill[0]->name()).at("errors").to_number<int>(), 0);
}

TEST_F(RelayTest, ClientThatLeavesStopsTheDecode) {
  start_gateway(1, 1);
  for (const auto body : {kPlain, kStreamed}) {
    const int before = decode[0]->abandoned();
    decode[0]->hold_tokens();
    TestClient client(port());
    ASSERT_TRUE(client.send_request("POST", "/v1/completions", body));
    if (body == kStreamed) {
      decode[0]->release_tokens(1);
      ASSERT_EQ(client.read_head().status, 200U);
      ASSERT_TRUE(client.read_chunk().has_value());
    } else {
      ASSERT_TRUE(test::wait_until([&] { return decode[0]->completions().size() == 1; }, soon()));
    }
    client.close();
    EXPECT_TRUE(test::wait_until([&] { return decode[0]->abandoned() == before + 1; }, soon()));
  }
  EXPECT_TRUE(test::wait_until([&] { return counter("client_gone") == 2; }, soon()));
  EXPECT_EQ(instance_status(decode[0]->name()).at("in_flight").to_number<int>(), 0);
  EXPECT_EQ(instance_status(decode[0]->name()).at("errors").to_number<int>(), 0);
}

}  // namespace
}  // namespace moonpool::gateway::testing
