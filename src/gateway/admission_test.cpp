// Keys, limits and the queue through a whole gateway: what clients see, and what is never seen anywhere.
#include "gateway/admission.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {
namespace {

constexpr std::string_view kAlice = "Authorization: Bearer secret-of-alice\r\n";
constexpr std::string_view kBob = "Authorization: Bearer secret-of-bob\r\n";
constexpr std::string_view kAdministrator = "X-API-Key: top-secret-key\r\n";

std::string code_of(const ClientAnswer& answer) {
  boost::system::error_code error;
  const auto document = boost::json::parse(answer.body, error);
  if (error || !document.is_object() || !document.get_object().contains("error")) return "no error: " + answer.body;
  const auto& code = document.at("error").at("code");
  return code.is_string() ? std::string(code.as_string()) : "a number";
}

class AdmissionTest : public GatewayTest {
 protected:
  static Settings with_keys() {
    Settings settings = test_settings();
    EXPECT_TRUE(settings.keys.add(key_of("alice", "secret-of-alice")).ok());
    EXPECT_TRUE(settings.keys.add(key_of("bob", "secret-of-bob")).ok());
    EXPECT_TRUE(settings.keys.add(key_of("watcher", "secret-of-watcher", KeyRole::kMonitor)).ok());
    return settings;
  }
  // One request at a time.
  static Settings narrow(Settings settings = test_settings()) {
    settings.overload.concurrent = 1;
    settings.overload.queue_timeout = std::chrono::seconds(20);
    return settings;
  }
  [[nodiscard]] boost::json::value queue() const { return status().at("queue"); }
  [[nodiscard]] std::int64_t waiting() const { return queue().at("waiting").to_number<std::int64_t>(); }
  [[nodiscard]] std::int64_t shed(const char* cause) const { return queue().at("shed").at(cause).to_number<std::int64_t>(); }
  [[nodiscard]] bool wait_until_waiting(std::int64_t count) const {
    return test::wait_until([&] { return waiting() == count; }, soon());
  }
  // A request that runs until its tokens are released.
  void occupy(const TestClient& client, std::string_view fields = {}) {
    const std::size_t before = decode[0]->completions().size();
    decode[0]->hold_tokens();
    ASSERT_TRUE(client.send_request("POST", "/v1/completions", kStreamed, fields));
    ASSERT_TRUE(test::wait_until([&] { return decode[0]->completions().size() == before + 1; }, soon()));
  }
  static void read_to_the_end(TestClient& client) {
    EXPECT_EQ(client.read_head().status, 200U);
    while (client.read_chunk()) {
    }
    EXPECT_FALSE(client.ended_badly());
  }
};

TEST_F(AdmissionTest, WithoutKeysEveryoneIsLetInAndNothingIsShown) {
  start_gateway(0, 1);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(complete(kPlain, "Authorization: Bearer anything\r\n").status, 200U);
  EXPECT_EQ(decode[0]->completions().back().fields.at("authorization"), "Bearer anything");
  EXPECT_FALSE(status().as_object().contains("queue"));
}

TEST_F(AdmissionTest, EachKeyOpensWhatItsRoleSaysAndNothingElse) {
  start_gateway(0, 1, with_keys());
  TestClient client(port());
  const auto missing = client.post("/v1/completions", kPlain);
  EXPECT_EQ(missing.status, 401U);
  EXPECT_EQ(code_of(missing), "invalid_api_key");
  EXPECT_TRUE(missing.fields.at("www-authenticate").starts_with("Bearer")) << missing.body;
  EXPECT_NE(message_of(missing).find("Authorization: Bearer"), std::string::npos);
  const auto unknown = client.post("/v1/completions", kPlain, "Authorization: Bearer secret-of-alicf\r\n");
  EXPECT_EQ(unknown.status, 401U);
  EXPECT_EQ(code_of(unknown), "invalid_api_key");
  EXPECT_EQ(client.post("/v1/completions", kPlain, kAlice).status, 200U);
  EXPECT_EQ(client.post("/v1/completions", kPlain, "X-API-Key: secret-of-bob\r\n").status, 200U);
  EXPECT_EQ(client.post("/v1/embeddings", "{}").status, 401U);
  EXPECT_EQ(client.post("/v1/embeddings", "{}", kAlice).status, 200U);
  EXPECT_EQ(client.get("/v1/models").status, 401U);
  EXPECT_EQ(client.get("/v1/models", kAlice).status, 200U);
  EXPECT_EQ(client.get("/v1/anything").status, 401U);
  const auto admins = client.post("/v1/completions", kPlain, "Authorization: Bearer top-secret-key\r\n");
  EXPECT_EQ(admins.status, 403U);
  EXPECT_EQ(code_of(admins), "wrong_key_role");
  EXPECT_EQ(client.post("/v1/completions", kPlain, "Authorization: Bearer secret-of-watcher\r\n").status, 403U);

  const std::string removal = R"({"instance": "127.0.0.1:1"})";
  EXPECT_EQ(client.post("/instances/remove", removal, kAlice).status, 403U);
  EXPECT_EQ(client.post("/instances/remove", removal, "X-API-Key: secret-of-watcher\r\n").status, 403U);
  EXPECT_EQ(client.post("/instances/remove", removal).status, 401U);
  EXPECT_EQ(client.post("/instances/remove", removal, kAdministrator).status, 404U);
  EXPECT_EQ(client.post("/instances/remove", removal, "Authorization: Bearer top-secret-key\r\n").status, 404U);
  for (const char* open : {"/health", "/ready", "/status", "/metrics", "/instances"}) EXPECT_EQ(client.get(open).status, 200U) << open;
  EXPECT_EQ(counter("unauthorized"), 10);
}

TEST_F(AdmissionTest, AStrangersBodyIsNotWaitedFor) {
  start_gateway(0, 1, with_keys());
  for (const std::string_view body : {"Content-Length: 60000000\r\n", "Transfer-Encoding: chunked\r\n"}) {
    TestClient client(port());
    ASSERT_TRUE(client.send("POST /v1/completions HTTP/1.1\r\nHost: g\r\nExpect: 100-continue\r\n" + std::string(body) + "\r\n"));
    const ClientAnswer answer = client.read_answer();
    EXPECT_EQ(answer.status, 401U);
    EXPECT_EQ(answer.fields.at("connection"), "close");
    EXPECT_TRUE(client.sees_close());
  }
  EXPECT_TRUE(decode[0]->completions().empty());
}

TEST_F(AdmissionTest, TheStateCanBeProtectedToo) {
  Settings settings = with_keys();
  settings.protect_status = true;
  start_gateway(0, 1, settings);
  TestClient client(port());
  for (const char* open : {"/health", "/ready"}) EXPECT_EQ(client.get(open).status, 200U) << open;
  for (const char* path : {"/status", "/metrics", "/instances"}) {
    EXPECT_EQ(client.get(path).status, 401U) << path;
    EXPECT_EQ(client.get(path, kAlice).status, 403U) << path;
    EXPECT_EQ(client.get(path, "Authorization: Bearer secret-of-watcher\r\n").status, 200U) << path;
    EXPECT_EQ(client.get(path, kAdministrator).status, 200U) << path;
  }
}

TEST_F(AdmissionTest, InstancesSeeTheirOwnKeyAndNotTheClients) {
  start_gateway(1, 2, with_keys());
  EXPECT_EQ(complete(kPlain, kAlice).status, 200U);
  EXPECT_FALSE(decode[0]->completions().at(0).fields.contains("authorization"));
  EXPECT_FALSE(prefill[0]->completions().at(0).fields.contains("authorization"));
  gateway.reset();

  Settings told = with_keys();
  told.forward_authorization = true;
  start_gateway(0, 1, told);
  EXPECT_EQ(complete(kPlain, kAlice).status, 200U);
  EXPECT_EQ(decode[0]->completions().at(0).fields.at("authorization"), "Bearer secret-of-alice");
  gateway.reset();

  Settings upstream = with_keys();
  upstream.upstream_api_key = "secret-of-vllm";
  start_gateway(1, 2, upstream);
  EXPECT_EQ(complete(kPlain, kAlice).status, 200U);
  EXPECT_EQ(TestClient(port()).get("/v1/models", kAlice).status, 200U);
  UpstreamSimulator added;
  const std::string addition = R"({"type": "decode", "instance": ")" + added.name() + "\"}";
  EXPECT_EQ(TestClient(port()).post("/instances/add", addition, kAdministrator).status, 200U);
  EXPECT_EQ(TestClient(port()).post("/instances/remove", R"({"instance": ")" + added.name() + "\"}", kAdministrator).status, 200U);
  EXPECT_EQ(TestClient(port()).post("/instances/add", addition, "Authorization: Bearer top-secret-key\r\n").status, 200U);
  // Completions, models, health checks and the check of an added instance alike.
  for (const auto* seen : {prefill[0].get(), decode[0].get(), decode[1].get(), &added}) {
    for (const auto& request : seen->all()) EXPECT_EQ(request.fields.at("authorization"), "Bearer secret-of-vllm") << request.target;
  }
}

