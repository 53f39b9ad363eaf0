// Streams that go on at another instance, over real sockets: when they do, how the client is told, and that the whole is one answer.
#include <gtest/gtest.h>

#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {
namespace {

constexpr std::string_view kGreedy = R"({"prompt":"Tell","max_tokens":6,"stream":true,"temperature":0,"return_token_ids":true})";
constexpr std::string_view kSampled = R"({"prompt":"Tell","max_tokens":6,"stream":true,"temperature":1})";

class ContinuedStreamsTest : public GatewayTest {
 protected:
  // All but the last die after two tokens, each asked first or after another's death.
  void start_dying(std::size_t count, Settings settings = test_settings()) {
    start_gateway(0, count, settings);
    Behaviour dies;
    dies.tokens = {"Once", " upon", " a", " time", " there", " was"};
    dies.point = Point::kBetweenTokens;
    for (std::size_t i = 0; i < count; ++i) {
      if (i + 1 == count) dies.point = Point::kNowhere;
      decode[i]->set(dies);
    }
  }

  // Of the requests that go round, the answer of one that began at an instance that dies.
  ClientAnswer disturbed(std::string_view body) {
    for (std::size_t i = 0; i < decode.size(); ++i) {
      const std::size_t before = decode[0]->completions().size();
      auto answer = complete(body);
      if (decode[0]->completions().size() > before) return answer;
    }
    return {};
  }

