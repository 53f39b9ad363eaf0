// The gateway as a whole: its own endpoints, administration, health, hostile bytes, start and stop.
#include "gateway/gateway.h"

#include <gtest/gtest.h>

#include <csignal>

#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {
namespace {

using GatewayWholeTest = GatewayTest;

std::string addition(const std::string& type, const std::string& instance) {
  return R"({"type": ")" + type + R"(", "instance": ")" + instance + "\"}";
}

constexpr std::string_view kKey = "X-API-Key: top-secret-key\r\n";

TEST_F(GatewayWholeTest, StatusShowsWhatTheDemoDidAndMore) {
  start_gateway(2, 1);
  EXPECT_EQ(complete(kPlain).status, 200U);
  const auto document = status();
  EXPECT_EQ(document.at("prefill_node_count").to_number<int>(), 2);
  EXPECT_EQ(document.at("decode_node_count").to_number<int>(), 1);
  EXPECT_EQ(document.at("prefill_nodes").at(1).as_string(), prefill[1]->name().c_str());
  EXPECT_EQ(document.at("decode_nodes").at(0).as_string(), decode[0]->name().c_str());
  const auto one = instance_status(decode[0]->name());
  EXPECT_EQ(one.at("state").as_string(), "healthy");
  EXPECT_EQ(one.at("requests").to_number<int>(), 1);
  EXPECT_EQ(one.at("latency").at("count").to_number<int>(), 1);
  EXPECT_EQ(one.at("inter_token_latency").at("count").to_number<int>(), 0);
  EXPECT_EQ(counter("answered"), 1);
}

TEST_F(GatewayWholeTest, RoutesByPathAndMethod) {
  start_gateway(1, 1);
  TestClient client(port());
  EXPECT_EQ(client.get("/health").status, 200U);
  EXPECT_EQ(client.get("/ready").status, 200U);
  const auto models = client.get("/v1/models");
  EXPECT_EQ(models.status, 200U);
  EXPECT_NE(models.body.find(R"("id":"m")"), std::string::npos);
  const auto unknown = client.get("/v2/nothing");
  EXPECT_EQ(unknown.status, 404U);
  EXPECT_NE(message_of(unknown).find("/v1/completions"), std::string::npos);
  const auto wrong = client.get("/v1/completions");
  EXPECT_EQ(wrong.status, 405U);
  EXPECT_EQ(wrong.fields.at("allow"), "POST");
  EXPECT_EQ(client.post("/status", "{}").status, 405U);
}

TEST_F(GatewayWholeTest, AddingNeedsTheKey) {
  start_gateway(1, 1);
  UpstreamSimulator extra;
  const std::string body = addition("prefill", extra.name());
  TestClient client(port());
  EXPECT_EQ(client.post("/instances/add", body).status, 401U);
  EXPECT_EQ(client.post("/instances/add", body, "X-API-Key: wrong\r\n").status, 403U);
  EXPECT_EQ(client.post("/instances/add", body, "X-API-Key: top-secret-key2\r\n").status, 403U);
  EXPECT_EQ(client.post("/instances/add", body, "Authorization: Bearer top-secret-key2\r\n").status, 403U);
  EXPECT_TRUE(extra.all().empty());
  EXPECT_EQ(client.post("/instances/add", body, kKey).status, 200U);
  gateway.reset();

  Settings without = test_settings();
  without.keys = {};
  start_gateway(1, 1, without);
  const auto disabled = TestClient(port()).post("/instances/add", body, "X-API-Key: \r\n");
  EXPECT_EQ(disabled.status, 403U);
  EXPECT_NE(message_of(disabled).find("ADMIN_API_KEY"), std::string::npos);
}

TEST_F(GatewayWholeTest, AddedInstancesWorkAtOnce) {
  start_gateway(0, 0);
  UpstreamSimulator new_prefill;
  UpstreamSimulator new_decode;
  TestClient client(port());
  EXPECT_EQ(client.post("/v1/completions", kPlain).status, 503U);
  EXPECT_EQ(client.post("/instances/add", addition("prefill", new_prefill.name()), kKey).status, 200U);
  const auto added = client.post("/instances/add", addition("decode", new_decode.name()), kKey);
  EXPECT_EQ(added.body, R"({"message":"Added )" + new_decode.name() + R"( to decode_instances."})");
  const auto again = client.post("/instances/add", addition("decode", new_decode.name()), kKey);
  EXPECT_EQ(again.status, 200U);
  EXPECT_NE(again.body.find("already"), std::string::npos);
  EXPECT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  EXPECT_EQ(new_prefill.completions().size(), 1U);
  EXPECT_EQ(new_decode.completions().size(), 1U);
  EXPECT_EQ(status().at("decode_node_count").to_number<int>(), 1);
}