TEST_F(AdmissionTest, ALimitedKeyIsToldWhenToComeBack) {
  Settings settings = test_settings();
  ApiKey limited = key_of("alice", "secret-of-alice");
  limited.requests_per_minute = 2;
  ASSERT_TRUE(settings.keys.add(limited).ok());
  ASSERT_TRUE(settings.keys.add(key_of("bob", "secret-of-bob")).ok());
  start_gateway(0, 1, settings);
  const auto first = complete(kPlain, kAlice);
  EXPECT_EQ(first.status, 200U);
  EXPECT_EQ(first.fields.at("x-ratelimit-limit-requests"), "2");
  EXPECT_EQ(first.fields.at("x-ratelimit-remaining-requests"), "1");
  EXPECT_FALSE(first.fields.contains("x-ratelimit-limit-tokens"));
  TestClient streaming(port());
  ASSERT_TRUE(streaming.send_request("POST", "/v1/completions", kStreamed, kAlice));
  const auto head = streaming.read_head();
  EXPECT_EQ(head.status, 200U);
  EXPECT_EQ(head.fields.at("x-ratelimit-remaining-requests"), "0");
  const auto refused = complete(kPlain, kAlice);
  EXPECT_EQ(refused.status, 429U);
  EXPECT_EQ(code_of(refused), "rate_limit_exceeded");
  const int retry_after = std::stoi(refused.fields.at("retry-after"));
  EXPECT_TRUE(retry_after >= 25 && retry_after <= 30) << retry_after;
  EXPECT_EQ(refused.fields.at("x-ratelimit-remaining-requests"), "0");
  EXPECT_TRUE(refused.fields.contains("x-ratelimit-reset-requests"));
  EXPECT_FALSE(complete(kPlain, kBob).fields.contains("x-ratelimit-limit-requests"));
  EXPECT_EQ(decode[0]->completions().size(), 3U);
  EXPECT_EQ(shed("request_rate"), 1);
}

