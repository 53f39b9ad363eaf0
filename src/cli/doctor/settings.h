// What `moonpool doctor` is asked to look at: the command line, the mooncake.json that the engines use, and the environment, in one record.
//
// The environment is read here and nowhere else in the doctor. The file is read as mooncake.mooncake_config reads it: the same fields,
// aliases, defaults and sizes. Threads: none; values.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "transfer/rdma/settings.h"

namespace moonpool::cli::doctor {

// A mooncake.json, or the MOONCAKE_ variables that stand for one.
struct PoolConfig {
  std::string source;  // for people: the file's name, or "the environment (MOONCAKE_MASTER)"
  std::string local_hostname;
  std::string metadata_server;
  std::uint64_t segment_bytes = 3'355'443'200;  // lent to the pool
  std::uint64_t local_buffer_bytes = std::uint64_t{1} << 30;
  std::string protocol = "tcp";
  std::string device_name;
  std::string master_server_address;
  std::uint16_t client_http_port = 0;  // 0: not served
  std::vector<std::string> unknown_fields;
};

// kConfig, saying where and what would be right.
[[nodiscard]] Result<PoolConfig> parse_pool_config(std::string_view text, std::string_view source);

// The names of the environment that matter here; absent ones are nullopt.
struct Environment {
  std::optional<std::string> config_path;          // MOONCAKE_CONFIG_PATH
  std::optional<std::string> master;               // MOONCAKE_MASTER
  std::optional<std::string> local_hostname;       // MOONCAKE_LOCAL_HOSTNAME
  std::optional<std::string> metadata_server;      // MOONCAKE_TE_META_DATA_SERVER
  std::optional<std::string> protocol;             // MOONCAKE_PROTOCOL
  std::optional<std::string> device;               // MOONCAKE_DEVICE
  std::optional<std::string> global_segment_size;  // MOONCAKE_GLOBAL_SEGMENT_SIZE
  std::optional<std::string> local_buffer_size;    // MOONCAKE_LOCAL_BUFFER_SIZE
  std::optional<std::string> token;                // MOONPOOL_CLUSTER_TOKEN; never shown
  std::optional<std::string> token_file;           // MOONPOOL_CLUSTER_TOKEN_FILE
  std::optional<std::string> hash_seed;            // PYTHONHASHSEED
  std::optional<std::string> virtual_environment;  // VIRTUAL_ENV
  std::optional<std::string> no_color;             // NO_COLOR
  std::optional<std::string> terminal;             // TERM
  std::optional<std::string> python;               // MOONPOOL_PYTHON: the one whose start script called this program
  transfer::rdma::Variables rdma;                  // MOONPOOL_RDMA_..., MC_...

  [[nodiscard]] static Environment read();
};

struct Request {
  std::string config_path;      // --config; empty: the environment's
  std::string master;           // --master
  std::string metadata_server;  // --metadata-server
  std::vector<std::string> peers;
  std::vector<std::uint16_t> ports;
  bool as_json = false;
  std::chrono::nanoseconds timeout{std::chrono::seconds(10)};
};

// All that the checks need to know.
struct Settings {
  Request request;
  Environment environment;
  std::optional<PoolConfig> config;
  Status config_error;  // there is one that cannot be used
  std::string token;    // the cluster's; never shown
  Status token_error;

  // What the flags say, else the configuration; empty: nothing to look at.
  [[nodiscard]] std::vector<std::string> masters() const;
  [[nodiscard]] std::string metadata_server() const;
  [[nodiscard]] bool wants_rdma() const { return config && config->protocol == "rdma"; }
  // The names in device_name; empty: all that are up.
  [[nodiscard]] std::vector<std::string> devices() const;
};

[[nodiscard]] Settings gather(Request request, Environment environment);

}  // namespace moonpool::cli::doctor
