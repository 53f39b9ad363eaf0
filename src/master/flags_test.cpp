#include "master/flags.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "master/flag_table.h"

namespace moonpool::master {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class FlagsTest : public ::testing::Test {
 protected:
  Result<ParsedFlags> parse(const std::vector<std::string>& arguments) {
    const FlagSources sources{[this](const std::string& name) -> std::optional<std::string> {
                                const auto found = environment.find(name);
                                return found == environment.end() ? std::nullopt : std::optional(found->second);
                              },
                              [this](const std::string& path) -> Result<std::string> {
                                const auto found = files.find(path);
                                if (found == files.end()) return Status(ErrorCode::kConfig, path + " cannot be opened");
                                return found->second;
                              }};
    return parse_flags(arguments, sources);
  }
  MasterConfig good(const std::vector<std::string>& arguments) {
    const auto parsed = parse(arguments);
    EXPECT_TRUE(parsed.ok()) << parsed.status().to_string();
    EXPECT_TRUE(parsed->warnings.empty()) << ::testing::PrintToString(parsed->warnings);
    return parsed->config;
  }
  std::string error(const std::vector<std::string>& arguments) {
    const auto parsed = parse(arguments);
    EXPECT_FALSE(parsed.ok()) << ::testing::PrintToString(arguments);
    EXPECT_EQ(parsed.code(), ErrorCode::kConfig);
    return parsed.status().message();
  }
  std::string warning(const std::vector<std::string>& arguments) {
    const auto parsed = parse(arguments);
    EXPECT_TRUE(parsed.ok()) << parsed.status().to_string();
    return parsed.ok() && parsed->warnings.size() == 1 ? parsed->warnings[0] : "";
  }
  std::map<std::string, std::string> environment;
  std::map<std::string, std::string> files;
};

TEST_F(FlagsTest, TheGuidesCommandLine) { EXPECT_EQ(good({"--port", "50001"}).port, 50001); }

TEST_F(FlagsTest, NothingListensOnAllInterfacesUnasked) {
  const auto config = good({});
  EXPECT_EQ(config.host, "127.0.0.1");
  EXPECT_EQ(config.metrics_host, "127.0.0.1");
  EXPECT_EQ(config.http_metadata_server_host, "127.0.0.1");
  EXPECT_EQ(good({"--rpc_address=0.0.0.0"}).host, "0.0.0.0");
}

TEST_F(FlagsTest, OneDashTwoDashesEqualsAndBlankAreTheSame) {
  for (const auto& arguments : std::vector<std::vector<std::string>>{
           {"--metrics_port", "1"}, {"--metrics_port=1"}, {"-metrics_port", "1"}, {"-metrics_port=1"}, {"--metrics-port=1"}}) {
    EXPECT_EQ(good(arguments).metrics_port, 1);
  }
}

TEST_F(FlagsTest, SwitchesTakeManyForms) {
  for (const auto& yes : std::vector<std::vector<std::string>>{{"--enable_http_metadata_server"},
                                                               {"-enable_http_metadata_server=true"},
                                                               {"--enable_http_metadata_server=1"},
                                                               {"--enable_http_metadata_server", "true"}}) {
    EXPECT_TRUE(good(yes).enable_http_metadata_server);
  }
  EXPECT_FALSE(good({"--noallow_evict_soft_pinned_objects"}).allow_evict_soft_pinned);
  EXPECT_FALSE(good({"--allow_evict_soft_pinned_objects=false"}).allow_evict_soft_pinned);
  EXPECT_EQ(good({"--enable_http_metadata_server", "--port", "7"}).port, 7);
  EXPECT_THAT(error({"--enable_http_metadata_server=perhaps"}), HasSubstr("true or false"));
  EXPECT_THAT(error({"--noport"}), HasSubstr("not known"));
}

TEST_F(FlagsTest, TimesHaveUnits) {
  EXPECT_EQ(good({"--default_kv_lease_ttl=10000"}).lease_ttl, milliseconds(10'000));
  EXPECT_EQ(good({"--default_kv_lease_ttl=10s"}).lease_ttl, milliseconds(10'000));
  EXPECT_EQ(good({"--default_kv_lease_ttl=250ms"}).lease_ttl, milliseconds(250));
  EXPECT_EQ(good({"--client_ttl=3"}).client_ttl, milliseconds(3000));
  EXPECT_EQ(good({"--client_ttl=1500ms"}).client_ttl, milliseconds(1500));
  EXPECT_EQ(good({"--default_kv_soft_pin_ttl=30m"}).soft_pin_ttl, std::chrono::minutes(30));
  EXPECT_EQ(good({"--handover_wait_ms=0"}).handover_wait, milliseconds(0));
  for (const auto* bad : {"", "s", "-1", "1.5", "10 s", "10x", "99999999999999999999", "9999h"}) {
    EXPECT_THAT(error({"--default_kv_lease_ttl", bad}), HasSubstr("--default_kv_lease_ttl")) << bad;
  }
  EXPECT_THAT(error({"--client_ttl=0"}), HasSubstr("at least 1 seconds"));
}

TEST_F(FlagsTest, BadValuesNameFlagValueAndWhatIsRight) {
  for (const auto* bad : {"", "x", "65536", "-1", "1x", "1.0"}) {
    const auto text = error({"--port", bad});
    EXPECT_THAT(text, HasSubstr("--port")) << bad;
    EXPECT_THAT(text, HasSubstr(std::string("'") + bad + "'"));
    EXPECT_THAT(text, HasSubstr("65535"));
  }
  for (const auto* bad : {"0", "1.1", "-0.5", "nan", "inf", "x", ""})
    EXPECT_THAT(error({"--eviction_ratio", bad}), HasSubstr("0.05")) << bad;
  EXPECT_THAT(error({"--eviction_ratio=0.5", "--eviction_high_watermark_ratio=0.5"}), HasSubstr("below"));
  EXPECT_THAT(error({"--max_threads=1000"}), HasSubstr("256"));
  EXPECT_THAT(error({"--rpc_address="}), HasSubstr("0.0.0.0"));
  EXPECT_THAT(error({"--log_level=loud"}), HasSubstr("debug"));
  EXPECT_THAT(error({"--port"}), HasSubstr("missing"));
  EXPECT_THAT(error({"50001"}), HasSubstr("not a flag"));
  EXPECT_THAT(error({"---port=1"}), HasSubstr("not a flag"));
  EXPECT_THAT(error({"--"}), HasSubstr("not a flag"));
  EXPECT_THAT(error({""}), HasSubstr("not a flag"));
}

TEST_F(FlagsTest, AnUnknownFlagIsAnErrorWithTheNearestName) {
  EXPECT_THAT(error({"--prot=1"}), HasSubstr("--port"));
  EXPECT_THAT(error({"--eviction_high_water_ratio=0.9"}), HasSubstr("--eviction_high_watermark_ratio"));
  EXPECT_THAT(error({"--metric_port=1"}), HasSubstr("--metrics_port"));
}

TEST_F(FlagsTest, AFlagOfAMissingFeatureIsAWarningUnlessItIsItsDefault) {
  EXPECT_THAT(warning({"--enable_ha"}), HasSubstr("elected leader"));
  EXPECT_THAT(warning({"--enable_ha=true"}), HasSubstr("--enable_ha"));
  EXPECT_TRUE(good({"--enable_ha=false"}).port != 0);
  EXPECT_THAT(warning({"--root_fs_dir", "/data"}), HasSubstr("disk tier"));
  EXPECT_THAT(warning({"--memory_allocator=cachelib"}), HasSubstr("offsets"));
  EXPECT_TRUE(good({"--memory_allocator=offset", "--allocation_strategy", "random"}).port != 0);
  EXPECT_THAT(warning({"--rpc_enable_tcp_no_delay=false"}), HasSubstr("TCP_NODELAY"));
}

TEST_F(FlagsTest, EveryFlagOfTheIncumbentIsKnown) {
  // The names of reference/command-flags.txt, mooncake_master.
  for (const auto* name : {"allocation_strategy",
                           "allow_evict_soft_pinned_objects",
                           "batch_oplog_retry_timeout_sec",
                           "client_ttl",
                           "cluster_id",
                           "config_path",
                           "cxl_path",
                           "cxl_size",
                           "default_kv_lease_ttl",
                           "default_kv_soft_pin_ttl",
                           "dynamic_replication_admission_qps_threshold",
                           "dynamic_replication_heat_window_seconds",
                           "dynamic_replication_max_memory_replicas",
                           "dynamic_replication_mode",
                           "enable_cxl",
                           "enable_disk_eviction",
                           "enable_ha",
                           "enable_http_metadata_server",
                           "enable_kv_events",
                           "enable_metadata_cleanup_on_timeout",
                           "enable_metric_reporting",
                           "enable_multi_tenants",
                           "enable_offload",
                           "enable_oplog",
                           "enable_snapshot",
                           "enable_snapshot_restore",
                           "etcd_endpoints",
                           "eviction_high_watermark_ratio",
                           "eviction_ratio",
                           "global_file_segment_size",
                           "ha_backend_connstring",
                           "ha_backend_type",
                           "http_metadata_server_host",
                           "http_metadata_server_port",
                           "kv_events_additional_salt",
                           "kv_events_backend_id",
                           "kv_events_bind_endpoint",
                           "kv_events_block_size",
                           "kv_events_dp_rank",
                           "kv_events_emit_legacy_compat",
                           "kv_events_emit_object_key",
                           "kv_events_lora_name",
                           "kv_events_model_name",
                           "kv_events_queue_capacity",
                           "kv_events_tenant_id",
                           "max_kv_soft_pin_ttl",
                           "max_retry_attempts",
                           "max_threads",
                           "max_total_finished_tasks",
                           "max_total_pending_tasks",
                           "max_total_processing_tasks",
                           "memory_allocator",
                           "metrics_host",
                           "metrics_port",
                           "nof_eviction_high_watermark_ratio",
                           "nof_eviction_ratio",
                           "nof_heartbeat_failures_threshold",
                           "nof_heartbeat_interval_sec",
                           "nof_heartbeat_probe_timeout_ms",
                           "offload_cap_ratio",
                           "offload_force_evict",
                           "offload_on_evict",
                           "offloading_queue_limit",
                           "oplog_batch_max_entries",
                           "oplog_poll_interval_ms",
                           "pending_task_timeout_sec",
                           "pod_name",
                           "pod_namespace",
                           "port",
                           "processing_task_timeout_sec",
                           "promotion_admission_threshold",
                           "promotion_max_per_heartbeat",
                           "promotion_on_hit",
                           "promotion_queue_limit",
                           "put_start_discard_timeout_sec",
                           "put_start_release_timeout_sec",
                           "quota_bytes",
                           "root_fs_dir",
                           "rpc_address",
                           "rpc_conn_timeout_seconds",
                           "rpc_enable_tcp_no_delay",
                           "rpc_interface",
                           "rpc_port",
                           "rpc_thread_num",
                           "snapshot_backup_dir",
                           "snapshot_catalog_backend_connstring",
                           "snapshot_catalog_backend_type",
                           "snapshot_catalog_store_connstring",
                           "snapshot_catalog_store_type",
                           "snapshot_child_timeout_seconds",
                           "snapshot_interval_seconds",
                           "snapshot_object_store_type",
                           "snapshot_payload_backend_type",
                           "snapshot_payload_store_type",
                           "snapshot_retention_count",
                           "tenant_quota_connector_type",
                           "tenant_quota_connector_uri",
                           "mmap_arena_pool_size",
                           "use_mmap_arena_allocator"}) {
    EXPECT_NE(find_flag(name), nullptr) << name;
  }
}

TEST_F(FlagsTest, RpcPortWinsOverPort) {
  EXPECT_EQ(good({"--rpc_port=7", "--port=8"}).port, 7);
  EXPECT_EQ(good({"--rpc_port=0", "--port=8"}).port, 8);
}

TEST_F(FlagsTest, AConfigFileHasTheSameNamesAndTheCommandLineWins) {
  files["m.json"] =
      R"({"port": 7, "metrics_port": "8", "default_kv_lease_ttl": "2s", "enable_http_metadata_server": true, "eviction_ratio": 0.1})";
  const auto config = good({"--port=9", "--config_path", "m.json"});
  EXPECT_EQ(config.port, 9);
  EXPECT_EQ(config.metrics_port, 8);
  EXPECT_EQ(config.lease_ttl, milliseconds(2000));
  EXPECT_TRUE(config.enable_http_metadata_server);
  EXPECT_EQ(config.eviction_ratio, 0.1);
}

TEST_F(FlagsTest, ABadConfigFileNamesFileAndField) {
  EXPECT_THAT(error({"--config_path=none.json"}), HasSubstr("none.json"));
  const std::map<std::string, std::string> wrong{{"{", "valid JSON"},
                                                 {"[1]", "object"},
                                                 {R"({"prot": 1})", "\"prot\""},
                                                 {R"({"port": 70000})", "65535"},
                                                 {R"({"port": null})", "\"port\""},
                                                 {R"({"port": [1]})", "\"port\""},
                                                 {R"({"config_path": "x"})", "another"},
                                                 {R"({"enable_ha": "x"})", "true or false"}};
  for (const auto& [content, text] : wrong) {
    files["m.json"] = content;
    const auto message = error({"--config_path=m.json"});
    EXPECT_THAT(message, HasSubstr("m.json")) << content;
    EXPECT_THAT(message, HasSubstr(text)) << content;
  }
}

TEST_F(FlagsTest, TheTokenComesFromAFileOrTheEnvironmentAndIsNeverShown) {
  environment["MOONPOOL_CLUSTER_TOKEN"] = "from-environment";
  files["token"] = "from-file\n";
  EXPECT_EQ(good({}).cluster_token, "from-environment");
  EXPECT_EQ(good({"--cluster_token_file=token"}).cluster_token, "from-file");
  files["empty"] = "\n";
  EXPECT_THAT(error({"--cluster_token_file=empty"}), HasSubstr("empty"));
  EXPECT_THAT(error({"--cluster_token_file=none"}), HasSubstr("--cluster_token_file"));
}

TEST_F(FlagsTest, HelpShowsEveryFlag) {
  EXPECT_TRUE(parse({"--help"})->help);
  const auto help = flags_help();
  for (const auto& spec : flag_table()) EXPECT_THAT(help, HasSubstr("--" + std::string(spec.name)));
}

TEST_F(FlagsTest, AValueThatIsGivenAsTheDefaultIsTakenWhereverItIsShown) {
  for (const auto& spec : flag_table()) {
    if (spec.name == "config_path" || spec.name == "cluster_token_file") continue;
    const auto parsed = parse({"--" + std::string(spec.name) + "=" + std::string(spec.default_text)});
    ASSERT_TRUE(parsed.ok()) << parsed.status().to_string();
    EXPECT_TRUE(parsed->warnings.empty()) << spec.name;
  }
}

}  // namespace
}  // namespace moonpool::master
