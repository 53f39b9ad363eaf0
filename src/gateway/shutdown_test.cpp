// How the process ends and how it takes a new configuration: what its clients see, its exit status, its log.
#include <gtest/gtest.h>

#include "gateway/testing/gateway_program.h"

namespace moonpool::gateway::testing {
namespace {

class StreamInProgress {
 public:
  StreamInProgress(UpstreamSimulator& instance, std::uint16_t port) : client(port) {
    instance.hold_tokens();
    instance.release_tokens(2);
    EXPECT_TRUE(client.send_request("POST", "/v1/completions", kStreamed));
    EXPECT_EQ(client.read_head().status, 200U);
    const auto first = client.read_chunk();
    EXPECT_TRUE(first.has_value());
    text = first.value_or("");
  }
  void read_to_the_end() {
    while (auto chunk = client.read_chunk()) text += *chunk;
  }
  TestClient client;
  std::string text;
};

TEST(ShutdownTest, AtSigtermTheListenerClosesAndTheStreamEndsWhole) {
  UpstreamSimulator instance;
  GatewayProgram gateway({"--decode", instance.name()});
  StreamInProgress stream(instance, gateway.port);
  TestClient idle(gateway.port);
  EXPECT_EQ(idle.get("/health").status, 200U);
  gateway.process->signal(SIGTERM);
  EXPECT_TRUE(test::wait_until([&] { return !test::accepts_connections("127.0.0.1", gateway.port); }, soon()));
  EXPECT_TRUE(idle.sees_close());
  EXPECT_TRUE(gateway.process->running());
  instance.release_tokens(100);
  stream.read_to_the_end();
  EXPECT_FALSE(stream.client.ended_badly());
  EXPECT_TRUE(stream.text.ends_with("data: [DONE]\n\n")) << stream.text;
  EXPECT_EQ(gateway.process->wait(soon()), 0);
  EXPECT_EQ(gateway.log().find("are cut"), std::string::npos) << gateway.log();
}

TEST(ShutdownTest, WhatOutlastsTheDrainTimeIsToldSo) {
  UpstreamSimulator instance;
  UpstreamSimulator other;
  GatewayProgram gateway({"--decode", instance.name(), "--drain-timeout", "0.3"});
  StreamInProgress stream(instance, gateway.port);
  TestClient whole(gateway.port);
  ASSERT_TRUE(whole.send_request("POST", "/v1/completions", kStreamed));  // not one byte of it is there yet
  ASSERT_TRUE(test::wait_until([&] { return instance.completions().size() == 2; }, soon()));
  gateway.process->signal(SIGTERM);
  stream.read_to_the_end();
  EXPECT_TRUE(stream.client.ended_badly());
  EXPECT_NE(stream.text.find("data: {\"error\""), std::string::npos) << stream.text;
  EXPECT_NE(stream.text.find("--drain-timeout"), std::string::npos) << stream.text;
  EXPECT_EQ(stream.text.find("[DONE]"), std::string::npos) << stream.text;
  const auto refused = whole.read_answer();
  EXPECT_EQ(refused.status, 503U);
  EXPECT_TRUE(refused.complete);
  EXPECT_EQ(refused.fields.at("connection"), "close");
  EXPECT_EQ(gateway.process->wait(soon()), 1);
  EXPECT_NE(gateway.log().find("2 client connections still busy after the drain time"), std::string::npos) << gateway.log();
  EXPECT_NE(gateway.log().find("POST /v1/completions 200"), std::string::npos) << gateway.log();  // the access line of a cut stream
  EXPECT_NE(gateway.log().find(" cut error="), std::string::npos) << gateway.log();
  EXPECT_TRUE(test::wait_until([&] { return instance.abandoned() == 2; }, soon()));
}

TEST(ShutdownTest, ClientsThatWouldStayAreToldToLeave) {
  UpstreamSimulator instance;
  GatewayProgram gateway({"--decode", instance.name()});
  instance.hold_tokens();
  TestClient client(gateway.port);
  ASSERT_TRUE(client.send_request("POST", "/v1/completions", kPlain));
  ASSERT_TRUE(client.send_request("GET", "/health", ""));  // sent ahead
  ASSERT_TRUE(test::wait_until([&] { return instance.completions().size() == 1; }, soon()));
  gateway.process->signal(SIGTERM);
  EXPECT_TRUE(test::wait_until([&] { return !test::accepts_connections("127.0.0.1", gateway.port); }, soon()));
  instance.release_tokens(100);
  const auto answer = client.read_answer();
  EXPECT_EQ(answer.status, 200U);
  EXPECT_EQ(answer.fields.at("connection"), "close");
  EXPECT_TRUE(client.sees_close());
  EXPECT_EQ(gateway.process->wait(soon()), 0);
}

// SIGHUP does not wait for the file's time stamp, and a file that is wrong changes nothing.
TEST(ShutdownTest, SighupTakesAChangedFileAndKeepsTheOldStateWhenItIsWrong) {
  UpstreamSimulator one;
  UpstreamSimulator two;
  const test::TempDir folder;
  const std::string file = folder.file("gateway.json");
  const auto with = [](const std::string& name, const std::string& more) {
    return R"({"groups": {"decode": {"instances": [")" + name + "\"]}}" + more + "}";
  };
  replace_file(file, with(one.name(), ""));
  GatewayProgram gateway({"--config", file});
  EXPECT_TRUE(gateway.has(one.name()));
  StreamInProgress stream(one, gateway.port);

  replace_file(file,
               with(two.name(), R"(, "limits": {"body_bytes": 100}, "listen": {"threads": 7, "host": "::1"}, "log": {"access": true})"));
  gateway.process->signal(SIGHUP);
  EXPECT_TRUE(gateway.gets(two.name()));
  EXPECT_EQ(gateway.state_of(one.name()), "draining");
  EXPECT_TRUE(gateway.logs("taken at the next start alone: host, threads")) << gateway.log();
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", std::string(101, ' ')).status, 413U);
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", kPlain).status, 200U);
  EXPECT_TRUE(gateway.logs("POST /v1/completions 200"));

  replace_file(file, "{\"groups\": {\"decode\": {\"instances\": [\"nonsense\"]}}}");
  gateway.process->signal(SIGHUP);
  EXPECT_TRUE(gateway.logs("the configuration stays as it was"));
  EXPECT_TRUE(gateway.has(two.name()));
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", std::string(101, ' ')).status, 413U);
  EXPECT_EQ(TestClient(gateway.port).post("/v1/completions", kPlain).status, 200U);

  one.release_tokens(100);
  stream.read_to_the_end();
  EXPECT_FALSE(stream.client.ended_badly());
  EXPECT_TRUE(gateway.loses(one.name()));
  gateway.process->signal(SIGTERM);
  EXPECT_EQ(gateway.process->wait(soon()), 0);
}

}  // namespace
}  // namespace moonpool::gateway::testing
