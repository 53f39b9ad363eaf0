// Groups that follow a configuration file, names and etcd while the gateway runs.
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "gateway/etcd_instances.h"
#include "gateway/testing/gateway_fixture.h"
#include "net/http_server.h"

namespace moonpool::gateway::testing {
namespace {

class MembershipTest : public GatewayTest {
 protected:
  static InstanceName name_of(const UpstreamSimulator& one) { return InstanceName::parse(one.name()).value(); }
  [[nodiscard]] bool has(const std::string& name) const { return instance_status(name).is_object(); }
  void start(Settings settings) {
    auto started = Gateway::start(std::move(settings));
    ASSERT_TRUE(started.ok()) << started.status().message();
    gateway = std::move(started).value();
  }
};

TEST_F(MembershipTest, ReloadAddsWhatIsNewAndDrainsWhatIsGone) {
  start_gateway(0, 2);
  decode[0]->hold_tokens();
  TestClient busy(port());
  ASSERT_TRUE(busy.send_request("POST", "/v1/completions", kStreamed));
  ASSERT_TRUE(test::wait_until([&] { return decode[0]->completions().size() == 1; }, soon()));
  UpstreamSimulator extra;
  Settings next = test_settings();
  next.decode = {name_of(*decode[1]), name_of(extra)};
  next.decode_policy = "power_of_two";
  gateway->reload(next);
  ASSERT_TRUE(test::wait_until([&] { return has(extra.name()); }, soon()));
  EXPECT_EQ(status().at("decode_policy").as_string(), "power_of_two");
  EXPECT_EQ(status().at("prefill_policy").as_string(), "round_robin");
  EXPECT_EQ(instance_status(decode[0]->name()).at("state").as_string(), "draining");
  decode[0]->release_tokens(4);
  ASSERT_EQ(busy.read_head().status, 200U);
  while (busy.read_chunk()) {
  }
  EXPECT_FALSE(busy.ended_badly());
  EXPECT_TRUE(test::wait_until([&] { return !has(decode[0]->name()); }, soon()));
  EXPECT_EQ(complete(kPlain).status, 200U);
}

TEST_F(MembershipTest, AnAdministratorsInstancesAreNotTheFiles) {
  start_gateway(0, 2);
  UpstreamSimulator added;
  constexpr std::string_view kKey = "X-API-Key: top-secret-key\r\n";
  TestClient client(port());
  EXPECT_EQ(client.post("/instances/add", R"({"type":"decode","instance":")" + added.name() + "\"}", kKey).status, 200U);
  EXPECT_EQ(client.post("/instances/remove", R"({"instance":")" + decode[0]->name() + "\"}", kKey).status, 200U);
  UpstreamSimulator extra;
  Settings next = test_settings();
  next.decode = {name_of(*decode[0]), name_of(*decode[1]), name_of(extra)};
  gateway->reload(next);
  ASSERT_TRUE(test::wait_until([&] { return has(extra.name()); }, soon()));
  EXPECT_TRUE(has(added.name()));
  EXPECT_FALSE(has(decode[0]->name()));  // removed by hand: stays away while its listing does not change
}

TEST_F(MembershipTest, FollowsTheAddressesOfAName) {
  UpstreamSimulator four;
  Settings settings = test_settings();
  settings.decode_discovery.dns = {
      {InstanceName::parse("localhost:" + std::to_string(four.port())).value(), std::chrono::milliseconds(20)}};
  settings.prefill_discovery.dns = {{InstanceName::parse("no-such-host.invalid:1").value(), std::chrono::milliseconds(20)}};
  start(settings);
  EXPECT_TRUE(test::wait_until([&] { return has(four.name()); }, soon()));
  EXPECT_TRUE(test::wait_until([&] { return complete(kPlain).status == 200U; }, soon()));
  EXPECT_EQ(status().at("prefill_node_count").to_number<int>(), 0);
}

