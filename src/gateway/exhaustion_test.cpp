// Clients that take the gateway's time, memory or connections: each wait has a deadline for the whole of it, each buffer a limit.
#include <gtest/gtest.h>

#include "gateway/testing/gateway_fixture.h"
#include "gateway/testing/raw_upstream.h"

namespace moonpool::gateway::testing {
namespace {

using Clock = std::chrono::steady_clock;
using ExhaustionTest = GatewayTest;

constexpr std::chrono::milliseconds kDeadline{300};

// Sends a byte every few milliseconds until the gateway answers; how long that took.
std::chrono::milliseconds drip(TestClient& client, std::string_view bytes) {
  const auto begun = Clock::now();
  for (std::size_t i = 0; i < bytes.size() && !client.readable_within(10); ++i) client.send(bytes.substr(i, 1));
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begun);
}

TEST_F(ExhaustionTest, AHeadByteByByteHasOneDeadline) {
  Settings settings = test_settings();
  settings.timeouts.client_header = kDeadline;
  start_gateway(0, 1, settings);
  TestClient client(port());
  const auto taken = drip(client, "GET /health HTTP/1.1\r\nX: " + std::string(2000, 'x'));
  EXPECT_EQ(client.read_answer().status, 408U);
  EXPECT_GE(taken, kDeadline);
  EXPECT_LT(taken, kDeadline * 10);
}

TEST_F(ExhaustionTest, ABodyByteByByteHasOneDeadline) {
  Settings settings = test_settings();
  settings.timeouts.client_body = kDeadline;
  start_gateway(0, 1, settings);
  for (const std::string& fields :
       {std::string("Content-Length: 2000\r\n\r\n"), std::string("Transfer-Encoding: chunked\r\n\r\n7d0\r\n")}) {
    TestClient client(port());
    ASSERT_TRUE(client.send("POST /v1/completions HTTP/1.1\r\n" + fields));
    const auto taken = drip(client, std::string(2000, 'x'));
    EXPECT_EQ(client.read_answer().status, 408U);
    EXPECT_LT(taken, kDeadline * 10);
  }
  EXPECT_TRUE(decode[0]->completions().empty());
}

TEST_F(ExhaustionTest, AClientThatReadsNothingIsLeft) {
  Settings settings = test_settings();
  settings.timeouts.client_write = kDeadline;
  settings.limits.buffered_answer_bytes = 1000;  // longer ones are passed on as they come
  settings.health.check_every = std::chrono::milliseconds(0);
  RawUpstream upstream;
  upstream.answer_with(json_answer(std::string(std::size_t{48} << 20, 'x')));
  settings.decode.push_back(InstanceName::parse(upstream.name()).value());
  auto started = Gateway::start(std::move(settings));
  ASSERT_TRUE(started.ok()) << started.status().message();
  gateway = std::move(started).value();
  TestClient client(port());
  ASSERT_TRUE(client.send_request("POST", "/v1/completions", kPlain));
  EXPECT_TRUE(test::wait_until([&] { return counter("client_gone") == 1; }, soon()));
}

TEST_F(ExhaustionTest, ABodyBeyondTheLimitIsNotRead) {
  Settings settings = test_settings();
  settings.limits.body_bytes = 1000;
  start_gateway(0, 1, settings);
  TestClient announced(port());
  ASSERT_TRUE(announced.send("POST /v1/completions HTTP/1.1\r\nContent-Length: 1001\r\n\r\n"));
  EXPECT_EQ(announced.read_answer().status, 413U);
  TestClient chunked(port());
  ASSERT_TRUE(
      chunked.send("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + std::string(1000, 'x') + "\r\n1\r\n"));
  EXPECT_EQ(chunked.read_answer().status, 413U);
  EXPECT_TRUE(decode[0]->completions().empty());
}

TEST_F(ExhaustionTest, IdleConnectionsBeyondTheLimitAreRefused) {
  Settings settings = test_settings();
  settings.limits.client_connections = 40;
  start_gateway(0, 1, settings);
  std::vector<std::unique_ptr<TestClient>> idle;
  for (int i = 0; i < 40; ++i) {
    idle.push_back(std::make_unique<TestClient>(port()));
    ASSERT_EQ(idle.back()->get("/health").status, 200U);
  }
  for (int i = 0; i < 5; ++i) EXPECT_EQ(TestClient(port()).read_answer().status, 503U);
  idle.pop_back();
  EXPECT_TRUE(test::wait_until([&] { return TestClient(port()).get("/health").status == 200; }, soon()));
  EXPECT_EQ(idle.front()->get("/health").status, 200U);
}

}  // namespace
}  // namespace moonpool::gateway::testing
