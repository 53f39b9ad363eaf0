// Administration of a running gateway, what it shows of its instances, and the requests that it only passes on.
#include <gtest/gtest.h>

#include <thread>

#include "gateway/models.h"
#include "gateway/testing/gateway_fixture.h"

namespace moonpool::gateway::testing {
namespace {

constexpr std::string_view kKey = "X-API-Key: top-secret-key\r\n";

boost::json::value parsed(const std::string& text) {
  boost::system::error_code error;
  auto document = boost::json::parse(text, error);
  EXPECT_FALSE(error) << text;
  return document;
}

class AdminTest : public GatewayTest {
 protected:
  ClientAnswer command(const std::string& action, const std::string& body, std::string_view fields = kKey) const {
    return TestClient(port()).post("/instances/" + action, body, fields);
  }
  static std::string naming(const UpstreamSimulator& one, const std::string& more = {}) {
    return R"({"instance": ")" + one.name() + "\"" + more + "}";
  }
  [[nodiscard]] std::string state_of(const UpstreamSimulator& one) const {
    const auto found = instance_status(one.name());
    return found.is_object() ? std::string(found.at("state").as_string()) : "gone";
  }
  [[nodiscard]] std::size_t instances() const {
    return parsed(TestClient(port()).get("/instances").body).at("instances").as_array().size();
  }
  // A streamed request that decode[0] works on until its tokens are released. The group's first turn is its first instance's.
  void keep_busy(const TestClient& client) {
    decode[0]->hold_tokens();
    ASSERT_TRUE(client.send_request("POST", "/v1/completions", kStreamed));
    ASSERT_TRUE(test::wait_until([&] { return decode[0]->completions().size() == 1; }, soon()));
  }
  void expect_whole_stream(TestClient& client) {
    decode[0]->release_tokens(4);
    ASSERT_EQ(client.read_head().status, 200U);
    std::string text;
    while (auto chunk = client.read_chunk()) text += *chunk;
    EXPECT_FALSE(client.ended_badly());
    EXPECT_TRUE(text.ends_with("data: [DONE]\n\n")) << text;
  }
};

TEST_F(AdminTest, RemovalDrainsFirst) {
  start_gateway(0, 2);
  TestClient busy(port());
  keep_busy(busy);
  ClientAnswer removed;
  std::thread remover([&] { removed = command("remove", naming(*decode[0])); });
  EXPECT_TRUE(test::wait_until([&] { return state_of(*decode[0]) == "draining"; }, soon()));
  for (int i = 0; i < 6; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(decode[0]->completions().size(), 1U);
  EXPECT_EQ(decode[1]->completions().size(), 6U);
  expect_whole_stream(busy);
  remover.join();
  EXPECT_EQ(removed.status, 200U) << removed.body;
  EXPECT_TRUE(parsed(removed.body).at("drained").as_bool());
  EXPECT_EQ(state_of(*decode[0]), "gone");
  EXPECT_EQ(instances(), 1U);
}

TEST_F(AdminTest, RemovalHasADeadlineAndCutsNothing) {
  start_gateway(0, 2);
  TestClient busy(port());
  keep_busy(busy);
  const auto removed = command("remove", naming(*decode[0], R"(, "type": "decode", "deadline_s": 0.05)"));
  EXPECT_EQ(removed.status, 200U) << removed.body;
  EXPECT_FALSE(parsed(removed.body).at("drained").as_bool());
  EXPECT_EQ(parsed(removed.body).at("still_running").to_number<int>(), 1);
  EXPECT_EQ(instances(), 1U);
  expect_whole_stream(busy);
}

TEST_F(AdminTest, RemovalGoesOnWithoutTheOneWhoAsked) {
  start_gateway(0, 2);
  TestClient busy(port());
  keep_busy(busy);
  {
    TestClient impatient(port());
    ASSERT_TRUE(impatient.send_request("POST", "/instances/remove", naming(*decode[0]), kKey));
    ASSERT_TRUE(test::wait_until([&] { return state_of(*decode[0]) == "draining"; }, soon()));
  }
  expect_whole_stream(busy);
  EXPECT_TRUE(test::wait_until([&] { return instances() == 1; }, soon()));
}

TEST_F(AdminTest, RemovalAtOnceAndBackAgain) {
  start_gateway(0, 2);
  TestClient busy(port());
  keep_busy(busy);
  EXPECT_EQ(command("remove", naming(*decode[0], R"(, "drain": false)")).status, 200U);
  EXPECT_EQ(state_of(*decode[0]), "gone");
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(command("add", naming(*decode[0], R"(, "type": "decode", "slow_start_s": 0)")).status, 200U);
  EXPECT_EQ(state_of(*decode[0]), "healthy");
  expect_whole_stream(busy);
}

TEST_F(AdminTest, AddingCallsADrainingOff) {
  start_gateway(0, 2);
  TestClient busy(port());
  keep_busy(busy);
  ClientAnswer removed;
  std::thread remover([&] { removed = command("remove", naming(*decode[0])); });
  EXPECT_TRUE(test::wait_until([&] { return state_of(*decode[0]) == "draining"; }, soon()));
  const auto added = command("add", naming(*decode[0], R"(, "type": "decode")"));
  EXPECT_NE(added.body.find("called off"), std::string::npos) << added.body;
  remover.join();
  EXPECT_EQ(removed.status, 409U) << removed.body;
  EXPECT_EQ(instances(), 2U);
  expect_whole_stream(busy);
}

TEST_F(AdminTest, RemovalOfTheLastOneLeavesAClearError) {
  start_gateway(0, 1);
  EXPECT_EQ(command("remove", naming(*decode[0])).status, 200U);
  EXPECT_EQ(complete(kPlain).status, 503U);
  EXPECT_EQ(TestClient(port()).get("/ready").status, 503U);
}

TEST_F(AdminTest, CommandsThatCannotBeFollowedSayWhy) {
  start_gateway(1, 1);
  EXPECT_EQ(command("remove", naming(*decode[0]), "").status, 401U);
  EXPECT_EQ(command("role", naming(*decode[0], R"(, "type": "prefill")"), "X-API-Key: guess\r\n").status, 403U);
  EXPECT_EQ(command("remove", R"({"instance": "elsewhere:1"})").status, 404U);
  EXPECT_EQ(command("role", R"({"instance": "elsewhere:1", "type": "decode"})").status, 404U);
  EXPECT_EQ(command("remove", naming(*decode[0], R"(, "type": "prefill")")).status, 404U);
  for (const char* more :
       {R"(, "type": "both")", R"(, "type": 1)", R"(, "drain": "no")", R"(, "deadline_s": -1)", R"(, "deadline_s": "1")"}) {
    const auto refused = command("remove", naming(*decode[0], more));
    EXPECT_EQ(refused.status, 400U) << more;
    EXPECT_NE(message_of(refused).find("Send {"), std::string::npos) << refused.body;
  }
  EXPECT_EQ(command("role", naming(*decode[0])).status, 400U);
  EXPECT_EQ(command("add", naming(*decode[0], R"(, "type": "prefill", "slow_start_s": 1e9)")).status, 400U);
  EXPECT_EQ(command("add", naming(*decode[0], R"(, "type": "prefill")")).status, 200U);  // in both groups now
  const auto ambiguous = command("remove", naming(*decode[0]));
  EXPECT_EQ(ambiguous.status, 400U);
  EXPECT_NE(message_of(ambiguous).find("both groups"), std::string::npos);
  EXPECT_EQ(instances(), 3U);
}

TEST_F(AdminTest, ARoleChangesWhileRequestsRun) {
  start_gateway(1, 2);
  EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(prefill[0]->completions().size(), 1U);
  decode[1]->hold_tokens();
  TestClient busy(port());
  ASSERT_TRUE(busy.send_request("POST", "/v1/completions", kStreamed));
  ASSERT_TRUE(test::wait_until([&] { return decode[1]->completions().size() == 1; }, soon()));
  const auto moved = command("role", naming(*decode[1], R"(, "type": "prefill", "slow_start_s": 0)"));
  EXPECT_EQ(moved.status, 200U) << moved.body;
  EXPECT_EQ(parsed(moved.body).at("still_running").to_number<int>(), 1);
  EXPECT_EQ(status().at("prefill_node_count").to_number<int>(), 2);
  EXPECT_EQ(status().at("decode_node_count").to_number<int>(), 1);
  EXPECT_NE(command("role", naming(*decode[1], R"(, "type": "prefill")")).body.find("already"), std::string::npos);
  decode[1]->release_tokens(4);
  ASSERT_EQ(busy.read_head().status, 200U);
  while (busy.read_chunk()) {
  }
  EXPECT_FALSE(busy.ended_badly());
  decode[1]->release_tokens(100);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(decode[1]->completions().size(), 3U);  // one as decode, two as prefill
}

TEST_F(AdminTest, NewInstancesStartSlowly) {
  Settings settings = test_settings();
  settings.health.slow_start = std::chrono::hours(1);
  start_gateway(0, 1, settings);
  UpstreamSimulator extra;
  EXPECT_EQ(command("add", naming(extra, R"(, "type": "decode")")).status, 200U);
  EXPECT_EQ(state_of(extra), "slow-start");
  EXPECT_NEAR(instance_status(extra.name()).at("weight").to_number<double>(), 0.1, 0.01);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(complete(kPlain).status, 200U);
  EXPECT_EQ(extra.completions().size(), 2U) << "an idle one has its turn";
}

TEST_F(AdminTest, StatusIsForMachinesAndForPeople) {
  start_gateway(1, 1);
  EXPECT_EQ(complete(kPlain).status, 200U);
  TestClient client(port());
  const auto machine = client.get("/status?format=json", "Accept: text/html\r\n");
  EXPECT_EQ(machine.fields.at("content-type"), "application/json");
  EXPECT_EQ(parsed(machine.body).at("decode_policy").as_string(), "round_robin");
  const auto text = client.get("/status?x=1&format=text");
  EXPECT_EQ(text.fields.at("content-type"), "text/plain; charset=utf-8");
  EXPECT_NE(text.body.find("decode   " + decode[0]->name() + "  healthy"), std::string::npos) << text.body;
  const auto page = client.get("/status", "Accept: text/html,application/xhtml+xml\r\n");
  EXPECT_EQ(page.fields.at("content-type"), "text/html; charset=utf-8");
  EXPECT_NE(page.body.find("<td>" + prefill[0]->name() + "</td>"), std::string::npos) << page.body;
}

TEST_F(AdminTest, ErrorsAreCountedByCause) {
  Settings settings = test_settings();
  settings.timeouts.first_byte = std::chrono::milliseconds(100);
  settings.attempts = 1;
  start_gateway(0, 1, settings);
  const std::vector<std::pair<Fault, const char*>> cases{{Fault::kStatus, "server_error"},
                                                         {Fault::kCloseBeforeHead, "unreachable"},
                                                         {Fault::kGarbage, "protocol"},
                                                         {Fault::kStallBeforeHead, "timeout"}};
  for (const auto& [fault, cause] : cases) {
    Behaviour broken;
    broken.fault = fault;
    decode[0]->set(broken);
    EXPECT_GE(complete(kPlain).status, 500U);
    EXPECT_EQ(instance_status(decode[0]->name()).at("errors_by_cause").at(cause).to_number<int>(), 1) << cause;
  }
}

TEST_F(AdminTest, OtherRequestsArePassedOnToDecode) {
  start_gateway(1, 1);
  TestClient client(port());
  for (const char* path : {"/v1/responses", "/v1/embeddings", "/v1/rerank", "/v1/score", "/v2/rerank", "/rerank", "/score", "/tokenize",
                           "/detokenize", "/v1/something/new?x=1"}) {
    EXPECT_EQ(client.post(path, R"({"input":"a"})").status, 200U) << path;
    EXPECT_EQ(decode[0]->all().back().target, path);
    EXPECT_EQ(decode[0]->all().back().body, R"({"input":"a"})");
  }
  EXPECT_EQ(client.get("/v1/responses/resp_1").status, 200U);
  EXPECT_EQ(client.request("DELETE", "/v1/files/1").status, 200U);
  EXPECT_EQ(decode[0]->all().back().method, "DELETE");
  EXPECT_EQ(client.request("PUT", "/v1/files/1", "x").status, 405U);
  EXPECT_EQ(client.get("/tokenize").status, 405U);
  EXPECT_TRUE(prefill[0]->completions().empty());
}

TEST_F(AdminTest, ModelsAreMergedOverInstances) {
  start_gateway(1, 3);
  const auto seen = [&] { return decode[0]->all().size() + decode[1]->all().size() + decode[2]->all().size(); };
  const auto before = seen();
  const auto answer = TestClient(port()).get("/v1/models", "Authorization: Bearer t\r\n");
  EXPECT_EQ(answer.status, 200U);
  EXPECT_EQ(answer.body, R"({"object":"list","data":[{"id":"m","object":"model"}]})");
  EXPECT_EQ(seen(), before + 3);
  EXPECT_EQ(decode[2]->all().back().fields.at("authorization"), "Bearer t");
  for (const auto& one : decode) one->stop();
  EXPECT_EQ(TestClient(port()).get("/v1/models").status, 502U);
}

TEST(MergeModelListsTest, KeepsTheFirstOfEachIdAndPassesOverTheRest) {
  EXPECT_EQ(merge_model_lists({R"({"data":[{"id":"a","x":1},{"id":"b"}]})", "nonsense", R"({"data":5})", "[]",
                               R"({"object":"list","data":[{"id":"b","x":2},{"no":"id"},7,{"id":"c"}]})"}),
            R"({"object":"list","data":[{"id":"a","x":1},{"id":"b"},{"id":"c"}]})");
}

}  // namespace
}  // namespace moonpool::gateway::testing