TEST_F(MembershipTest, FollowsEtcdAndKeepsWhatItKnowsWhileEtcdIsAway) {
  UpstreamSimulator one;
  UpstreamSimulator two;
  std::mutex mutex;
  std::string answer = R"({"header":{}})";
  int status_code = 200;
  std::string asked;
  auto etcd = net::HttpServer::start({}, [&](const net::HttpRequest& request) {
    const std::lock_guard lock(mutex);
    asked = request.method + " " + request.path + " " + request.body;
    return net::HttpResponse{status_code, "application/json", answer, {}};
  });
  ASSERT_TRUE(etcd.ok());
  const auto base64 = [](const std::string& text) {
    // As a request's key is written.
    const std::string request = etcd_range_request(text);
    return request.substr(8, request.find('"', 8) - 8);
  };
  const auto list = [&](const std::vector<std::string>& names, int code = 200) {
    std::string pairs;
    for (const auto& name : names) pairs += (pairs.empty() ? "" : ",") + (R"({"key":")" + base64("/d/" + name) + R"("})");
    const std::lock_guard lock(mutex);
    answer = R"({"header":{},"kvs":[)" + pairs + "]}";
    status_code = code;
    asked.clear();
  };
  list({one.name()});
  Settings settings = test_settings();
  settings.decode_discovery.etcd = {
      {InstanceName::parse("127.0.0.1:" + std::to_string(etcd.value()->port())).value(), "/d/", std::chrono::milliseconds(10)}};
  start(settings);
  EXPECT_TRUE(test::wait_until([&] { return has(one.name()); }, soon()));
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(asked, R"(POST /v3/kv/range {"key":"L2Qv","range_end":"L2Qw"})");
  }
  list({one.name(), two.name()});
  EXPECT_TRUE(test::wait_until([&] { return has(two.name()); }, soon()));
  list({}, 500);
  EXPECT_TRUE(test::wait_until(
      [&] {
        const std::lock_guard lock(mutex);
        return !asked.empty();
      },
      soon()));
  EXPECT_TRUE(has(one.name()) && has(two.name()));
  list({two.name()});
  EXPECT_TRUE(test::wait_until([&] { return !has(one.name()); }, soon()));
  EXPECT_TRUE(has(two.name()));
  EXPECT_EQ(complete(kPlain).status, 200U);
}

// The process: a file that changes, a file that is wrong, SIGHUP.
TEST(ConfigReloadTest, FollowsItsFileAndKeepsTheOldStateWhenItIsWrong) {
  const test::TempDir folder;
  UpstreamSimulator one;
  UpstreamSimulator two;
  const std::string file = folder.file("gateway.json");
  const auto write = [&](const std::string& text) {
    // Replaced as a whole, as a careful writer does: a half-written file is never seen.
    std::ofstream(file + ".new") << text;
    std::filesystem::rename(file + ".new", file);
  };
  const auto with = [](const std::string& name) { return R"({"model": "m", "groups": {"decode": {"instances": [")" + name + "\"]}}}"; };
  write(with(one.name()));
  const auto port = test::free_port();
  test::ChildOptions options;
  options.argv = {MOONPOOL_GATEWAY_PROGRAM, "--config", file, "--port", std::to_string(port)};
  options.log_file = folder.file("log");
  auto process = test::ChildProcess::start(options);
  ASSERT_TRUE(process.ok()) << process.status().message();
  ASSERT_TRUE(test::wait_until([&] { return test::accepts_connections("127.0.0.1", port); }, soon()));
  const auto shows = [&](const UpstreamSimulator& simulator) {
    return TestClient(port).get("/instances").body.find("\"" + simulator.name() + "\"") != std::string::npos;
  };
  const auto logged = [&](const std::string& text) { return process->output().find(text) != std::string::npos; };
  EXPECT_TRUE(shows(one));

  write("{\n\"groups\": {\"decode\": {\"instancs\": []}}}");
  EXPECT_TRUE(test::wait_until([&] { return logged("the configuration stays as it was"); }, soon()));
  EXPECT_TRUE(logged("gateway.json, line 2, groups.decode.instancs")) << process->output();
  EXPECT_TRUE(shows(one));
  write(with(two.name()));
  EXPECT_TRUE(test::wait_until([&] { return shows(two) && !shows(one); }, soon())) << process->output();
  EXPECT_EQ(TestClient(port).post("/v1/completions", kPlain).status, 200U);
  process->signal(SIGHUP);
  EXPECT_TRUE(test::wait_until([&] { return logged("SIGHUP: reading the configuration again"); }, soon()));
  EXPECT_EQ(TestClient(port).post("/v1/completions", kPlain).status, 200U);
  process->signal(SIGTERM);
  EXPECT_EQ(process->wait(soon()), 0);
}

}  // namespace
}  // namespace moonpool::gateway::testing