TEST_F(AdmissionTest, TokensAreCountedAsTheAnswerSays) {
  Settings settings = test_settings();
  ApiKey limited = key_of("alice", "secret-of-alice");
  limited.tokens_per_minute = 1000;
  ASSERT_TRUE(settings.keys.add(limited).ok());
  start_gateway(0, 1, settings);
  const auto used = [&] { return queue().at("keys").at(0).at("tokens").to_number<int>(); };
  const std::string long_prompt(3000, 'x');  // guessed as 750 tokens, of which the simulator knows nothing
  const auto answer = complete(R"({"prompt":")" + long_prompt + R"(","max_tokens":4})", kAlice);
  EXPECT_EQ(answer.status, 200U);
  EXPECT_EQ(answer.fields.at("x-ratelimit-remaining-tokens"), "249");
  ASSERT_TRUE(test::wait_until([&] { return used() == 3 + 4; }, soon())) << used();
  // A stream without usage: its prompt's guess and its events.
  TestClient streaming(port());
  ASSERT_TRUE(streaming.send_request("POST", "/v1/completions", kStreamed, kAlice));
  read_to_the_end(streaming);
  ASSERT_TRUE(test::wait_until([&] { return used() == 7 + 2 + 4; }, soon())) << used();
  ASSERT_TRUE(streaming.send_request("POST", "/v1/completions",
                                     R"({"prompt":"Tell","max_tokens":4,"stream":true,"stream_options":{"include_usage":true}})", kAlice));
  read_to_the_end(streaming);
  ASSERT_TRUE(test::wait_until([&] { return used() == 13 + 7; }, soon())) << used();
  // Given back what the guess was too high by: two more of these fit.
  const std::string guessed_high = R"({"prompt":")" + long_prompt + R"(","max_tokens":4})";
  EXPECT_EQ(complete(guessed_high, kAlice).status, 200U);
  ASSERT_TRUE(test::wait_until([&] { return used() == 27; }, soon()));
  EXPECT_EQ(complete(guessed_high, kAlice).status, 200U);
}

