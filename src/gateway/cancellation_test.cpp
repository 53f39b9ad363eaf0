// A client that goes away stops the work done for it, at every stage, within 100 ms of its close as the instance sees it. A time beyond
// that is measured again with another request.
#include <gtest/gtest.h>

#include "gateway/testing/gateway_fixture.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MOONPOOL_TEST_IS_SLOW 1
#endif
#endif

namespace moonpool::gateway::testing {
namespace {

#ifdef MOONPOOL_TEST_IS_SLOW
constexpr std::chrono::milliseconds kAtMost{500};
#else
constexpr std::chrono::milliseconds kAtMost{100};
#endif

using Clock = std::chrono::steady_clock;

struct Stage {
  const char* name;
  bool prefill;
  bool streamed;
  Point point;
};

constexpr Stage kStages[] = {{"PrefillConnected", true, true, Point::kAccepted},
                             {"PrefillRequestSent", true, false, Point::kRequestRead},
                             {"PrefillInHead", true, true, Point::kInHead},
                             {"PrefillInBody", true, false, Point::kInBody},
                             {"DecodeConnected", false, true, Point::kAccepted},
                             {"DecodeRequestSent", false, true, Point::kRequestRead},
                             {"DecodeInHead", false, false, Point::kInHead},
                             {"DecodeBeforeFirstToken", false, true, Point::kHeadSent},
                             {"DecodeBetweenTokens", false, true, Point::kBetweenTokens},
                             {"DecodeInToken", false, true, Point::kInToken},
                             {"DecodeBeforeFinish", false, true, Point::kBeforeFinish},
                             {"DecodeInBody", false, false, Point::kInBody}};

class CancellationAt : public GatewayTest, public ::testing::WithParamInterface<Stage> {};

TEST_P(CancellationAt, ClosesTheConnectionToTheInstanceAtOnce) {
  const Stage& stage = GetParam();
  Settings settings = test_settings();
  settings.health.check_every = std::chrono::milliseconds(0);
  start_gateway(stage.prefill ? 1 : 0, 1, settings);
  UpstreamSimulator& instance = *(stage.prefill ? prefill : decode)[0];
  Behaviour silent;
  silent.point = stage.point;
  silent.how = How::kStall;
  instance.set(silent);
  int requests = 0;
  const auto time_to_end = [&] {
    ++requests;
    TestClient client(port());
    EXPECT_TRUE(client.send_request("POST", "/v1/completions", stage.streamed ? kStreamed : kPlain));
    EXPECT_TRUE(test::wait_until([&] { return instance.stalled() == requests; }, soon()));
    const auto closed = Clock::now();
    client.close();
    EXPECT_TRUE(test::wait_until([&] { return instance.abandoned() == requests; }, soon()));
    const auto taken = instance.last_abandoned() - closed;
    EXPECT_TRUE(test::wait_until([&] { return counter("client_gone") == requests; }, soon()));
    return taken;
  };
  EXPECT_TRUE(test::takes_less_than(kAtMost, time_to_end));
  const auto state = instance_status(instance.name());
  EXPECT_EQ(state.at("errors").to_number<int>(), 0);
  EXPECT_EQ(state.at("in_flight").to_number<int>(), 0);
  EXPECT_EQ(state.at("circuit").as_string(), "closed");
  EXPECT_EQ(counter("retries"), 0);
  if (stage.prefill) {
    EXPECT_TRUE(decode[0]->completions().empty());
  }
}

INSTANTIATE_TEST_SUITE_P(Every, CancellationAt, ::testing::ValuesIn(kStages),
                         [](const auto& info) { return std::string(info.param.name); });

using CancellationTest = GatewayTest;

TEST_F(CancellationTest, EndsThePauseBeforeARetry) {
  Settings settings = test_settings();
  settings.retries.first = std::chrono::seconds(30);
  settings.retries.longest = std::chrono::seconds(30);
  start_gateway(0, 2, settings);
  Behaviour broken;
  broken.point = Point::kRequestRead;
  for (const auto& one : decode) one->set(broken);
  const auto asked = [&] { return decode[0]->completions().size() + decode[1]->completions().size(); };
  std::size_t requests = 0;
  const auto counted = [&](const char* name) { return counter(name) == static_cast<std::int64_t>(requests); };
  const auto time_to_end = [&] {
    ++requests;
    TestClient client(port());
    EXPECT_TRUE(client.send_request("POST", "/v1/completions", kPlain));
    EXPECT_TRUE(test::wait_until([&] { return asked() == requests && counted("retries"); }, soon()));
    const auto closed = Clock::now();
    client.close();
    EXPECT_TRUE(test::wait_until([&] { return counted("client_gone"); }, soon()));
    return Clock::now() - closed;
  };
  EXPECT_TRUE(test::takes_less_than(kAtMost, time_to_end));
  EXPECT_EQ(asked(), requests);
}

TEST_F(CancellationTest, EndsAStreamThatWasContinued) {
  Settings settings = test_settings();
  start_gateway(0, 2, settings);
  Behaviour dies;
  dies.point = Point::kBetweenTokens;
  dies.tokens_before_fault = 1;
  Behaviour silent = dies;
  silent.how = How::kStall;
  decode[0]->set(dies);
  decode[1]->set(silent);
  const auto leave = [&] {
    const int stalled = decode[1]->stalled();
    TestClient attempt(port());
    EXPECT_TRUE(attempt.send_request("POST", "/v1/completions",
                                     R"({"prompt":"Tell","max_tokens":4,"stream":true,"temperature":0,"return_token_ids":true})"));
    EXPECT_TRUE(test::wait_until([&] { return decode[1]->stalled() == stalled + 1; }, soon()));
    const int before = decode[1]->abandoned();
    const auto closed = Clock::now();
    attempt.close();
    EXPECT_TRUE(test::wait_until([&] { return decode[1]->abandoned() == before + 1; }, soon()));
    return decode[1]->last_abandoned() - closed;
  };
  std::size_t continued = 0;
  const auto time_to_end = [&] {
    ++continued;
    auto longest = leave();  // of two requests, one begins at the one that dies
    if (decode[0]->completions().size() < continued) longest = std::max(longest, leave());
    return longest;
  };
  EXPECT_TRUE(test::takes_less_than(kAtMost, time_to_end));
  EXPECT_EQ(decode[0]->completions().size(), continued);
  EXPECT_EQ(counter("continued"), static_cast<std::int64_t>(continued));
}

}  // namespace
}  // namespace moonpool::gateway::testing