  static std::string text_of(const ClientAnswer& answer) {
    std::string text;
    for (std::size_t at = 0; (at = answer.body.find("\"text\":\"", at)) != std::string::npos;) {
      at += 8;
      text += answer.body.substr(at, answer.body.find('"', at) - at);
    }
    return text;
  }
};

TEST_F(ContinuedStreamsTest, SurviveOneDeathAfterAnother) {
  Settings settings = test_settings();
  settings.attempts = 3;
  start_dying(3, settings);
  for (int i = 0; i < 3; ++i) {
    const auto answer = complete(kGreedy);
    EXPECT_TRUE(answer.complete) << answer.body;
    EXPECT_EQ(text_of(answer), "Once upon a time there was");
  }
  EXPECT_GE(counter("continued"), 2);
  EXPECT_EQ(counter("cut"), 0);
}

TEST_F(ContinuedStreamsTest, AreGreedyOnesUnlessToldOtherwise) {
  start_dying(2);
  EXPECT_FALSE(disturbed(kSampled).complete);
  EXPECT_TRUE(disturbed(kGreedy).complete);
  gateway.reset();
  Settings settings = test_settings();
  settings.continue_streams = ContinueStreams::kAlways;
  start_dying(2, settings);
  EXPECT_EQ(text_of(disturbed(kSampled)), "Once upon a time there was");
  gateway.reset();
  settings.continue_streams = ContinueStreams::kOff;
  start_dying(2, settings);
  const auto cut = disturbed(kGreedy);
  EXPECT_FALSE(cut.complete);
  EXPECT_NE(cut.body.find("--continue-streams"), std::string::npos) << cut.body;
}

TEST_F(ContinuedStreamsTest, AreNotGuessedUnlessToldSo) {
  constexpr const char* kUncounted = R"({"prompt":"Tell","max_tokens":6,"stream":true,"temperature":0})";
  start_dying(2);
  const auto cut = disturbed(kUncounted);
  EXPECT_FALSE(cut.complete);
  EXPECT_NE(cut.body.find("return_token_ids"), std::string::npos) << cut.body;
  gateway.reset();
  Settings settings = test_settings();
  settings.continue_streams = ContinueStreams::kAlways;
  start_dying(2, settings);
  EXPECT_EQ(text_of(disturbed(kUncounted)), "Once upon a time there was");
}

TEST_F(ContinuedStreamsTest, SaySoAsTheyAreTold) {
  start_dying(2);
  EXPECT_NE(disturbed(kGreedy).body.find("\n\n: continued by another instance after 2 tokens\n\n"), std::string::npos);
  gateway.reset();
  Settings settings = test_settings();
  settings.continue_marker = ContinueMarker::kEvent;
  start_dying(2, settings);
  EXPECT_NE(disturbed(kGreedy).body.find("\n\nevent: continued\ndata: {"), std::string::npos);
  gateway.reset();
  settings.continue_marker = ContinueMarker::kOff;
  start_dying(2, settings);
  EXPECT_EQ(disturbed(kGreedy).body.find("continued"), std::string::npos);
}

TEST_F(ContinuedStreamsTest, CountTheWholeAnswer) {
  start_dying(2);
  const auto answer = disturbed(
      R"({"prompt":"Tell","max_tokens":6,"stream":true,"temperature":0,"return_token_ids":true,"stream_options":{"include_usage":true}})");
  EXPECT_NE(answer.body.find(R"("usage":{"prompt_tokens":3,"completion_tokens":6,"total_tokens":9})"), std::string::npos) << answer.body;
}

TEST_F(ContinuedStreamsTest, GoOnByTokenIdsWhereTheStreamHasThem) {
  start_dying(2);
  const auto answer = disturbed(R"({"prompt":"Tell","max_tokens":6,"stream":true,"temperature":0,"return_token_ids":true})");
  EXPECT_EQ(text_of(answer), "Once upon a time there was");
  EXPECT_NE(decode[1]->completions().back().body.find("[0,1,2,1000,1001]"), std::string::npos) << decode[1]->completions().back().body;
}

TEST_F(ContinuedStreamsTest, RefusedContinuationIsAnErrorAndNobodysFailure) {
  start_dying(2);
  Behaviour refuses;
  refuses.fault = Fault::kStatus;
  refuses.status = 400;
  decode[1]->set(refuses);
  const auto answer = disturbed(kGreedy);
  EXPECT_EQ(answer.status, 200U);
  EXPECT_FALSE(answer.complete);
  EXPECT_NE(answer.body.find("answered the continuation with HTTP 400"), std::string::npos) << answer.body;
  EXPECT_EQ(instance_status(decode[1]->name()).at("errors").to_number<int>(), 0);
}

TEST_F(ContinuedStreamsTest, TakeFromTheRetryBudget) {
  Settings settings = test_settings();
  settings.retries.budget_share = 0;
  settings.retries.budget_always = 0;
  start_dying(2, settings);
  const auto cut = disturbed(kGreedy);
  EXPECT_FALSE(cut.complete);
  EXPECT_NE(cut.body.find("--retry-budget"), std::string::npos) << cut.body;
  for (const auto& one : decode) one->stop();
  const auto failed = complete(kPlain);
  EXPECT_EQ(failed.status, 502U);
  EXPECT_NE(message_of(failed).find("1 instance was tried, more would exceed --retry-budget"), std::string::npos) << failed.body;
  EXPECT_EQ(counter("retries"), 0);
  EXPECT_EQ(counter("retries_refused"), 2);
}

TEST_F(ContinuedStreamsTest, TheRequestsOwnDeadlineBlamesNobody) {
  Settings settings = test_settings();
  settings.timeouts.request = std::chrono::milliseconds(300);
  start_gateway(0, 1, settings);
  Behaviour silent;
  silent.point = Point::kRequestRead;
  silent.how = How::kStall;
  decode[0]->set(silent);
  const auto answer = complete(kPlain);
  EXPECT_EQ(answer.status, 504U);
  EXPECT_NE(message_of(answer).find("waiting for the answer of " + decode[0]->name() + " took longer than 0.300 s (--request-timeout)"),
            std::string::npos)
      << answer.body;
  EXPECT_EQ(instance_status(decode[0]->name()).at("errors").to_number<int>(), 0);
}

TEST_F(ContinuedStreamsTest, SpeedsOfTheSimulatorAreThoseAskedFor) {
  start_gateway(0, 1);
  Behaviour slow;
  slow.prefill_tokens_per_s = 200;  // the request has some fifteen
  slow.decode_tokens_per_s = 50;
  decode[0]->set(slow);
  const auto begun = std::chrono::steady_clock::now();
  EXPECT_TRUE(complete(kStreamed).complete);
  EXPECT_GE(std::chrono::steady_clock::now() - begun, std::chrono::milliseconds(140));  // 15/200 + 4/50 s
}

}  // namespace
}  // namespace moonpool::gateway::testing