TEST_F(AdmissionTest, ThoseThatFindNoPlaceWaitAndRunInTurn) {
  start_gateway(0, 1, narrow());
  TestClient first(port());
  occupy(first);
  std::vector<std::unique_ptr<TestClient>> others;
  for (int i = 0; i < 5; ++i) {
    others.push_back(std::make_unique<TestClient>(port()));
    ASSERT_TRUE(others.back()->send_request("POST", "/v1/completions", kStreamed));
    ASSERT_TRUE(wait_until_waiting(i + 1));
  }
  EXPECT_EQ(decode[0]->completions().size(), 1U);
  EXPECT_EQ(queue().at("running").to_number<int>(), 1);
  const std::string metrics = TestClient(port()).get("/metrics").body;
  for (const char* line : {"moonpool_gateway_queue_requests 5\n", "moonpool_gateway_running_requests 1\n", "queue_bytes 290\n",
                           "key_requests_total{key=\"-\",outcome=\"started\"} 1\n", "shed_total{cause=\"queue_full\"} 0\n"}) {
    EXPECT_NE(metrics.find(line), std::string::npos) << line << metrics;
  }
  decode[0]->release_tokens(1000);
  read_to_the_end(first);
  for (const auto& one : others) read_to_the_end(*one);
  EXPECT_EQ(decode[0]->completions().size(), 6U);
  ASSERT_TRUE(test::wait_until([&] { return queue().at("running").to_number<int>() == 0; }, soon()));
  EXPECT_EQ(queue().at("waits").at("count").to_number<int>(), 6);
}

TEST_F(AdmissionTest, AClientThatGoesAwayLeavesTheQueueAtOnce) {
  start_gateway(0, 1, narrow());
  TestClient first(port());
  occupy(first);
  TestClient leaving(port());
  ASSERT_TRUE(leaving.send_request("POST", "/v1/completions", kPlain));
  ASSERT_TRUE(wait_until_waiting(1));
  TestClient staying(port());
  ASSERT_TRUE(staying.send_request("POST", "/v1/completions", kPlain));
  ASSERT_TRUE(wait_until_waiting(2));
  leaving.close();
  ASSERT_TRUE(wait_until_waiting(1));
  ASSERT_TRUE(test::wait_until([&] { return counter("client_gone") == 1; }, soon()));
  decode[0]->release_tokens(1000);
  read_to_the_end(first);
  EXPECT_EQ(staying.read_answer().status, 200U);
  EXPECT_EQ(decode[0]->completions().size(), 2U);
}

