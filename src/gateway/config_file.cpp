#include "gateway/config_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/stream_parser.hpp>
#include <filesystem>
#include <fstream>
#include <functional>

#include "base/edit_distance.h"
#include "gateway/http_endpoint.h"
#include "gateway/json_member.h"

namespace moonpool::gateway {

namespace {

namespace json = boost::json;

constexpr std::size_t kFileAtMost = std::size_t{1} << 20;
constexpr double kSecondsAtMost = 1e7;
constexpr std::string_view kKeyShape =
    R"({"name": "a", "sha256": 64 hexadecimal digits, perhaps "role": "client", "monitor" or "admin", "priority": -1000 to 1000, )"
    R"("weight": 0.001 to 1000, "requests_per_minute", "tokens_per_minute", "burst_s"}, or a list of these)";
constexpr std::string_view kDnsShape =
    R"({"name": "host:port", "interval_s": seconds} or {"srv": "_vllm._tcp.decode.example", "server": "10.0.0.2:53", "interval_s": seconds}, or a list of these)";
constexpr std::string_view kKubernetesShape =
    R"({"service": "decode", "namespace": "default", "port": "http" or a number, "label_selector": "a=b", "server": "http://127.0.0.1:8001", "credentials": "/folder", "interval_s": seconds}, or a list of these)";
constexpr std::string_view kEtcdShape = R"({"server": "host:port", "prefix": "/a/", "interval_s": seconds}, or a list of these)";

// Takes a value, or says what would be one.
using Take = std::function<Status(const json::value&)>;
struct Field {
  std::string_view name;
  Take take;
};

std::string_view view_of(const json::string& text) { return {text.data(), text.size()}; }

Status allowed(std::string what) { return Status(ErrorCode::kConfig, "allowed is " + std::move(what)); }

// Where an error is: the members' names from the outside in. An error passes outwards through the readers, each adding its own.
class ConfigReader {
 public:
  ConfigReader(std::string_view text, std::string name) : text_(text), name_(std::move(name)) {}

  Result<json::value> parse() const {
    // Nesting is limited by the parser (32 levels).
    json::stream_parser parser;
    boost::system::error_code error;
    const std::size_t taken = parser.write_some(text_.data(), text_.size(), error);
    if (!error && taken == text_.size()) parser.finish(error);
    if (error) return Status(ErrorCode::kConfig, place(std::min(taken, text_.size())) + ": no valid JSON: " + error.message());
    if (text_.find_first_not_of(" \t\r\n", taken) != std::string_view::npos) {
      return Status(ErrorCode::kConfig, place(taken) + ": there is more text after the end of the JSON value");
    }
    return parser.release();
  }

  // All members of `value`, each by its field. `within` is their part of the text.
  Status read(const json::value& value, std::string_view within, const std::string& path, const std::vector<Field>& fields) const {
    const auto* object = value.if_object();
    if (object == nullptr) return wrong(within, path, allowed("an object {...}"));
    for (const auto& [key, member] : *object) {
      const std::string_view name(key.data(), key.size());
      const std::string_view member_text = json_member(within, name);
      const std::string member_path = path.empty() ? std::string(name.substr(0, 100)) : path + "." + std::string(name.substr(0, 100));
      const auto field = std::find_if(fields.begin(), fields.end(), [&](const Field& one) { return one.name == name; });
      if (field == fields.end()) return wrong(member_text, member_path, unknown(name, fields));
      if (Status status = field->take(member); !status.ok()) {
        if (status.code() != ErrorCode::kConfig || status.message().starts_with(name_ + ", line ")) return status;  // has its place already
        return wrong(member_text, member_path, status);
      }
    }
    return Status();
  }

  [[nodiscard]] std::string_view text() const { return text_; }

 private:
  static Status unknown(std::string_view name, const std::vector<Field>& fields) {
    std::string all;
    std::string_view nearest;
    std::size_t distance = 4;
    for (const Field& field : fields) {
      all.append(all.empty() ? "" : ", ").append(field.name);
      const std::size_t this_far = edit_distance(name.substr(0, 100), field.name);
      if (this_far < distance) {
        distance = this_far;
        nearest = field.name;
      }
    }
    return Status(ErrorCode::kConfig,
                  "no such field" + (nearest.empty() ? "" : ": is it " + std::string(nearest) + "?") + "; there are " + all);
  }

