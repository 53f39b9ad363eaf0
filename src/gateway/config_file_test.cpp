// The configuration file, and what etcd answers: what is understood, and what an error names.
#include "gateway/config_file.h"

#include <gtest/gtest.h>

#include "gateway/etcd_instances.h"

namespace moonpool::gateway {
namespace {

constexpr std::string_view kWhole = R"({
  "model": "m",
  "policy": "least_load",
  "groups": {
    "prefill": {
      "policy": "prefix_aware",
      "kv_events": {"port": 5557, "replay_port": 5558, "topic": "kv"},
      "instances": ["a:1", "B:2", "b:2"],
      "dns": [{"name": "prefill.svc:8100", "interval_s": 5}, {"srv": "_v._tcp.a", "server": "10.0.0.2:8600"}],
      "kubernetes": {"service": "prefill", "port": 8100, "server": "http://127.0.0.1:8001"}
    },
    "decode": {
      "instances": ["c:3"],
      "etcd": [{"server": "etcd:2379", "prefix": "/decode/", "interval_s": 0.5}, {"server": "etcd2:2379", "prefix": "/more/"}]
    }
  },
  "kv_transfer": "mooncake",
  "mooncake_bootstrap": [9000, "a:1=9001"],
  "decode_first_below_bytes": 2048,
  "policy_options": {"affinity_header": "X-Tenant", "prefix_index_bytes": 4096, "pool_transfer_cost": 0.25},
  "timeouts": {"connect_s": 0.25, "drain_s": 60},
  "limits": {"body_bytes": 1000, "attempts": 5},
  "health": {"unhealthy_after": 7, "slow_start_s": 0, "check_interval_s": 0, "open_time_s": 2},
  "retries": {"budget_share": 0.5, "longest_pause_s": 1},
  "continue_streams": "always",
  "continue_marker": "off",
  "log": {"level": "debug", "access": true},
  "traces": {"sample": true, "otlp_endpoint": "http://c:4318", "service_name": "s"},
  "listen": {"port": 9000, "threads": 3}
})";

TEST(ConfigFileTest, SaysAllOfIt) {
  const auto settings = apply_config(kWhole, "f", Settings());
  ASSERT_TRUE(settings.ok()) << settings.status().message();
  EXPECT_EQ(settings->model, "m");
  EXPECT_EQ(settings->policy_of("prefill"), "prefix_aware");
  EXPECT_EQ(settings->policy_of("decode"), "least_load");
  ASSERT_EQ(settings->prefill.size(), 2U);
  EXPECT_EQ(settings->prefill[1].to_string(), "b:2");
  ASSERT_EQ(settings->decode.size(), 1U);
  ASSERT_EQ(settings->prefill_discovery.dns.size(), 1U);
  EXPECT_EQ(settings->prefill_discovery.dns[0].name.to_string(), "prefill.svc:8100");
  EXPECT_EQ(settings->prefill_discovery.dns[0].interval, std::chrono::seconds(5));
  ASSERT_EQ(settings->decode_discovery.etcd.size(), 2U);
  EXPECT_EQ(settings->decode_discovery.etcd[0].interval, std::chrono::milliseconds(500));
  EXPECT_EQ(settings->decode_discovery.etcd[1].prefix, "/more/");
  EXPECT_EQ(settings->kv_transfer, (KvTransferSettings{KvTransfer::kMooncake, 9000, {{"a:1", 9001}}}));
  EXPECT_EQ(settings->decode_first_below, 2048U);
  EXPECT_EQ(settings->policy_options, (PolicyOptions{"X-Tenant", 4096, 0.25}));
  EXPECT_EQ(settings->timeouts.connect, std::chrono::milliseconds(250));
  EXPECT_EQ(settings->timeouts.prefill, Timeouts().prefill);
  EXPECT_EQ(settings->limits.body_bytes, 1000U);
  EXPECT_EQ(settings->attempts, 5U);
  EXPECT_EQ(settings->health.circuit.failures_to_open, 7U);
  EXPECT_EQ(settings->health.slow_start, std::chrono::milliseconds(0));
  EXPECT_EQ(settings->health.check_every, std::chrono::milliseconds(0));
  EXPECT_EQ(settings->health.circuit.first_open, std::chrono::seconds(2));
  ASSERT_EQ(settings->prefill_discovery.srv.size(), 1U);
  EXPECT_EQ(settings->prefill_discovery.srv[0].name, "_v._tcp.a");
  EXPECT_EQ(settings->prefill_discovery.srv[0].server, "10.0.0.2:8600");
  ASSERT_EQ(settings->prefill_discovery.kubernetes.size(), 1U);
  EXPECT_EQ(settings->prefill_discovery.kubernetes[0].port, "8100");
  EXPECT_EQ(settings->prefill_events, (KvEventSource{5557, 5558, "kv"}));
  EXPECT_FALSE(settings->decode_events.is_on());
  EXPECT_EQ(settings->retries.budget_share, 0.5);
  EXPECT_EQ(settings->retries.longest, std::chrono::seconds(1));
  EXPECT_EQ(settings->continue_streams, ContinueStreams::kAlways);
  EXPECT_EQ(settings->continue_marker, ContinueMarker::kOff);
  EXPECT_EQ(settings->log_level, "debug");
  EXPECT_TRUE(settings->access_log && settings->sample_traces);
  EXPECT_EQ(settings->otlp_endpoint, "http://c:4318");
  EXPECT_EQ(settings->port, 9000);
  EXPECT_EQ(settings->threads, 3U);
}