TEST_F(GatewayWholeTest, InstancesThatCannotWorkAreNotAdded) {
  Settings settings = test_settings();
  settings.timeouts.check = std::chrono::milliseconds(500);
  start_gateway(0, 0, settings);
  UpstreamSimulator other_model("another");
  UpstreamSimulator sick;
  sick.set_health_status(503);
  UpstreamSimulator gone;
  gone.stop();
  TestClient client(port());
  const auto mismatch = client.post("/instances/add", addition("decode", other_model.name()), kKey);
  EXPECT_EQ(mismatch.status, 400U);
  EXPECT_NE(message_of(mismatch).find("serves another, not m"), std::string::npos) << mismatch.body;
  const auto refused = client.post("/instances/add", addition("decode", gone.name()), kKey);
  EXPECT_EQ(refused.status, 502U);
  EXPECT_NE(message_of(refused).find(gone.name()), std::string::npos) << refused.body;
  EXPECT_EQ(client.post("/instances/add", addition("decode", sick.name()), kKey).status, 502U);
  const auto unresolvable = client.post("/instances/add", addition("decode", "no-such-host.invalid:80"), kKey);
  EXPECT_GE(unresolvable.status, 502U);
  for (const std::string& body : {std::string("{"), std::string("[]"), std::string("{}"), addition("both", "a:1"), addition("decode", "a"),
                                  std::string(R"({"type":"decode","instance":5})")}) {
    EXPECT_EQ(client.post("/instances/add", body, kKey).status, 400U) << body;
  }
  EXPECT_EQ(status().at("decode_node_count").to_number<int>(), 0);
}