TEST_F(AdmissionTest, AFullQueueRefuses) {
  Settings settings = narrow(with_keys());
  settings.overload.queue_requests = 2;
  start_gateway(0, 1, settings);
  TestClient first(port());
  occupy(first, kAlice);
  TestClient second(port());
  TestClient third(port());
  ASSERT_TRUE(second.send_request("POST", "/v1/completions", kPlain, kAlice));
  ASSERT_TRUE(wait_until_waiting(1));
  ASSERT_TRUE(third.send_request("POST", "/v1/completions", kPlain, kAlice));
  ASSERT_TRUE(wait_until_waiting(2));
  const auto refused = complete(kPlain, kAlice);
  EXPECT_EQ(refused.status, 429U);
  EXPECT_EQ(code_of(refused), "over_share");
  EXPECT_GE(std::stoi(refused.fields.at("retry-after")), 1);
  // Another key has its share: the newest of the first makes room.
  TestClient other(port());
  ASSERT_TRUE(other.send_request("POST", "/v1/completions", kPlain, kBob));
  const auto displaced = third.read_answer();
  EXPECT_EQ(displaced.status, 429U);
  EXPECT_EQ(code_of(displaced), "over_share");
  // Of a lower priority than all that wait, and its key has nothing waiting: the gateway's trouble, not the key's.
  const auto low = complete(R"({"prompt":"Tell","max_tokens":4,"priority":7})", kBob);
  EXPECT_EQ(low.status, 503U);
  EXPECT_EQ(code_of(low), "queue_full");
  EXPECT_TRUE(low.fields.contains("retry-after"));
  decode[0]->release_tokens(1000);
  read_to_the_end(first);
  EXPECT_EQ(second.read_answer().status, 200U);
  EXPECT_EQ(other.read_answer().status, 200U);
  EXPECT_EQ(shed("over_share"), 2);
  EXPECT_EQ(shed("queue_full"), 1);
}

TEST_F(AdmissionTest, AHigherPriorityTakesThePlaceOfALowerOne) {
  Settings settings = narrow();
  ApiKey urgent = key_of("urgent", "secret-of-alice");
  urgent.priority = -1;
  ASSERT_TRUE(settings.keys.add(urgent).ok());
  ASSERT_TRUE(settings.keys.add(key_of("bob", "secret-of-bob")).ok());
  settings.overload.queue_requests = 1;
  start_gateway(0, 1, settings);
  TestClient first(port());
  occupy(first, kBob);
  TestClient low(port());
  ASSERT_TRUE(low.send_request("POST", "/v1/completions", kPlain, kBob));
  ASSERT_TRUE(wait_until_waiting(1));
  TestClient high(port());
  ASSERT_TRUE(high.send_request("POST", "/v1/completions", kPlain, kAlice));
  const auto displaced = low.read_answer();
  EXPECT_EQ(displaced.status, 503U);
  EXPECT_EQ(code_of(displaced), "displaced");
  EXPECT_TRUE(displaced.fields.contains("retry-after"));
  // A request cannot lift itself above its key.
  EXPECT_EQ(complete(R"({"prompt":"Tell","priority":-100})", kBob).status, 503U);
  decode[0]->release_tokens(1000);
  read_to_the_end(first);
  EXPECT_EQ(high.read_answer().status, 200U);
}

TEST_F(AdmissionTest, DeadlinesEndTheWait) {
  Settings settings = narrow();
  settings.overload.queue_timeout = std::chrono::milliseconds(100);
  start_gateway(0, 1, settings);
  TestClient first(port());
  occupy(first);
  const auto waited = complete(kPlain);
  EXPECT_EQ(waited.status, 503U);
  EXPECT_EQ(code_of(waited), "queue_timeout");
  const auto begun = std::chrono::steady_clock::now();
  EXPECT_EQ(complete(kPlain, "X-Request-Timeout-Ms: 1\r\n").status, 503U);
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(10));
  EXPECT_EQ(complete(kPlain, "X-Request-Timeout-Ms: soon\r\n").status, 400U);
  EXPECT_EQ(decode[0]->completions().size(), 1U);
  decode[0]->release_tokens(1000);
  read_to_the_end(first);
}