  [[nodiscard]] Status wrong(std::string_view at, const std::string& path, const Status& status) const {
    const std::size_t offset = at.empty() ? 0 : static_cast<std::size_t>(at.data() - text_.data());
    return Status(ErrorCode::kConfig, place(offset) + ", " + (path.empty() ? "the whole" : path) + ": " + status.message());
  }

  [[nodiscard]] std::string place(std::size_t offset) const {
    return name_ + ", line " + std::to_string(1 + std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(offset), '\n'));
  }

  std::string_view text_;
  std::string name_;
};

Take seconds(std::chrono::milliseconds& target, double lowest = 0.001) {
  return [&target, lowest](const json::value& value) {
    boost::system::error_code error;
    const double number = value.is_number() ? value.to_number<double>(error) : -1;
    if (error || !(number >= lowest && number <= kSecondsAtMost))
      return allowed("a number of seconds, " + std::string(lowest > 0 ? "from 0.001" : "from 0") + " to 10000000");
    target = std::chrono::milliseconds(static_cast<std::int64_t>(number * 1000));
    return Status();
  };
}

template <typename Number>
Take whole(Number& target, std::uint64_t lowest, std::uint64_t highest) {
  return [&target, lowest, highest](const json::value& value) {
    boost::system::error_code error;
    const auto number = value.is_number() && !value.is_double() ? value.to_number<std::uint64_t>(error) : 0;
    const bool good = value.is_number() && !value.is_double() && !error && number >= lowest && number <= highest;
    if (!good) return allowed("a whole number from " + std::to_string(lowest) + " to " + std::to_string(highest));
    target = static_cast<Number>(number);
    return Status();
  };
}

Take number(double& target, double lowest, double highest) {
  return [&target, lowest, highest](const json::value& value) {
    boost::system::error_code error;
    const double found = value.is_number() ? value.to_number<double>(error) : lowest - 1;
    if (error || !(found >= lowest && found <= highest)) return allowed(fmt::format("a number from {} to {}", lowest, highest));
    target = found;
    return Status();
  };
}

// One of a few words.
template <typename Choice>
Take choice(Choice& target, std::vector<std::pair<std::string_view, Choice>> words) {
  return [&target, words = std::move(words)](const json::value& value) {
    std::string all;
    for (const auto& [word, meaning] : words) {
      if (value.is_string() && view_of(value.get_string()) == word) {
        target = meaning;
        return Status();
      }
      all.append(all.empty() ? "\"" : ", \"").append(word).append("\"");
    }
    return allowed(all);
  };
}

Take text(std::string& target, const std::string& what) {
  return [&target, what](const json::value& value) {
    if (!value.is_string() || value.get_string().empty() || value.get_string().size() > 4096) return allowed(what + ", as a string");
    target = std::string(view_of(value.get_string()));
    return Status();
  };
}

// A bool or an optional one.
template <typename Flag>
Take yes_or_no(Flag& target) {
  return [&target](const json::value& value) {
    if (!value.is_bool()) return allowed("true or false");
    target = value.get_bool();
    return Status();
  };
}

Take policy(std::string& target) {
  return [&target](const json::value& value) {
    const auto names = policy_names();
    if (!value.is_string() || std::find(names.begin(), names.end(), view_of(value.get_string())) == names.end()) {
      return allowed(policy_names_text());
    }
    target = std::string(view_of(value.get_string()));
    return Status();
  };
}

Take kv_transfer(KvTransfer& target) {
  return [&target](const json::value& value) {
    std::string names;
    for (const auto& [word, mode] : kv_transfer_words()) {
      if (value.is_string() && view_of(value.get_string()) == word) {
        target = mode;
        return Status();
      }
      names.append(names.empty() ? "" : ", ").append(word);
    }
    return allowed("one of " + names);
  };
}

// A port, or a list of ports and "host:port=port".
Take mooncake_bootstrap(KvTransferSettings& target) {
  return [&target](const json::value& value) {
    const auto take = [&](const json::value& one) {
      if (one.is_int64()) return set_mooncake_port(target, std::to_string(one.get_int64()));
      return set_mooncake_port(target, one.is_string() ? view_of(one.get_string()) : std::string_view());
    };
    if (!value.is_array()) return take(value);
    for (const auto& one : value.get_array()) MOONPOOL_RETURN_IF_ERROR(take(one));
    return Status();
  };
}

Result<InstanceName> name_in(const json::value& value) {
  if (!value.is_string()) return allowed("\"host:port\"");
  auto name = InstanceName::parse(view_of(value.get_string()));
  if (!name.ok()) return Status(ErrorCode::kConfig, name.status().message());
  return name;
}

Take instances(std::vector<InstanceName>& target) {
  return [&target](const json::value& value) {
    if (!value.is_array()) return allowed("a list of \"host:port\"");
    for (const auto& one : value.get_array()) {
      auto name = name_in(one);
      if (!name.ok()) return name.status();
      if (std::find(target.begin(), target.end(), *name) == target.end()) target.push_back(std::move(name).value());
    }
    return Status();
  };
}

// A list of objects, or one of them.
Take each(std::string what, std::function<Status(const json::object&)> add) {
  return [what = std::move(what), add = std::move(add)](const json::value& value) {
    if (const auto* single = value.if_object(); single != nullptr) return add(*single);
    if (!value.is_array()) return allowed(what);
    for (const auto& one : value.get_array()) {
      if (!one.is_object()) return allowed(what);
      if (Status status = add(one.get_object()); !status.ok()) return status;
    }
    return Status();
  };
}

// The members of a source, of which there is no text to point at: the field's name does.
Status read_source(const json::object& object, const std::vector<Field>& fields, std::string_view what, std::string_view needed) {
  if (!object.contains(json::string_view(needed.data(), needed.size()))) return allowed(std::string(what));
  for (const auto& [key, member] : object) {
    const auto field =
        std::find_if(fields.begin(), fields.end(), [&](const Field& one) { return one.name == std::string_view(key.data(), key.size()); });
    if (field == fields.end()) return allowed(std::string(what));
    if (Status status = field->take(member); !status.ok())
      return Status(ErrorCode::kConfig, std::string(field->name) + ": " + status.message());
  }
  return Status();
}

Take host_and_port(std::optional<InstanceName>& target) {
  return [&target](const json::value& value) {
    auto name = name_in(value);
    if (!name.ok()) return name.status();
    target = std::move(name).value();
    return Status();
  };
}

// Addresses of a name, or the targets of a service's SRV records.
Take dns(Discovery& target) {
  return each(std::string(kDnsShape), [&target](const json::object& object) {
    std::optional<InstanceName> name;
    std::optional<InstanceName> server;
    std::string service;
    std::chrono::milliseconds interval{10'000};
    const bool srv = object.contains("srv");
    const Field which = srv ? Field{"srv", text(service, "the name of SRV records")} : Field{"name", host_and_port(name)};
    std::vector<Field> fields{which, {"interval_s", seconds(interval)}};
    if (srv) fields.push_back({"server", host_and_port(server)});
    MOONPOOL_RETURN_IF_ERROR(read_source(object, fields, kDnsShape, which.name));
    if (!srv) {
      target.dns.push_back({*name, interval});
      return Status();
    }
    if (server && (!server->is_literal() || server->host().find(':') != std::string::npos)) {
      return Status(ErrorCode::kConfig, "server: allowed is an IPv4 address with its port, \"10.0.0.2:53\"");
    }
    target.srv.push_back({service, server ? server->to_string() : "", interval});
    return Status();
  });
}

Take port_name(std::string& target) {
  return [&target](const json::value& value) {
    std::uint16_t number = 0;
    if (value.is_number()) {
      MOONPOOL_RETURN_IF_ERROR(whole(number, 1, 65535)(value));
      target = std::to_string(number);
      return Status();
    }
    return text(target, "a port's name or number")(value);
  };
}

Take kubernetes(std::vector<KubernetesSource>& target) {
  return each(std::string(kKubernetesShape), [&target](const json::object& object) {
    KubernetesSource source;
    MOONPOOL_RETURN_IF_ERROR(read_source(object,
                                         {{"service", text(source.service, "a service's name")},
                                          {"namespace", text(source.name_space, "a namespace")},
                                          {"port", port_name(source.port)},
                                          {"label_selector", text(source.label_selector, "a label selector")},
                                          {"server", text(source.server, "an http:// address")},
                                          {"credentials", text(source.credentials, "a folder")},
                                          {"interval_s", seconds(source.interval)}},
                                         kKubernetesShape, "service"));
    if (!source.server.empty()) {
      if (auto server = parse_http_endpoint(source.server); !server.ok()) {
        return Status(ErrorCode::kConfig, "server: " + server.status().message());
      }
    }
    target.push_back(std::move(source));
    return Status();
  });
}

Take etcd(std::vector<EtcdSource>& target) {
  return each(std::string(kEtcdShape), [&target](const json::object& object) {
    std::optional<InstanceName> server;
    std::string prefix;
    std::chrono::milliseconds interval{2'000};
    MOONPOOL_RETURN_IF_ERROR(read_source(
        object, {{"server", host_and_port(server)}, {"prefix", text(prefix, "the start of keys")}, {"interval_s", seconds(interval)}},
        kEtcdShape, "server"));
    if (prefix.empty()) return allowed(std::string(kEtcdShape));
    target.push_back({*server, prefix, interval});
    return Status();
  });
}

Take keys(KeyRing& target) {
  return each(std::string(kKeyShape), [&target](const json::object& object) {
    ApiKey key;
    double priority = 0;
    std::string digest;
    constexpr std::uint64_t kMost = 1'000'000'000'000;
    MOONPOOL_RETURN_IF_ERROR(read_source(
        object,
        {{"name", text(key.name, "the key's name")},
         {"sha256", text(digest, "64 hexadecimal digits")},
         {"role", choice<KeyRole>(key.role, {{"client", KeyRole::kClient}, {"monitor", KeyRole::kMonitor}, {"admin", KeyRole::kAdmin}})},
         {"priority", number(priority, -kPriorityAtMost, kPriorityAtMost)},
         {"weight", number(key.weight, kLeastWeight, kGreatestWeight)},
         {"requests_per_minute", whole(key.requests_per_minute, 0, kMost)},
         {"tokens_per_minute", whole(key.tokens_per_minute, 0, kMost)},
         {"burst_s", number(key.burst_s, 0.001, 1e6)}},
        kKeyShape, "sha256"));
    key.priority = static_cast<int>(priority);
    const auto parsed = parse_digest(digest);
    if (!parsed.ok()) return Status(ErrorCode::kConfig, (key.name.empty() ? "" : key.name + ": ") + parsed.status().message());
    key.digest = *parsed;
    return target.add(std::move(key));
  });
}

Result<std::string> read_small_file(const std::string& path, const char* flag) {
  std::ifstream file(path, std::ios::binary);
  std::string content(kFileAtMost + 1, '\0');
  file.read(content.data(), static_cast<std::streamsize>(content.size()));
  if (!file.eof() && !file.good()) return Status(ErrorCode::kConfig, "cannot read the file of " + std::string(flag) + ", " + path);
  content.resize(static_cast<std::size_t>(file.gcount()));
  if (content.size() > kFileAtMost) return Status(ErrorCode::kConfig, path + " is larger than a configuration can be (1 MiB)");
  return content;
}

}  // namespace

Result<Settings> apply_config(std::string_view content, const std::string& name, Settings base) {
  const ConfigReader reader(content, name);
  const auto document = reader.parse();
  if (!document.ok()) return document.status();
  Settings settings = std::move(base);
  const auto section = [&](std::string path, std::vector<Field> fields) -> Take {
    return [&reader, path = std::move(path), fields = std::move(fields)](const json::value& value) {
      std::string_view within = reader.text();
      for (std::size_t at = 0; at < path.size() && !within.empty();) {
        const std::size_t end = std::min(path.find('.', at), path.size());
        within = json_member(within, std::string_view(path).substr(at, end - at));
        at = end + 1;
      }
      return reader.read(value, within, path, fields);
    };
  };
  const auto group = [&](const std::string& role, std::string& its_policy, std::vector<InstanceName>& names, Discovery& discovery,
                         std::optional<bool>& tls, KvEventSource& events) {
    const std::string path = "groups." + role;
    return section(path, {{"policy", policy(its_policy)},
                          {"instances", instances(names)},
                          {"dns", dns(discovery)},
                          {"etcd", etcd(discovery.etcd)},
                          {"kubernetes", kubernetes(discovery.kubernetes)},
                          {"tls", yes_or_no(tls)},
                          {"kv_events", section(path + ".kv_events", {{"port", whole(events.port, 1, 65535)},
                                                                      {"replay_port", whole(events.replay_port, 1, 65535)},
                                                                      {"topic", text(events.topic, "what topics begin with")}})}});
  };
  const std::vector<std::pair<std::string_view, std::string>> log_levels{{"trace", "trace"},     {"debug", "debug"}, {"info", "info"},
                                                                         {"warning", "warning"}, {"error", "error"}, {"off", "off"}};
  Timeouts& times = settings.timeouts;
  Limits& limits = settings.limits;
  Overload& overload = settings.overload;
  const std::vector<Field> fields{
      {"model", text(settings.model, "the model's name")},
      {"policy", policy(settings.scheduling)},
      {"groups", section("groups", {{"prefill", group("prefill", settings.prefill_policy, settings.prefill, settings.prefill_discovery,
                                                      settings.prefill_tls, settings.prefill_events)},
                                    {"decode", group("decode", settings.decode_policy, settings.decode, settings.decode_discovery,
                                                     settings.decode_tls, settings.decode_events)}})},
      {"tls", section("tls", {{"cert", text(settings.tls.certificate, "a file's name")},
                              {"key", text(settings.tls.key, "a file's name")},
                              {"client_ca", text(settings.tls.client_ca, "a file's name")}})},
      {"upstream_tls", section("upstream_tls", {{"all", yes_or_no(settings.upstream_tls.all)},
                                                {"ca", text(settings.upstream_tls.ca, "a file's name")},
                                                {"cert", text(settings.upstream_tls.certificate, "a file's name")},
                                                {"key", text(settings.upstream_tls.key, "a file's name")},
                                                {"server_name", text(settings.upstream_tls.server_name, "a host's name")}})},
      {"kv_transfer", kv_transfer(settings.kv_transfer.mode)},
      {"mooncake_bootstrap", mooncake_bootstrap(settings.kv_transfer)},
      {"decode_first_below_bytes", whole(settings.decode_first_below, 0, std::uint64_t{1} << 40)},
      {"policy_options",
       section("policy_options", {{"affinity_header", text(settings.policy_options.affinity_header, "a header's name")},
                                  {"prefix_index_bytes", whole(settings.policy_options.prefix_index_bytes, 1024, std::uint64_t{1} << 36)},
                                  {"pool_transfer_cost", number(settings.policy_options.pool_transfer_cost, 0, 1)}})},
      {"timeouts", section("timeouts", {{"connect_s", seconds(times.connect)},
                                        {"prefill_s", seconds(times.prefill)},
                                        {"first_byte_s", seconds(times.first_byte)},
                                        {"between_bytes_s", seconds(times.between_bytes)},
                                        {"request_s", seconds(times.request)},
                                        {"client_header_s", seconds(times.client_header)},
                                        {"client_body_s", seconds(times.client_body)},
                                        {"client_idle_s", seconds(times.client_idle)},
                                        {"client_write_s", seconds(times.client_write)},
                                        {"upstream_idle_s", seconds(times.upstream_idle)},
                                        {"check_s", seconds(times.check)},
                                        {"drain_s", seconds(times.drain)}})},
      {"limits", section("limits", {{"header_bytes", whole(limits.header_bytes, 1024, 1U << 24)},
                                    {"body_bytes", whole(limits.body_bytes, 1, std::uint64_t{1} << 40)},
                                    {"buffered_answer_bytes", whole(limits.buffered_answer_bytes, 0, std::uint64_t{1} << 40)},
                                    {"client_connections", whole(limits.client_connections, 1, 10'000'000)},
                                    {"attempts", whole(settings.attempts, 1, 100)}})},
      {"retries", section("retries", {{"budget_share", number(settings.retries.budget_share, 0, 100)},
                                      {"budget_always", number(settings.retries.budget_always, 0, 1e9)},
                                      {"pause_s", seconds(settings.retries.first)},
                                      {"longest_pause_s", seconds(settings.retries.longest)}})},
      {"continue_streams", choice<ContinueStreams>(settings.continue_streams, {{"off", ContinueStreams::kOff},
                                                                               {"greedy", ContinueStreams::kGreedy},
                                                                               {"always", ContinueStreams::kAlways}})},
      {"continue_marker",
       choice<ContinueMarker>(settings.continue_marker,
                              {{"off", ContinueMarker::kOff}, {"comment", ContinueMarker::kComment}, {"event", ContinueMarker::kEvent}})},
      {"log", section("log", {{"level", choice<std::string>(settings.log_level, log_levels)}, {"access", yes_or_no(settings.access_log)}})},
      {"traces", section("traces", {{"sample", yes_or_no(settings.sample_traces)},
                                    {"otlp_endpoint", text(settings.otlp_endpoint, "an http:// address")},
                                    {"service_name", text(settings.service_name, "a name")}})},
      {"listen", section("listen", {{"host", text(settings.host, "an address")},
                                    {"port", whole(settings.port, 0, 65535)},
                                    {"threads", whole(settings.threads, 0, 1024)}})},
      {"health", section("health", {{"unhealthy_after", whole(settings.health.circuit.failures_to_open, 1, 1000)},
                                    {"check_interval_s", seconds(settings.health.check_every, 0)},
                                    {"open_time_s", seconds(settings.health.circuit.first_open)},
                                    {"open_time_longest_s", seconds(settings.health.circuit.longest_open)},
                                    {"first_probe_s", seconds(settings.health.first_probe)},
                                    {"slowest_probe_s", seconds(settings.health.slowest_probe)},
                                    {"slow_start_s", seconds(settings.health.slow_start, 0)}})},
      {"keys", keys(settings.keys)},
      {"keys_file", text(settings.keys_file, "the path of a file of keys")},
      {"protect_status", yes_or_no(settings.protect_status)},
      {"forward_authorization", yes_or_no(settings.forward_authorization)},
      {"overload", section("overload", {{"concurrent_requests", whole(overload.concurrent, 0, 10'000'000)},
                                        {"requests_per_instance", whole(overload.per_instance, 0, 1'000'000)},
                                        {"queue_requests", whole(overload.queue_requests, 0, 10'000'000)},
                                        {"queue_bytes", whole(overload.queue_bytes, 0, std::uint64_t{1} << 40)},
                                        {"queue_timeout_s", seconds(overload.queue_timeout)}})},
  };
  if (Status status = reader.read(*document, reader.text(), "", fields); !status.ok()) return status;
  return settings;
}

Result<Settings> read_config_file(const std::string& path, Settings base) {
  const auto content = read_small_file(path, "--config");
  if (!content.ok()) return content.status();
  const std::string keys_before = base.keys_file;
  auto settings = apply_config(*content, path, std::move(base));
  if (settings.ok() && settings->keys_file != keys_before) {
    settings->keys_file = (std::filesystem::path(path).parent_path() / settings->keys_file).string();
  }
  return settings;
}

Result<KeyRing> apply_keys(std::string_view content, const std::string& name, KeyRing base) {
  const ConfigReader reader(content, name);
  const auto document = reader.parse();
  if (!document.ok()) return document.status();
  KeyRing ring = std::move(base);
  if (Status status = reader.read(*document, reader.text(), "", {{"keys", keys(ring)}}); !status.ok()) return status;
  return ring;
}

Result<KeyRing> read_keys_file(const std::string& path, KeyRing base) {
  const auto content = read_small_file(path, "--keys-file");
  if (!content.ok()) return content.status();
  return apply_keys(*content, path, std::move(base));
}

}  // namespace moonpool::gateway