TEST_F(GatewayWholeTest, UnhealthyInstanceIsPassedOverAndComesBackByItself) {
  Settings settings = test_settings();
  settings.health.circuit.failures_to_open = 2;
  start_gateway(0, 2, settings);
  decode[0]->stop();
  for (int i = 0; i < 6; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_TRUE(test::wait_until([&] { return !is_healthy(*decode[0]); }, soon()));
  const auto errors = instance_status(decode[0]->name()).at("errors").to_number<int>();
  for (int i = 0; i < 6; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(instance_status(decode[0]->name()).at("errors").to_number<int>(), errors);  // no request was spent on it
  EXPECT_NE(std::string(instance_status(decode[0]->name()).at("last_error").as_string()).find("refused"), std::string::npos);

  decode[0]->start();
  EXPECT_TRUE(test::wait_until([&] { return is_healthy(*decode[0]); }, soon()));
  for (int i = 0; i < 4; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_GE(decode[0]->completions().size(), 2U);
}

TEST_F(GatewayWholeTest, WhenAllAreUnhealthyTheyAreTriedAnyway) {
  Settings settings = test_settings();
  settings.health.circuit.failures_to_open = 1;
  settings.health.first_probe = std::chrono::hours(1);
  start_gateway(0, 1, settings);
  Behaviour broken;
  broken.fault = Fault::kStatus;
  broken.status = 503;
  decode[0]->set_next(broken);
  EXPECT_EQ(complete(kPlain).status, 503U);
  EXPECT_FALSE(is_healthy(*decode[0]));
  EXPECT_EQ(TestClient(port()).get("/ready").status, 503U);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_TRUE(is_healthy(*decode[0]));
}

TEST_F(GatewayWholeTest, SpeaksIpv6OnBothSides) {
  Settings settings = test_settings();
  settings.host = "::1";
  UpstreamSimulator six("m", "::1");
  settings.decode.push_back(InstanceName::parse(six.name()).value());
  auto started = Gateway::start(std::move(settings));
  ASSERT_TRUE(started.ok()) << started.status().message();
  TestClient client(started.value()->port(), "::1");
  EXPECT_EQ(client.post("/v1/completions", kPlain).status, 200U);
  EXPECT_EQ(six.completions().size(), 1U);
  EXPECT_EQ(six.completions()[0].fields.at("host"), six.name());
}

TEST_F(GatewayWholeTest, NamesAreResolved) {
  Settings settings = test_settings();
  UpstreamSimulator four;
  settings.decode.push_back(InstanceName::parse("localhost:" + std::to_string(four.port())).value());
  auto started = Gateway::start(std::move(settings));
  ASSERT_TRUE(started.ok()) << started.status().message();
  EXPECT_EQ(TestClient(started.value()->port()).post("/v1/completions", kPlain).status, 200U);
}

TEST_F(GatewayWholeTest, HostileBytesAreRefusedAndServiceGoesOn) {
  Settings settings = test_settings();
  settings.limits.header_bytes = 2000;
  settings.limits.body_bytes = 5000;
  start_gateway(0, 1, settings);
  const std::string post = "POST /v1/completions HTTP/1.1\r\nHost: a\r\n";
  const std::vector<std::pair<std::string, unsigned>> cases{
      {std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + std::string(50, '\0'), 400},
      {"\r\n\r\n nonsense \r\n\r\n", 400},
      {"GET / HTTP/3.0\r\n\r\n", 400},
      {"GET /health HTTP/1.1\r\nX: " + std::string(4000, 'x') + "\r\n\r\n", 431},
      {post + "Content-Length: 6000\r\n\r\n", 413},
      {post + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400},
      {post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400},
      {post + "Content-Length: -1\r\n\r\n", 400},
      {post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
      {post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {post + "Content-Length : 2\r\n\r\n{}", 400},
  };
  for (const auto& [bytes, expected] : cases) {
    TestClient client(port());
    ASSERT_TRUE(client.send(bytes));
    const auto answer = client.read_answer();
    EXPECT_EQ(answer.status, expected) << bytes.substr(0, 60);
    EXPECT_NE(answer.body.find("invalid_request_error"), std::string::npos);
    EXPECT_TRUE(client.sees_close());
  }
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(decode[0]->completions().size(), 1U);
}

TEST_F(GatewayWholeTest, ChunkedAndPipelinedAndAnnouncedRequestsAreUnderstood) {
  start_gateway(0, 1);
  TestClient client(port());
  ASSERT_TRUE(
      client.send("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{\"prompt\"\r\n5\r\n:\"a\"}\r\n0\r\n\r\n"
                  "GET /health HTTP/1.1\r\n\r\n"));
  EXPECT_EQ(client.read_answer().status, 200U);
  EXPECT_EQ(client.read_answer().status, 200U);
  EXPECT_EQ(decode[0]->completions().at(0).body, R"({"prompt":"a"})");
  ASSERT_TRUE(client.send("POST /v1/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 14\r\n\r\n"));
  EXPECT_EQ(client.read_answer().status, 100U);
  ASSERT_TRUE(client.send(R"({"prompt":"b"})"));
  EXPECT_EQ(client.read_answer().status, 200U);
  EXPECT_FALSE(decode[0]->completions().at(1).fields.contains("expect"));
}

TEST_F(GatewayWholeTest, SlowClientsLoseTheirConnection) {
  Settings settings = test_settings();
  settings.timeouts.client_header = std::chrono::milliseconds(100);
  settings.timeouts.client_body = std::chrono::milliseconds(100);
  settings.timeouts.client_idle = std::chrono::milliseconds(1000);
  start_gateway(0, 1, settings);
  TestClient slow_head(port());
  ASSERT_TRUE(slow_head.send("GET /health HT"));
  EXPECT_EQ(slow_head.read_answer().status, 408U);
  TestClient slow_body(port());
  ASSERT_TRUE(slow_body.send("POST /v1/completions HTTP/1.1\r\nContent-Length: 10\r\n\r\n{"));
  EXPECT_EQ(slow_body.read_answer().status, 408U);
  TestClient idle(port());
  EXPECT_TRUE(idle.sees_close());
}

TEST_F(GatewayWholeTest, ClientsBeyondTheLimitAreToldSo) {
  Settings settings = test_settings();
  settings.limits.client_connections = 1;
  start_gateway(0, 1, settings);
  TestClient first(port());
  EXPECT_EQ(first.get("/health").status, 200U);
  EXPECT_EQ(TestClient(port()).read_answer().status, 503U);
  EXPECT_EQ(first.get("/health").status, 200U);
}

TEST_F(GatewayWholeTest, PortInUseIsAClearError) {
  start_gateway(0, 0);
  Settings second = test_settings();
  second.port = port();
  const auto started = Gateway::start(std::move(second));
  ASSERT_FALSE(started.ok());
  EXPECT_NE(started.status().message().find("127.0.0.1:" + std::to_string(port())), std::string::npos);
  EXPECT_NE(started.status().message().find("in use"), std::string::npos) << started.status().message();
}

TEST_F(GatewayWholeTest, StopFinishesRunningRequestsAndClosesIdleClients) {
  start_gateway(0, 1);
  TestClient idle(port());
  EXPECT_EQ(idle.get("/health").status, 200U);
  TestClient busy(port());
  decode[0]->hold_tokens();
  decode[0]->release_tokens(1);
  ASSERT_TRUE(busy.send_request("POST", "/v1/completions", kStreamed));
  ASSERT_EQ(busy.read_head().status, 200U);
  std::thread stopper([&] { EXPECT_TRUE(gateway->stop()); });
  EXPECT_TRUE(idle.sees_close());
  decode[0]->release_tokens(3);
  std::string text;
  while (auto chunk = busy.read_chunk()) text += *chunk;
  EXPECT_FALSE(busy.ended_badly());
  EXPECT_TRUE(text.ends_with("data: [DONE]\n\n"));
  stopper.join();
  EXPECT_FALSE(TestClient(port()).connected());
}

TEST_F(GatewayWholeTest, StopIsBounded) {
  Settings settings = test_settings();
  settings.timeouts.drain = std::chrono::milliseconds(100);
  start_gateway(0, 1, settings);
  decode[0]->hold_tokens();
  TestClient busy(port());
  ASSERT_TRUE(busy.send_request("POST", "/v1/completions", kPlain));
  ASSERT_TRUE(test::wait_until([&] { return decode[0]->completions().size() == 1; }, soon()));
  EXPECT_FALSE(gateway->stop());
}

// The process itself: command line, signals, and what it writes to its log.
TEST(GatewayProcessTest, ServesStopsAtSigtermAndNeverLogsAKey) {
  const test::TempDir folder;
  UpstreamSimulator upstream;
  const auto port = test::free_port();
  test::ChildOptions options;
  options.argv = {
      MOONPOOL_GATEWAY_PROGRAM, "--model",      "m",           "--prefill",   upstream.name(), "--decode",    upstream.name(), "--port",
      std::to_string(port),     "--scheduling", "round_robin", "--log-level", "trace",         "--access-log"};
  options.environment = {{"ADMIN_API_KEY", "admin-secret-1"}};
  options.log_file = folder.file("log");
  auto process = test::ChildProcess::start(options);
  ASSERT_TRUE(process.ok()) << process.status().message();
  ASSERT_TRUE(test::wait_until([&] { return test::accepts_connections("127.0.0.1", port); }, soon()));
  const std::string secret = "Authorization: Bearer client-secret-2\r\nX-API-Key: admin-secret-1\r\n";
  const std::string trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n";
  EXPECT_EQ(TestClient(port).post("/v1/completions?key=query-secret-3", kPlain, secret + trace).status, 200U);
  EXPECT_EQ(TestClient(port).post("/instances/add", addition("decode", upstream.name()), secret).status, 200U);
  EXPECT_EQ(TestClient(port).post("/instances/add", "{}", "X-API-Key: guessed-secret-4\r\n").status, 403U);
  upstream.stop();
  EXPECT_EQ(TestClient(port).post("/v1/completions", kPlain, secret).status, 502U);
  process->signal(SIGTERM);
  EXPECT_EQ(process->wait(soon()), 0);
  const std::string log = process->output();
  EXPECT_NE(log.find("prefill instance " + upstream.name()), std::string::npos) << log;
  EXPECT_NE(log.find("POST /v1/completions 200"), std::string::npos) << log;
  EXPECT_NE(log.find("trace=4bf92f3577b34da6a3ce929d0e0e4736 "), std::string::npos) << log;
  for (const char* stage : {" received=20", " queue_ms=", " prefill_done_ms=", " first_byte_ms=", " last_byte_ms="}) {
    EXPECT_NE(log.find(stage), std::string::npos) << stage << log;
  }
  const std::string audited = "action=add instance=" + upstream.name() + " type=decode result=200";
  EXPECT_NE(log.find("audit: from=127.0.0.1"), std::string::npos) << log;
  EXPECT_NE(log.find(audited), std::string::npos) << log;
  EXPECT_NE(log.find("by=unauthorized action=add instance=- type=- result=403"), std::string::npos) << log;
  EXPECT_EQ(log.find("secret"), std::string::npos) << log;
  for (const auto& seen : upstream.all()) EXPECT_FALSE(seen.fields.contains("x-api-key"));
}

}  // namespace
}  // namespace moonpool::gateway::testing