TEST(ConfigFileTest, AnErrorNamesLineAndFieldAndWhatIsAllowed) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases{
      {"{\n\"model\": \"m\",\n\"timeouts\": {\n\"conect_s\": 1}}", {"f, line 4, timeouts.conect_s", "is it connect_s?", "drain_s"}},
      {"{\n\n\"polcy\": 1}", {"line 3, polcy", "is it policy?"}},
      {"{\"timeouts\":\n{\"connect_s\": \"1\"}}", {"line 2, timeouts.connect_s", "a number of seconds"}},
      {"{\"timeouts\": {\"connect_s\": 0}}", {"from 0.001"}},
      {"{\"groups\": {\"decode\":\n\n{\"policy\": \"best\"}}}", {"line 3, groups.decode.policy", "round_robin, random"}},
      {"{\"groups\": {\"decode\": {\"instances\":\n [\"a:1\",\n\"nowhere\"]}}}",
       {"line 2, groups.decode.instances", "'nowhere'", "host:port"}},
      {"{\"groups\": {\"decode\": {\"instances\": \"a:1\"}}}", {"a list of"}},
      {"{\"groups\": {\"router\": {}}}", {"groups.router", "prefill, decode"}},
      {"{\"groups\": {\"decode\": {\"dns\": {\"name\": \"a\"}}}}", {"groups.decode.dns", "name"}},
      {"{\"groups\": {\"decode\": {\"dns\": {\"host\": \"a:1\"}}}}", {"groups.decode.dns", "{\"name\": \"host:port\""}},
      {"{\"groups\": {\"decode\": {\"etcd\": {\"server\": \"a:1\"}}}}", {"groups.decode.etcd", "\"prefix\""}},
      {"{\"limits\": {\"attempts\": 1.5}}", {"limits.attempts", "a whole number from 1 to 100"}},
      {"{\"limits\": {\"attempts\": -1}}", {"a whole number from 1 to 100"}},
      {"{\"limits\": []}", {"limits", "an object"}},
      {"{\"policy_options\": {\"pool_transfer_cost\": 2}}", {"from 0 to 1"}},
      {"{\"kv_transfer\": \"p2p\"}", {"kv_transfer", "auto, mooncake, nixl, none, pool"}},
      {"{\"mooncake_bootstrap\": \"a\"}", {"mooncake_bootstrap", "host:port=port"}},
      {"{\"mooncake_bootstrap\": 0}", {"'0'"}},
      {"[]", {"f, line 1", "an object"}},
      {"{\n\"model\": \"m\",\n}", {"f, line 3", "no valid JSON"}},
      {"{\"model\": \"m\"", {"no valid JSON"}},
      {"{}\n{}", {"f, line 2", "more text"}},
      {"", {"no valid JSON"}},
  };
  for (const auto& [text, expected] : cases) {
    const auto settings = apply_config(text, "f", Settings());
    ASSERT_FALSE(settings.ok()) << text;
    for (const auto& part : expected) {
      EXPECT_NE(settings.status().message().find(part), std::string::npos) << text << "\n" << settings.status().message();
    }
  }
  EXPECT_FALSE(read_config_file("/no/such/file", Settings()).ok());
}

TEST(EtcdInstancesTest, AsksForAllKeysBelowThePrefix) {
  EXPECT_EQ(etcd_range_request("/a/"), R"({"key":"L2Ev","range_end":"L2Ew"})");
  EXPECT_EQ(etcd_range_request("a\xff"), R"({"key":"Yf8=","range_end":"Yg=="})");
  EXPECT_EQ(etcd_range_request("\xff"), R"({"key":"/w==","range_end":"AA=="})");
}

TEST(EtcdInstancesTest, ReadsNamesFromValuesOrKeys) {
  // /a/x -> h:1, /a/n:2 -> nothing, /a/y -> "zzz", /a/x2 -> h:1
  const auto found = parse_etcd_instances(
      R"({"header":{"revision":"5"},"kvs":[{"key":"L2EveA==","value":"aDox"},{"key":"L2Evbjoy"},{"key":"L2EveQ==","value":"enp6"},)"
      R"({"key":"L2EveDI=","value":"aDox"}],"count":"4"})",
      "/a/");
  ASSERT_TRUE(found.ok()) << found.status().message();
  ASSERT_EQ(found->names.size(), 2U);
  EXPECT_EQ(found->names[0].to_string(), "h:1");
  EXPECT_EQ(found->names[1].to_string(), "n:2");
  EXPECT_EQ(found->unusable, 1U);
  EXPECT_TRUE(parse_etcd_instances(R"({"header":{}})", "/a/")->names.empty());
  for (const char* body :
       {"", "[]", "{}", R"({"header":{},"kvs":5})", R"({"header":{},"kvs":[5]})", R"({"header":{},"kvs":[{"key":"?"}]})"}) {
    EXPECT_FALSE(parse_etcd_instances(body, "/a/").ok()) << body;
  }
}

}  // namespace
}  // namespace moonpool::gateway