TEST_F(AdmissionTest, TheClientsDeadlineBoundsItsAnswerToo) {
  start_gateway(0, 1);
  Behaviour silent;
  silent.fault = Fault::kStallBeforeHead;
  decode[0]->set(silent);
  const auto answer = complete(kPlain, "X-Request-Timeout-Ms: 100\r\n");
  EXPECT_EQ(answer.status, 504U);
  EXPECT_NE(message_of(answer).find("X-Request-Timeout-Ms"), std::string::npos) << answer.body;
  EXPECT_EQ(instance_status(decode[0]->name()).at("errors").to_number<int>(), 0) << "no instance is blamed for it";
}

TEST_F(AdmissionTest, PlacesGrowWithTheInstances) {
  Settings settings = test_settings();
  settings.overload.per_instance = 2;
  start_gateway(0, 2, settings);
  ASSERT_TRUE(test::wait_until([&] { return queue().at("running_at_most").to_number<int>() == 4; }, soon()));
  EXPECT_EQ(TestClient(port()).post("/instances/remove", R"({"instance": ")" + decode[1]->name() + "\"}", kAdministrator).status, 200U);
  ASSERT_TRUE(test::wait_until([&] { return queue().at("running_at_most").to_number<int>() == 2; }, soon()));
  EXPECT_EQ(complete(kPlain).status, 200U);
}

TEST_F(AdmissionTest, AReloadRevokesKeysAndChangesLimits) {
  start_gateway(0, 1, with_keys());
  EXPECT_EQ(complete(kPlain, kAlice).status, 200U);
  Settings next = test_settings();
  next.decode = {InstanceName::parse(decode[0]->name()).value()};
  ASSERT_TRUE(next.keys.add(key_of("bob", "secret-of-bob")).ok());
  next.overload.concurrent = 3;
  gateway->reload(next);
  ASSERT_TRUE(test::wait_until([&] { return complete(kPlain, kAlice).status == 401U; }, soon()));
  EXPECT_EQ(complete(kPlain, kBob).status, 200U);
  EXPECT_EQ(queue().at("running_at_most").to_number<int>(), 3);
}

TEST_F(AdmissionTest, AGatewayThatStopsWhileRequestsWaitStops) {
  Settings settings = narrow();
  settings.timeouts.drain = std::chrono::milliseconds(50);
  start_gateway(0, 1, settings);
  TestClient first(port());
  occupy(first);
  std::vector<std::unique_ptr<TestClient>> others;
  for (int i = 0; i < 8; ++i) {
    others.push_back(std::make_unique<TestClient>(port()));
    ASSERT_TRUE(others.back()->send_request("POST", "/v1/completions", kPlain));
  }
  ASSERT_TRUE(wait_until_waiting(8));
  EXPECT_FALSE(gateway->stop());
  for (const auto& one : others) {
    const auto told = one->read_answer();
    EXPECT_EQ(told.status, 503U);
    EXPECT_EQ(told.fields.at("retry-after"), "1");
  }
  gateway.reset();
}

// Many clients, few places, some that leave: nobody is forgotten.
TEST_F(AdmissionTest, ManyClientsOverTwoThreadsAllGetAnAnswer) {
  Settings settings = test_settings();
  settings.overload.concurrent = 3;
  settings.overload.queue_requests = 10;
  settings.overload.queue_timeout = std::chrono::seconds(20);
  start_gateway(1, 2, settings);
  std::atomic<int> answered{0};
  std::atomic<int> refused{0};
  std::atomic<int> left{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 16; ++i) {
    clients.emplace_back([&, i] {
      for (int k = 0; k < 25; ++k) {
        TestClient client(port());
        if (i % 4 == 0 && k % 3 == 0) {
          static_cast<void>(client.send_request("POST", "/v1/completions", kPlain));
          client.close();
          ++left;
          continue;
        }
        const auto answer = client.post("/v1/completions", kPlain);
        ++(answer.status == 200 ? answered : refused);
        EXPECT_TRUE(answer.status == 200 || answer.status == 503) << answer.status << answer.body;
      }
    });
  }
  for (auto& one : clients) one.join();
  EXPECT_EQ(answered + refused + left, 16 * 25);
  EXPECT_GT(answered, 0);
  ASSERT_TRUE(test::wait_until([&] { return queue().at("running").to_number<int>() == 0 && waiting() == 0; }, soon()));
}

