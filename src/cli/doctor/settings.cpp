#include "cli/doctor/settings.h"

#include <fmt/format.h>
#include <unistd.h>  // environ

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "base/size_text.h"
#include "net/socket.h"

namespace moonpool::cli::doctor {

namespace json = boost::json;

namespace {

std::string trimmed(std::string_view text) {
  const auto blank = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return std::string(text);
}

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const auto comma = std::min(text.find(',', at), text.size());
    if (auto part = trimmed(text.substr(at, comma - at)); !part.empty()) parts.push_back(std::move(part));
    at = comma + 1;
  }
  return parts;
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

std::optional<std::uint64_t> size_of(const json::value& value) {
  if (value.is_int64() && value.get_int64() >= 0) return static_cast<std::uint64_t>(value.get_int64());
  if (value.is_uint64()) return value.get_uint64();
  if (value.is_double() && value.get_double() >= 0 && value.get_double() < 9e18) return static_cast<std::uint64_t>(value.get_double());
  if (!value.is_string()) return std::nullopt;
  const auto size = parse_size(value.get_string());
  return size ? std::optional(*size) : std::nullopt;
}

// Fields that other parts of the engines read.
constexpr std::array<std::string_view, 10> kOtherFields = {"mode",         "metadata_backend", "transfer_timeout",   "replica_num",
                                                           "extra_config", "enable_offload",   "enable_ssd_offload", "ssd_offload_path",
                                                           "tenant_id",    "client_http_host"};

// What one field means to the record; an error text for a wrong value, empty when it is right or not ours.
std::string take(PoolConfig& config, std::string_view name, const json::value& value) {
  const auto text = [&](std::string& into) -> std::string {
    if (value.is_null()) return {};
    if (!value.is_string()) return "give a text";
    into = trimmed(value.get_string());
    return {};
  };
  const auto size = [&](std::uint64_t& into) -> std::string {
    const auto bytes = size_of(value);
    if (!bytes) return "give a number of bytes, or a text with a unit such as \"4GB\"";
    into = *bytes;
    return {};
  };
  if (name == "local_hostname") return text(config.local_hostname);
  if (name == "metadata_server") return text(config.metadata_server);
  if (name == "master_server_address" || name == "master_server_addr") return text(config.master_server_address);
  if (name == "device_name" || name == "rdma_devices") return text(config.device_name);
  if (name == "global_segment_size") return size(config.segment_bytes);
  if (name == "local_buffer_size") return size(config.local_buffer_bytes);
  if (name == "protocol") {
    auto wrong = text(config.protocol);
    config.protocol = lower(config.protocol);
    return wrong;
  }
  if (name == "enable_client_http_server") {
    const bool on = (value.is_bool() && value.get_bool()) || (value.is_string() && lower(std::string(value.get_string())) == "true");
    if (on && config.client_http_port == 0) config.client_http_port = 9300;
    return {};
  }
  if (name == "client_http_port") return {};  // needs the switch, which may come later
  if (std::find(kOtherFields.begin(), kOtherFields.end(), name) == kOtherFields.end()) config.unknown_fields.emplace_back(name);
  return {};
}

Result<std::string> read_file(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) return {ErrorCode::kConfig, fmt::format("{} is a folder: name a mooncake.json", path)};
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return {ErrorCode::kConfig, fmt::format("{} cannot be read ({}): name a mooncake.json with --config or MOONCAKE_CONFIG_PATH", path,
                                            net::errno_text(errno != 0 ? errno : EIO))};
  }
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

Result<PoolConfig> from_environment(const Environment& environment) {
  PoolConfig config;
  config.source = "the environment (MOONCAKE_MASTER)";
  config.local_hostname = environment.local_hostname.value_or("localhost");
  config.metadata_server = environment.metadata_server.value_or("P2PHANDSHAKE");
  config.master_server_address = *environment.master;
  config.protocol = lower(environment.protocol.value_or("tcp"));
  config.device_name = environment.device.value_or("");
  const auto size = [](const std::optional<std::string>& text, std::string_view name, std::uint64_t& into) -> Status {
    if (!text) return {};
    const auto bytes = parse_size(*text);
    if (!bytes) return {ErrorCode::kConfig, fmt::format("{}: {}", name, bytes.status().message())};
    into = *bytes;
    return {};
  };
  MOONPOOL_RETURN_IF_ERROR(size(environment.global_segment_size, "MOONCAKE_GLOBAL_SEGMENT_SIZE", config.segment_bytes));
  MOONPOOL_RETURN_IF_ERROR(size(environment.local_buffer_size, "MOONCAKE_LOCAL_BUFFER_SIZE", config.local_buffer_bytes));
  return config;
}

