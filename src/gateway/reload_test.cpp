// New settings hold for the next request, whatever kind they are.
#include <gtest/gtest.h>

#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {
namespace {

class ReloadTest : public GatewayTest {
 protected:
  // With the instances that are there.
  void reload(Settings next) {
    for (const auto& one : prefill) next.prefill.push_back(InstanceName::parse(one->name()).value());
    for (const auto& one : decode) next.decode.push_back(InstanceName::parse(one->name()).value());
    gateway->reload(std::move(next));
  }
  [[nodiscard]] bool becomes(unsigned expected, std::string_view body) const {
    return test::wait_until([&] { return complete(body).status == expected; }, soon());
  }
};

TEST_F(ReloadTest, TimeoutsAndAttemptsHoldForTheNextRequest) {
  start_gateway(0, 2);
  Behaviour silent;
  silent.fault = Fault::kStallBeforeHead;
  for (const auto& one : decode) one->set(silent);
  TestClient kept(port());  // a connection from before
  EXPECT_EQ(kept.get("/health").status, 200U);
  Settings next = test_settings();
  next.timeouts.first_byte = std::chrono::milliseconds(100);
  next.attempts = 1;
  next.model = "other";
  reload(next);
  ASSERT_TRUE(
      test::wait_until([&] { return TestClient(port()).get("/metrics").body.find("model=\"other\"") != std::string::npos; }, soon()));
  const auto answer = kept.post("/v1/completions", kPlain);
  EXPECT_EQ(answer.status, 504U);
  EXPECT_NE(message_of(answer).find("0.100 s (--first-byte-timeout)"), std::string::npos) << answer.body;
  EXPECT_NE(message_of(answer).find("1 instance was tried"), std::string::npos) << answer.body;
}

TEST_F(ReloadTest, AKeptConnectionHasTheNewClientTimes) {
  start_gateway(0, 1);
  TestClient kept(port());
  EXPECT_EQ(kept.get("/health").status, 200U);
  Settings next = test_settings();
  next.timeouts.client_idle = std::chrono::milliseconds(100);
  next.limits.body_bytes = 50;
  reload(next);
  ASSERT_TRUE(becomes(413, std::string(51, ' ')));
  EXPECT_EQ(kept.get("/health").status, 200U);  // its wait for this request began before
  EXPECT_TRUE(kept.sees_close());
}

TEST_F(ReloadTest, CircuitsRetriesAndChecksAreThoseOfTheNewSettings) {
  Settings first = test_settings();
  first.health.check_every = std::chrono::hours(1);
  first.health.first_probe = std::chrono::hours(1);
  first.health.slowest_probe = std::chrono::hours(1);
  first.health.circuit.failures_to_open = 1000;
  start_gateway(0, 2, first);
  Behaviour broken;
  broken.fault = Fault::kStatus;
  broken.status = 500;
  decode[0]->set(broken);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_TRUE(is_healthy(*decode[0]) || instance_status(decode[0]->name()).at("state").as_string() == "starting");

  Settings next = first;
  next.health.circuit.failures_to_open = 1;
  next.retries.budget_share = 0;
  next.retries.budget_always = 0;
  reload(next);
  EXPECT_TRUE(becomes(500, kPlain));  // no retry is within the budget, and the circuit opens
  EXPECT_EQ(instance_status(decode[0]->name()).at("state").as_string(), "unhealthy");
  EXPECT_GE(counter("retries_refused"), 1);

  next.health.first_probe = std::chrono::milliseconds(50);
  next.health.slowest_probe = std::chrono::milliseconds(50);
  decode[0]->set({});
  reload(next);  // the probe that was an hour away comes now
  EXPECT_TRUE(test::wait_until([&] { return complete(kPlain).status == 200 && is_healthy(*decode[0]); }, soon()));
}

TEST_F(ReloadTest, StreamsAreContinuedOrNotAsTheNewSettingsSay) {
  start_gateway(0, 2);
  Behaviour cut;
  cut.fault = Fault::kCloseInStream;
  constexpr std::string_view kGreedy =
      R"({"model":"m","prompt":"Tell","max_tokens":4,"stream":true,"temperature":0,"return_token_ids":true})";
  decode[0]->set(cut);
  const auto continued = [&] {
    for (int i = 0; i < 2; ++i) {
      const auto answer = complete(kGreedy);
      if (answer.body.find("continued by another instance") != std::string::npos) return true;
      if (answer.body.find("\"error\"") != std::string::npos) return false;
    }
    return false;
  };
  EXPECT_TRUE(continued());
  Settings next = test_settings();
  next.continue_streams = ContinueStreams::kOff;
  reload(next);
  EXPECT_TRUE(test::wait_until([&] { return !continued(); }, soon()));
}

}  // namespace
}  // namespace moonpool::gateway::testing