// The process: keys in a file of their own, revoked while it runs, and never in the log.
TEST(KeysFileTest, IsReadAgainAndNoKeyIsEverLogged) {
  const test::TempDir folder;
  UpstreamSimulator upstream;
  const std::string keys_file = folder.file("keys.json");
  const auto write = [&](const std::string& text) {
    std::ofstream(keys_file + ".new") << text;
    std::filesystem::rename(keys_file + ".new", keys_file);
  };
  const auto entry = [](const std::string& name, std::string_view secret, const std::string& role) {
    return R"({"name": ")" + name + R"(", "sha256": ")" + hex_of(digest_of(secret)) + R"(", "role": ")" + role + "\"}";
  };
  const std::string alice = entry("alice", "secret-of-alice", "client");
  const std::string bob = entry("bob", "secret-of-bob", "client");
  const std::string root = entry("root", "secret-of-root", "admin");
  write("{\"keys\": [" + alice + "," + bob + "," + root + "]}");
  const std::string config = folder.file("gateway.json");
  std::ofstream(config) << R"({"model": "m", "groups": {"decode": {"instances": [")" + upstream.name() +
                               "\"]}}, \"keys_file\": \"keys.json\"}";
  const auto port = test::free_port();
  test::ChildOptions options;
  options.argv = {MOONPOOL_GATEWAY_PROGRAM, "--config", config, "--port", std::to_string(port), "--log-level", "trace"};
  options.environment = {{"ADMIN_API_KEY", "secret-of-environment"}, {"MOONPOOL_GATEWAY_UPSTREAM_API_KEY", "secret-of-vllm"}};
  options.log_file = folder.file("log");
  auto process = test::ChildProcess::start(options);
  ASSERT_TRUE(process.ok()) << process.status().message();
  ASSERT_TRUE(test::wait_until([&] { return test::accepts_connections("127.0.0.1", port); }, soon()));
  const auto status_with = [&](std::string_view fields) { return TestClient(port).post("/v1/completions", kPlain, fields).status; };
  EXPECT_EQ(status_with(kAlice), 200U);
  EXPECT_EQ(status_with("Authorization: Bearer secret-of-nobody\r\n"), 401U);
  EXPECT_EQ(upstream.completions().back().fields.at("authorization"), "Bearer secret-of-vllm");
  const std::string removal = R"({"instance": "127.0.0.1:1"})";
  for (const char* secret : {"secret-of-root", "secret-of-environment"}) {
    EXPECT_EQ(TestClient(port).post("/instances/remove", removal, "X-API-Key: " + std::string(secret) + "\r\n").status, 404U);
  }
  write("{\"keys\": [" + bob + "," + root + "]}");
  EXPECT_TRUE(test::wait_until([&] { return status_with(kAlice) == 401U; }, soon())) << process->output();
  EXPECT_EQ(status_with(kBob), 200U);
  write("{\"keys\": [{\"name\": \"secret-of-file\"}]}");
  EXPECT_TRUE(test::wait_until([&] { return process->output().find("the configuration stays as it was") != std::string::npos; }, soon()));
  EXPECT_EQ(status_with(kBob), 200U);
  process->signal(SIGTERM);
  EXPECT_EQ(process->wait(soon()), 0);
  const std::string log = process->output();
  EXPECT_NE(log.find(" by=root action=remove"), std::string::npos) << log;
  EXPECT_NE(log.find(" by=ADMIN_API_KEY action=remove"), std::string::npos) << log;
  EXPECT_NE(log.find(" key=alice "), std::string::npos) << log;
  EXPECT_EQ(log.find("secret-of"), std::string::npos) << log;
}

}  // namespace
}  // namespace moonpool::gateway::testing
