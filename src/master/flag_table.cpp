#include "master/flag_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <vector>

#include "base/edit_distance.h"

namespace moonpool::master {

namespace {

using std::chrono::milliseconds;
using Setter = std::function<Status(FlagTarget&, const std::string&)>;

Status wrong(std::string right) { return {ErrorCode::kConfig, std::move(right)}; }

template <typename Number>
bool parse_number(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

Setter text(std::string MasterConfig::*field) {
  return [field](FlagTarget& target, const std::string& value) {
    target.config.*field = value;
    return Status();
  };
}

Setter host(std::string MasterConfig::*field) {
  return [field](FlagTarget& target, const std::string& value) {
    if (value.empty()) return wrong("a host name or address to listen on, such as 127.0.0.1, 192.168.0.137 or 0.0.0.0");
    target.config.*field = value;
    return Status();
  };
}

Status parse_port(const std::string& value, std::uint16_t& port) {
  if (!parse_number(value, port)) return wrong("a port from 0 (any free one) to 65535");
  return {};
}

Setter port(std::uint16_t MasterConfig::*field) {
  return [field](FlagTarget& target, const std::string& value) { return parse_port(value, target.config.*field); };
}

Setter flag(bool MasterConfig::*field) {
  return [field](FlagTarget& target, const std::string& value) {
    target.config.*field = value == "true";  // flags.cpp has checked and normalised it
    return Status();
  };
}

// A plain number counts in `unit`; "500ms", "10s", "2m" and "1h" say theirs.
Setter duration(milliseconds MasterConfig::*field, milliseconds unit, std::int64_t least, const char* unit_name) {
  return [=](FlagTarget& target, const std::string& value) {
    const auto right = [&] {
      return wrong(fmt::format("a time of at least {}: a number of {}, or one with its unit (500ms, 10s, 2m, 1h)",
                               least * unit.count() == 0 ? "0" : fmt::format("{} {}", least, unit_name), unit_name));
    };
    const auto digits = std::min(value.find_first_not_of("0123456789"), value.size());
    const auto suffix = std::string_view(value).substr(digits);
    std::int64_t factor = 0;
    if (suffix.empty()) factor = unit.count();
    if (suffix == "ms") factor = 1;
    if (suffix == "s") factor = 1000;
    if (suffix == "m" || suffix == "min") factor = 60'000;
    if (suffix == "h") factor = 3'600'000;
    std::int64_t number = 0;
    // A month is longer than any of these times may sensibly be, and keeps sums from overflowing.
    constexpr std::int64_t kLongest = 31LL * 24 * 3'600'000;
    if (factor == 0 || !parse_number(std::string_view(value).substr(0, digits), number) || number > kLongest / factor) return right();
    const milliseconds time(number * factor);
    if (time < least * unit) return right();
    target.config.*field = time;
    return Status();
  };
}

Setter ratio(double MasterConfig::*field, const char* example) {
  return [=](FlagTarget& target, const std::string& value) {
    double number = -1;
    if (!parse_number(value, number) || !(number > 0.0 && number <= 1.0)) {
      return wrong(std::string("a number above 0 and up to 1, such as ") + example);
    }
    target.config.*field = number;
    return Status();
  };
}

Setter threads() {
  return [](FlagTarget& target, const std::string& value) {
    std::uint32_t number = 0;
    if (!parse_number(value, number) || number > 256) return wrong("a number of threads from 1 to 256 (0: the default of 2)");
    if (number > 0) target.config.threads = number;
    return Status();
  };
}

// A value of the incumbent's that we have nothing to choose for: only what we do anyway is taken.
Setter only(std::vector<std::string> taken, std::string note) {
  return [taken = std::move(taken), note = std::move(note)](FlagTarget&, const std::string& value) {
    if (std::find(taken.begin(), taken.end(), value) != taken.end()) return Status();
    return Status(ErrorCode::kNotSupported, note);
  };
}

std::vector<FlagSpec> make_own() {
  using C = MasterConfig;
  return {
      {"port", false, "50051", "port of the wire (0: any free one)", port(&C::port)},
      {"rpc_port", false, "0", "the same; wins over --port unless 0",
       [](FlagTarget& t, const std::string& v) { return parse_port(v, t.rpc_port); }},
      {"rpc_address", false, "127.0.0.1",
       "host to listen on; give this machine's address, or 0.0.0.0 for all, to be reached from elsewhere", host(&C::host)},
      {"host", false, "127.0.0.1", "the same as --rpc_address", host(&C::host)},
      {"max_threads", false, "2", "threads that serve the wire", threads()},
      {"rpc_thread_num", false, "0", "the same as --max_threads", threads()},
      {"metrics_host", false, "127.0.0.1", "host of the admin and metrics pages", host(&C::metrics_host)},
      {"metrics_port", false, "9003", "port of the admin and metrics pages (0: any free one)", port(&C::metrics_port)},
      {"enable_metric_reporting", true, "true", "a summary line in the log every minute", flag(&C::metric_reporting)},
      {"enable_http_metadata_server", true, "false", "serve the embedded metadata store over HTTP", flag(&C::enable_http_metadata_server)},
      {"http_metadata_server_host", false, "127.0.0.1", "host of the metadata server", host(&C::http_metadata_server_host)},
      {"http_metadata_server_port", false, "8080", "port of the metadata server (0: any free one)", port(&C::http_metadata_server_port)},
      {"default_kv_lease_ttl", false, "10000", "how long a looked-up object is safe from eviction (milliseconds, or 10s)",
       duration(&C::lease_ttl, milliseconds(1), 0, "milliseconds")},
      {"default_kv_soft_pin_ttl", false, "1800000", "how long a soft pin holds when the put does not say (milliseconds, or 30m)",
       duration(&C::soft_pin_ttl, milliseconds(1), 0, "milliseconds")},
      {"max_kv_soft_pin_ttl", false, "86400000", "the longest soft pin that a put may ask for (milliseconds, or 24h)",
       duration(&C::max_soft_pin_ttl, milliseconds(1), 0, "milliseconds")},
      {"allow_evict_soft_pinned_objects", true, "true", "evict soft-pinned objects when nothing else is left",
       flag(&C::allow_evict_soft_pinned)},
      {"eviction_high_watermark_ratio", false, "0.9", "share of the memory above which objects are evicted ahead of demand",
       ratio(&C::eviction_high_watermark_ratio, "0.9")},
      {"eviction_ratio", false, "0.05", "share of the memory that such an eviction frees below the watermark",
       ratio(&C::eviction_ratio, "0.05")},
      {"client_ttl", false, "10", "a node silent for longer is expired and its segments fenced (seconds, or 10s)",
       duration(&C::client_ttl, milliseconds(1000), 1, "seconds")},
      {"put_start_discard_timeout_sec", false, "30", "an unfinished put is revoked after this time (seconds)",
       duration(&C::put_timeout, milliseconds(1000), 1, "seconds")},
      {"cluster_id", false, "mooncake_cluster", "name of the cluster, for logs", text(&C::cluster_id)},
      {"config_path", false, "", "JSON file with these flags' names and values",
       [](FlagTarget& t, const std::string& v) {
         t.config_path = v;
         return Status();
       }},
      {"cluster_token_file", false, "", "file with the secret that all nodes share (or the variable MOONPOOL_CLUSTER_TOKEN)",
       [](FlagTarget& t, const std::string& v) {
         t.token_file = v;
         return Status();
       }},
      {"handover_wait_ms", false, "500", "the longest wait of a look-up for a key that is on its way",
       duration(&C::handover_wait, milliseconds(1), 0, "milliseconds")},
      {"recovery_window_ms", false, "1000", "how long a started master listens to the owners before it calls a key unknown",
       duration(&C::recovery_window, milliseconds(1), 0, "milliseconds")},
      {"log_level", false, "info", "trace, debug, info, warning, error or off",
       [](FlagTarget& t, const std::string& v) {
         constexpr std::string_view kLevels[] = {"trace", "debug", "info", "warning", "warn", "error", "off"};
         if (std::find(std::begin(kLevels), std::end(kLevels), v) == std::end(kLevels)) {
           return wrong("one of trace, debug, info, warning, error, off");
         }
         t.config.log_level = v;
         return Status();
       }},
      {"memory_allocator", false, "offset", "kept for the incumbent's command lines",
       only({"offset"}, "there is one allocator, which works on offsets")},
      {"allocation_strategy", false, "random", "kept for the incumbent's command lines",
       only({"random"}, "placement is by preference and free space, with chance")},
      {"rpc_enable_tcp_no_delay", true, "true", "kept for the incumbent's command lines", only({"true"}, "TCP_NODELAY is always set")},
      {"rpc_conn_timeout_seconds", false, "0", "kept for the incumbent's command lines", only({"0"}, "idle connections are kept")},
      {"put_start_release_timeout_sec", false, "600", "kept for the incumbent's command lines",
       only({"600"}, "space of an unfinished put comes back when its owner has fenced the writer, not after a time")},
  };
}

struct Missing {
  std::string_view names;  // "name=default", a leading ! for switches, separated by blanks
  std::string_view feature;
};

// Known to mooncake_master, with no feature behind them here yet.
constexpr Missing kMissing[] = {
    {"!enable_ha=false etcd_endpoints= ha_backend_connstring= ha_backend_type=etcd rpc_interface= pod_name= pod_namespace=",
     "several masters with an elected leader"},
    {"!enable_oplog=false batch_oplog_retry_timeout_sec=180 oplog_batch_max_entries=1024 oplog_poll_interval_ms=1000",
     "the operation log (owners' catalogues are the durable truth here)"},
    {"!enable_snapshot=false !enable_snapshot_restore=false snapshot_backup_dir= snapshot_catalog_backend_connstring= "
     "snapshot_catalog_backend_type= snapshot_catalog_store_connstring= snapshot_catalog_store_type= snapshot_child_timeout_seconds=300 "
     "snapshot_interval_seconds=600 snapshot_object_store_type= snapshot_payload_backend_type= snapshot_payload_store_type= "
     "snapshot_retention_count=2",
     "snapshots (a restarted master is told everything by the owners)"},
    {"cxl_path=/dev/dax0.0 cxl_size=8589934592 !enable_cxl=false", "CXL memory"},
    {"!enable_offload=false !enable_disk_eviction=true global_file_segment_size=9223372036854775807 root_fs_dir= offload_cap_ratio=0.5 "
     "!offload_force_evict=false !offload_on_evict=false offloading_queue_limit=50000 promotion_admission_threshold=2 "
     "promotion_max_per_heartbeat= !promotion_on_hit=false promotion_queue_limit=50000 quota_bytes=0",
     "the disk tier"},
    {"dynamic_replication_admission_qps_threshold=0.8 dynamic_replication_heat_window_seconds=10 dynamic_replication_max_memory_replicas=2 "
     "dynamic_replication_mode=off",
     "dynamic replication"},
    {"!enable_kv_events=false kv_events_additional_salt= kv_events_backend_id= kv_events_bind_endpoint= kv_events_block_size=0 "
     "kv_events_dp_rank=0 !kv_events_emit_legacy_compat=true !kv_events_emit_object_key=true kv_events_lora_name= kv_events_model_name= "
     "kv_events_queue_capacity=65536 kv_events_tenant_id=default",
     "KV events"},
    {"!enable_multi_tenants=false tenant_quota_connector_type=file tenant_quota_connector_uri=",
     "tenant quotas (tenants' keys are always apart)"},
    {"max_retry_attempts=10 max_total_finished_tasks=10000 max_total_pending_tasks=10000 max_total_processing_tasks=10000 "
     "pending_task_timeout_sec=300 processing_task_timeout_sec=300",
     "copy and move tasks"},
    {"nof_eviction_high_watermark_ratio=0.9 nof_eviction_ratio=0.05 nof_heartbeat_failures_threshold=3 nof_heartbeat_interval_sec=10 "
     "nof_heartbeat_probe_timeout_ms=1000",
     "NVMe-over-fabrics segments"},
    {"!enable_metadata_cleanup_on_timeout=false", "cleaning the metadata server after expired nodes"},
    {"mmap_arena_pool_size=8589934592 !use_mmap_arena_allocator=false", "the mmap arena"},
};

std::vector<FlagSpec> make_table() {
  auto table = make_own();
  for (const auto& [names, feature] : kMissing) {
    std::string_view rest = names;
    while (!rest.empty()) {
      auto word = rest.substr(0, rest.find(' '));
      rest.remove_prefix(std::min(rest.size(), word.size() + 1));
      const bool is_switch = word.front() == '!';
      if (is_switch) word.remove_prefix(1);
      const auto equals = word.find('=');
      table.push_back({word.substr(0, equals), is_switch, word.substr(equals + 1), feature, nullptr});
    }
  }
  return table;
}

}  // namespace

std::span<const FlagSpec> flag_table() {
  static const std::vector<FlagSpec> kTable = make_table();
  return kTable;
}

const FlagSpec* find_flag(std::string_view name) {
  const auto table = flag_table();
  const auto found = std::find_if(table.begin(), table.end(), [&](const FlagSpec& spec) { return spec.name == name; });
  return found == table.end() ? nullptr : &*found;
}

std::string_view nearest_flag(std::string_view name) {
  std::string_view nearest;
  auto best = std::numeric_limits<std::size_t>::max();
  for (const auto& spec : flag_table()) {
    if (const auto distance = edit_distance(name.substr(0, 128), spec.name); distance < best) {
      best = distance;
      nearest = spec.name;
    }
  }
  return nearest;
}

}  // namespace moonpool::master