Result<std::string> token_of(const Environment& environment) {
  if (environment.token && !environment.token->empty()) return *environment.token;
  if (!environment.token_file || environment.token_file->empty()) return std::string();
  std::ifstream file(*environment.token_file);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) {
    return {ErrorCode::kConfig, fmt::format("MOONPOOL_CLUSTER_TOKEN_FILE: {} cannot be read or is empty: give a file with the cluster's "
                                            "token",
                                            *environment.token_file)};
  }
  return trimmed(std::move(text).str());
}

}  // namespace

Result<PoolConfig> parse_pool_config(std::string_view text, std::string_view source) {
  boost::system::error_code bad;
  const json::value document = json::parse(text, bad);
  if (bad) return {ErrorCode::kConfig, fmt::format("{}: not valid JSON ({})", source, bad.message())};
  if (!document.is_object()) return {ErrorCode::kConfig, fmt::format("{}: a configuration is one JSON object, {{...}}", source)};
  PoolConfig config;
  config.source = source;
  for (const auto& [name, value] : document.get_object()) {
    if (const auto wrong = take(config, name, value); !wrong.empty())
      return {ErrorCode::kConfig, fmt::format("{}: {}: {}", source, std::string_view(name), wrong)};
  }
  if (const auto* port = document.get_object().if_contains("client_http_port"); port != nullptr && config.client_http_port != 0) {
    const auto number = size_of(*port);
    if (!number || *number == 0 || *number > 65535) return {ErrorCode::kConfig, fmt::format("{}: client_http_port: give a port", source)};
    config.client_http_port = static_cast<std::uint16_t>(*number);
  }
  for (const auto& [field, present] : {std::pair<std::string_view, bool>{"local_hostname", !config.local_hostname.empty()},
                                       {"metadata_server", !config.metadata_server.empty()},
                                       {"master_server_address", !config.master_server_address.empty()}}) {
    if (!present) return {ErrorCode::kConfig, fmt::format("{}: the field \"{}\" is missing or empty", source, field)};
  }
  return config;
}

Environment Environment::read() {
  const auto get = [](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);  // NOLINT(concurrency-mt-unsafe): before there is another thread
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  };
  return {.config_path = get("MOONCAKE_CONFIG_PATH"),
          .master = get("MOONCAKE_MASTER"),
          .local_hostname = get("MOONCAKE_LOCAL_HOSTNAME"),
          .metadata_server = get("MOONCAKE_TE_META_DATA_SERVER"),
          .protocol = get("MOONCAKE_PROTOCOL"),
          .device = get("MOONCAKE_DEVICE"),
          .global_segment_size = get("MOONCAKE_GLOBAL_SEGMENT_SIZE"),
          .local_buffer_size = get("MOONCAKE_LOCAL_BUFFER_SIZE"),
          .token = get("MOONPOOL_CLUSTER_TOKEN"),
          .token_file = get("MOONPOOL_CLUSTER_TOKEN_FILE"),
          .hash_seed = get("PYTHONHASHSEED"),
          .virtual_environment = get("VIRTUAL_ENV"),
          .no_color = get("NO_COLOR"),
          .terminal = get("TERM"),
          .python = get("MOONPOOL_PYTHON"),
          .rdma = transfer::rdma::variables_of(environ)};
}

std::vector<std::string> Settings::masters() const {
  if (!request.master.empty()) return split(request.master);
  return config ? split(config->master_server_address) : std::vector<std::string>();
}

std::string Settings::metadata_server() const {
  if (!request.metadata_server.empty()) return request.metadata_server;
  return config ? config->metadata_server : std::string();
}

std::vector<std::string> Settings::devices() const {
  if (!config || config->device_name == "auto") return {};
  return split(config->device_name);
}

Settings gather(Request request, Environment environment) {
  Settings settings;
  const std::string path = !request.config_path.empty() ? request.config_path : environment.config_path.value_or("");
  if (!path.empty()) {
    const auto text = read_file(path);
    auto config = text ? parse_pool_config(*text, path) : Result<PoolConfig>(text.status());
    if (config) {
      settings.config = std::move(*config);
    } else {
      settings.config_error = config.status();
    }
  } else if (environment.master && !environment.master->empty()) {
    auto config = from_environment(environment);
    if (config) {
      settings.config = std::move(*config);
    } else {
      settings.config_error = config.status();
    }
  }
  auto token = token_of(environment);
  if (token) {
    settings.token = std::move(*token);
  } else {
    settings.token_error = token.status();
  }
  settings.request = std::move(request);
  settings.environment = std::move(environment);
  return settings;
}

}  // namespace moonpool::cli::doctor
