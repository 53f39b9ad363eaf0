#include "store/node_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <functional>
#include <limits>
#include <optional>

#include "base/edit_distance.h"
#include "base/size_text.h"

namespace moonpool::store {

namespace {

enum class Kind { kText, kNumber, kSwitch, kSize };

// The raw values of all flags, before they are understood.
struct Values {
  std::string host = "127.0.0.1";
  std::uint64_t port = 50052;
  std::uint64_t global_segment_size = std::uint64_t{4} << 30;
  std::uint64_t local_buffer_size = 0;
  std::string master_server_address = "127.0.0.1:50051";
  std::string metadata_server;
  std::string protocol = "tcp";
  std::string device_names;
  std::string paths;
  std::string tenant_id = "default";
  std::string cluster_token_file;
  std::string log_level;
  // Of features that this build does not have.
  bool enable_http_server = false;
  std::uint64_t http_port = 9300;
  bool enable_offload = false;
  bool start_offload_rpc_server = true;
  std::uint64_t threads = 1;
  std::uint64_t mmap_arena_pool_size = std::uint64_t{8} << 30;
  bool use_mmap_arena_allocator = false;
};

struct Flag {
  std::string_view name;
  Kind kind;
  std::string_view help;  // empty: of a feature that this build does not have
  std::function<void(Values&, std::string_view text, std::uint64_t number)> set;
};

const std::vector<Flag>& flags() {
  static const std::vector<Flag> kFlags = {
      {"host", Kind::kText, "this machine's address for its peers; only this address is listened on (127.0.0.1: this machine alone)",
       [](Values& v, std::string_view t, std::uint64_t) { v.host = t; }},
      {"port", Kind::kNumber, "the port to listen on (50052)", [](Values& v, std::string_view, std::uint64_t n) { v.port = n; }},
      {"global_segment_size", Kind::kSize, "memory lent to the pool (\"4 GB\")",
       [](Values& v, std::string_view, std::uint64_t n) { v.global_segment_size = n; }},
      {"local_buffer_size", Kind::kSize, "a node that only lends needs none (0)",
       [](Values& v, std::string_view, std::uint64_t n) { v.local_buffer_size = n; }},
      {"master_server_address", Kind::kText, "host:port of the master, or several with commas (127.0.0.1:50051)",
       [](Values& v, std::string_view t, std::uint64_t) { v.master_server_address = t; }},
      {"metadata_server", Kind::kText, "where to publish the node: http://h:p/metadata, etcd://h:p, redis://h:p (nowhere)",
       [](Values& v, std::string_view t, std::uint64_t) { v.metadata_server = t; }},
      {"protocol", Kind::kText, "tcp or rdma (tcp)", [](Values& v, std::string_view t, std::uint64_t) { v.protocol = t; }},
      {"device_names", Kind::kText, "with rdma: its devices, with commas (all that are up)",
       [](Values& v, std::string_view t, std::uint64_t) { v.device_names = t; }},
      {"paths", Kind::kText, "those that data may take, some of local,shm,rdma,tcp (all)",
       [](Values& v, std::string_view t, std::uint64_t) { v.paths = t; }},
      {"tenant_id", Kind::kText, "default", [](Values& v, std::string_view t, std::uint64_t) { v.tenant_id = t; }},
      {"cluster_token_file", Kind::kText, "a file whose first line is the cluster's token (else MOONPOOL_CLUSTER_TOKEN)",
       [](Values& v, std::string_view t, std::uint64_t) { v.cluster_token_file = t; }},
      {"log_level", Kind::kText, "debug, info, warning or error (info)",
       [](Values& v, std::string_view t, std::uint64_t) { v.log_level = t; }},
      {"enable_http_server", Kind::kSwitch, "", [](Values& v, std::string_view, std::uint64_t n) { v.enable_http_server = n != 0; }},
      {"http_port", Kind::kNumber, "", [](Values& v, std::string_view, std::uint64_t n) { v.http_port = n; }},
      {"enable_offload", Kind::kSwitch, "", [](Values& v, std::string_view, std::uint64_t n) { v.enable_offload = n != 0; }},
      {"start_offload_rpc_server", Kind::kSwitch, "",
       [](Values& v, std::string_view, std::uint64_t n) { v.start_offload_rpc_server = n != 0; }},
      {"threads", Kind::kNumber, "", [](Values& v, std::string_view, std::uint64_t n) { v.threads = n; }},
      {"mmap_arena_pool_size", Kind::kNumber, "", [](Values& v, std::string_view, std::uint64_t n) { v.mmap_arena_pool_size = n; }},
      {"use_mmap_arena_allocator", Kind::kSwitch, "",
       [](Values& v, std::string_view, std::uint64_t n) { v.use_mmap_arena_allocator = n != 0; }},
  };
  return kFlags;
}

const Flag* find(std::string_view name) {
  const auto found = std::find_if(flags().begin(), flags().end(), [&](const Flag& flag) { return flag.name == name; });
  return found == flags().end() ? nullptr : &*found;
}

std::string_view nearest(std::string_view name) {
  const auto closer = [&](const Flag& a, const Flag& b) { return edit_distance(name, a.name) < edit_distance(name, b.name); };
  return std::min_element(flags().begin(), flags().end(), closer)->name;
}

std::optional<bool> parse_switch(std::string_view text) {
  for (const auto yes : {"true", "1", "yes", "on", "t", "y"}) {
    if (text == yes) return true;
  }
  for (const auto no : {"false", "0", "no", "off", "f", "n"}) {
    if (text == no) return false;
  }
  return std::nullopt;
}

Result<std::uint64_t> parse_value(const Flag& flag, std::string_view text) {
  const auto wrong = [&](std::string_view wanted) -> Status {
    return {ErrorCode::kConfig, fmt::format("--{}: \"{}\" is not {}", flag.name, text, wanted)};
  };
  switch (flag.kind) {
    case Kind::kText:
      return std::uint64_t{0};
    case Kind::kNumber: {
      std::uint64_t number = 0;
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
      if (error != std::errc() || end != text.data() + text.size()) return wrong("a whole number");
      return number;
    }
    case Kind::kSwitch: {
      const auto on = parse_switch(text);
      if (!on) return wrong("true or false");
      return std::uint64_t{*on ? 1U : 0U};
    }
    case Kind::kSize: {
      const auto size = parse_size(text);
      return size ? size : wrong("a size such as \"4 GB\" or 1073741824");
    }
  }
  return wrong("understood");
}

// Whether a flag of a missing feature asks for something: its default asks for nothing.
bool changes_anything(const Flag& flag, std::uint64_t number) {
  Values defaults;
  Values changed;
  flag.set(changed, {}, number);
  return changed.enable_http_server != defaults.enable_http_server || changed.http_port != defaults.http_port ||
         changed.enable_offload != defaults.enable_offload || changed.start_offload_rpc_server != defaults.start_offload_rpc_server ||
         changed.threads != defaults.threads || changed.mmap_arena_pool_size != defaults.mmap_arena_pool_size ||
         changed.use_mmap_arena_allocator != defaults.use_mmap_arena_allocator;
}

struct Word {
  const Flag* flag = nullptr;
  std::optional<std::string_view> value;
};

Result<Word> understand(std::string_view argument) {
  std::string_view name = argument;
  if (!name.starts_with('-') || name == "-" || name == "--") {
    return {ErrorCode::kConfig, fmt::format("\"{}\" is no flag; flags are written --name value or --name=value", argument)};
  }
  name.remove_prefix(name.starts_with("--") ? 2 : 1);
  Word word;
  if (const auto equals = name.find('='); equals != std::string_view::npos) {
    word.value = name.substr(equals + 1);
    name = name.substr(0, equals);
  }
  std::string spelled(name);
  std::replace(spelled.begin(), spelled.end(), '-', '_');
  word.flag = find(spelled);
  if (word.flag == nullptr && spelled.starts_with("no")) {
    const Flag* negated = find(std::string_view(spelled).substr(2));
    if (negated != nullptr && negated->kind == Kind::kSwitch && !word.value) return Word{negated, "false"};
  }
  if (word.flag == nullptr) {
    return {ErrorCode::kConfig, fmt::format("unknown flag --{}; the nearest one is --{} (--help lists all)", name.substr(0, 100),
                                            nearest(spelled.substr(0, 100)))};
  }
  if (word.flag->kind == Kind::kSwitch && !word.value) word.value = "true";
  return word;
}

Result<NodeSettings> settings_of(const Values& values, std::vector<std::string> warnings) {
  if (values.port == 0 || values.port > 65535)
    return {ErrorCode::kConfig, fmt::format("--port: {} is not a port from 1 to 65535", values.port)};
  NodeSettings settings;
  // A bare IPv6 address needs brackets in front of a port.
  const bool v6 = values.host.find(':') != std::string::npos && !values.host.starts_with('[');
  settings.client.local_hostname = fmt::format("{}:{}", v6 ? "[" + values.host + "]" : values.host, values.port);
  settings.client.master_address = values.master_server_address;
  settings.client.metadata_server = values.metadata_server;
  settings.client.segment_size = values.global_segment_size;
  settings.client.local_buffer_size = values.local_buffer_size;
  settings.client.protocol = values.protocol;
  settings.client.rdma.device_names = values.device_names;
  settings.client.paths = values.paths;
  settings.client.tenant = values.tenant_id;
  settings.token_file = values.cluster_token_file;
  settings.log_level = values.log_level;
  settings.warnings = std::move(warnings);
  return settings;
}

}  // namespace

Result<NodeSettings> parse_node_flags(std::span<const std::string_view> arguments) {
  Values values;
  std::vector<std::string> warnings;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--help" || arguments[i] == "-help" || arguments[i] == "-h") {
      NodeSettings settings;
      settings.help = true;
      return settings;
    }
    auto word = understand(arguments[i]);
    if (!word) return word.status();
    const Flag& flag = *word->flag;
    if (!word->value) {
      if (i + 1 == arguments.size()) return {ErrorCode::kConfig, fmt::format("--{} needs a value", flag.name)};
      word->value = arguments[++i];
    }
    const auto number = parse_value(flag, *word->value);
    if (!number) return number.status();
    if (flag.help.empty()) {
      if (changes_anything(flag, *number))
        warnings.push_back(fmt::format("--{} is for a feature that this build does not have; it changes nothing", flag.name));
    } else {
      flag.set(values, *word->value, *number);
    }
  }
  return settings_of(values, std::move(warnings));
}

std::string node_flags_help() {
  std::string text =
      "A node that lends memory to the pool. It listens on one address only; --host <this machine's address> makes it reachable from "
      "others.\n\n";
  for (const auto& flag : flags()) {
    if (!flag.help.empty()) text += fmt::format("  --{:<24} {}\n", flag.name, flag.help);
  }
  text += "\nAccepted without effect, as features of a later release:";
  for (const auto& flag : flags()) {
    if (flag.help.empty()) text += fmt::format(" --{}", flag.name);
  }
  return text + "\n";
}

}  // namespace moonpool::store
