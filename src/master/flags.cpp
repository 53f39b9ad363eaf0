#include "master/flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "master/flag_table.h"

namespace moonpool::master {

namespace {

constexpr std::size_t kMostFileBytes = 1U << 20;

Status config_error(std::string text) { return {ErrorCode::kConfig, std::move(text)}; }

std::optional<std::string> as_switch(std::string value) {
  std::transform(value.begin(), value.end(), value.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const auto* yes : {"true", "t", "yes", "y", "1"}) {
    if (value == yes) return "true";
  }
  for (const auto* no : {"false", "f", "no", "n", "0"}) {
    if (value == no) return "false";
  }
  return std::nullopt;
}

// One flag, from wherever it came; `where` begins the error text ("flag --port", "config.json: \"port\"").
Status apply(const FlagSpec& spec, std::string value, const std::string& where, FlagTarget& target, std::vector<std::string>& warnings) {
  if (spec.is_switch) {
    const auto normal = as_switch(value);
    if (!normal) return config_error(fmt::format("{}: '{}' is not true or false", where, value));
    value = *normal;
  }
  if (!spec.set) {
    if (value != spec.default_text)
      warnings.push_back(fmt::format("{} = '{}' has no effect: {} is not there yet", where, value, spec.help));
    return {};
  }
  const auto status = spec.set(target, value);
  if (status.code() == ErrorCode::kNotSupported) {
    warnings.push_back(fmt::format("{} = '{}' has no effect: {}", where, value, status.message()));
    return {};
  }
  if (!status.ok()) return config_error(fmt::format("{}: '{}' is wrong; it takes {}", where, value, status.message()));
  return {};
}

std::string unknown_name(std::string_view name) {
  return fmt::format("is not known; did you mean --{}? (--help lists all)", nearest_flag(name));
}

Result<std::string> as_text(const boost::json::value& value) {
  if (value.is_string()) return std::string(value.get_string());
  if (value.is_bool()) return std::string(value.get_bool() ? "true" : "false");
  if (value.is_int64()) return std::to_string(value.get_int64());
  if (value.is_uint64()) return std::to_string(value.get_uint64());
  if (value.is_double()) return fmt::format("{}", value.get_double());
  return config_error("a string, a number, true or false is wanted here");
}

Status apply_file(const std::string& path, const std::string& content, FlagTarget& target, std::vector<std::string>& warnings) {
  boost::json::error_code error;
  boost::json::parse_options options;
  options.max_depth = 4;
  options.allow_comments = true;
  const auto parsed = boost::json::parse(content, error, {}, options);
  if (error) return config_error(fmt::format("{}: is not valid JSON: {}", path, error.message()));
  if (!parsed.is_object()) return config_error(fmt::format("{}: a JSON object is wanted, such as {{\"port\": 50051}}", path));
  for (const auto& [key, value] : parsed.get_object()) {
    const std::string name(key);
    const auto where = fmt::format("{}: \"{}\"", path, name);
    const auto* spec = find_flag(name);
    if (spec == nullptr) return config_error(where + " " + unknown_name(name));
    if (name == "config_path") return config_error(where + ": one file cannot name another");
    const auto text = as_text(value);
    if (!text.ok()) return config_error(where + ": " + text.status().message());
    MOONPOOL_RETURN_IF_ERROR(apply(*spec, *text, where, target, warnings));
  }
  return {};
}

struct Given {
  const FlagSpec* spec;
  std::string value;
};

// Splits the command line into flags and their values.
Result<std::vector<Given>> read_arguments(std::span<const std::string> arguments, bool& help) {
  std::vector<Given> given;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const auto dashes = std::min<std::size_t>(argument.find_first_not_of('-'), 3);
    if (dashes == 0 || dashes > 2) {
      return config_error(fmt::format("'{}' is not a flag: flags begin with - or --, and values follow their flag", argument));
    }
    const auto equals = argument.find('=');
    std::string name = argument.substr(dashes, equals == std::string::npos ? std::string::npos : equals - dashes);
    std::replace(name.begin(), name.end(), '-', '_');
    if (name == "help" || name == "h" || name == "helpfull") {
      help = true;
      continue;
    }
    const auto* spec = find_flag(name);
    if (spec == nullptr && name.starts_with("no")) {
      spec = find_flag(std::string_view(name).substr(2));
      if (spec != nullptr && spec->is_switch && equals == std::string::npos) {
        given.push_back({spec, "false"});
        continue;
      }
      spec = nullptr;
    }
    if (spec == nullptr) return config_error(fmt::format("flag --{} {}", name, unknown_name(name)));
    if (equals != std::string::npos) {
      given.push_back({spec, argument.substr(equals + 1)});
    } else if (spec->is_switch) {
      const bool value_follows = i + 1 < arguments.size() && !arguments[i + 1].starts_with('-');
      given.push_back({spec, value_follows ? arguments[++i] : "true"});
    } else if (i + 1 < arguments.size()) {
      given.push_back({spec, arguments[++i]});
    } else {
      return config_error(fmt::format("flag --{}: its value is missing", name));
    }
  }
  return given;
}

Status read_token(const FlagTarget& target, const FlagSources& sources, MasterConfig& config) {
  if (!target.token_file.empty()) {
    auto content = sources.read_file(target.token_file);
    if (!content.ok()) return config_error("flag --cluster_token_file: " + content.status().message());
    config.cluster_token = *content;
    while (!config.cluster_token.empty() && std::string_view("\r\n \t").find(config.cluster_token.back()) != std::string_view::npos) {
      config.cluster_token.pop_back();
    }
    if (config.cluster_token.empty()) return config_error(fmt::format("flag --cluster_token_file: {} is empty", target.token_file));
  } else if (const auto token = sources.environment("MOONPOOL_CLUSTER_TOKEN")) {
    config.cluster_token = *token;
  }
  return {};
}

}  // namespace

FlagSources FlagSources::real() {
  return {[](const std::string& name) -> std::optional<std::string> {
            const char* value = std::getenv(name.c_str());
            return value == nullptr ? std::nullopt : std::optional<std::string>(value);
          },
          [](const std::string& path) -> Result<std::string> {
            std::ifstream file(path, std::ios::binary);
            if (!file) return Status(ErrorCode::kConfig, fmt::format("{} cannot be opened for reading", path));
            std::string content(kMostFileBytes + 1, '\0');
            file.read(content.data(), static_cast<std::streamsize>(content.size()));
            content.resize(static_cast<std::size_t>(file.gcount()));
            if (content.size() > kMostFileBytes) return Status(ErrorCode::kConfig, fmt::format("{} has more than 1 MiB", path));
            if (file.bad()) return Status(ErrorCode::kConfig, fmt::format("{} cannot be read", path));
            return content;
          }};
}

Result<ParsedFlags> parse_flags(std::span<const std::string> arguments, const FlagSources& sources) {
  ParsedFlags parsed;
  const auto given = read_arguments(arguments, parsed.help);
  if (!given.ok()) return given.status();
  FlagTarget target;
  // The file first, so that the command line wins.
  for (const auto& [spec, value] : *given) {
    if (spec->name == "config_path") target.config_path = value;
  }
  if (!target.config_path.empty()) {
    const auto path = target.config_path;
    const auto content = sources.read_file(path);
    if (!content.ok()) return config_error("flag --config_path: " + content.status().message());
    MOONPOOL_RETURN_IF_ERROR(apply_file(path, *content, target, parsed.warnings));
  }
  for (const auto& [spec, value] : *given) {
    MOONPOOL_RETURN_IF_ERROR(apply(*spec, value, fmt::format("flag --{}", spec->name), target, parsed.warnings));
  }
  parsed.config = target.config;
  if (target.rpc_port != 0) parsed.config.port = target.rpc_port;
  if (parsed.config.eviction_ratio >= parsed.config.eviction_high_watermark_ratio) {
    return config_error(fmt::format("flag --eviction_ratio: {} has to be below --eviction_high_watermark_ratio, which is {}",
                                    parsed.config.eviction_ratio, parsed.config.eviction_high_watermark_ratio));
  }
  MOONPOOL_RETURN_IF_ERROR(read_token(target, sources, parsed.config));
  return parsed;
}

std::string flags_help() {
  std::string text =
      "moonpool master (mooncake_master): keeps the pool's objects and their places.\n\n"
      "  --name value or --name=value; --flag, --noflag or --flag=false for switches\n\n";
  for (const auto& spec : flag_table()) {
    if (spec.set)
      text +=
          fmt::format("  --{} (default {})\n        {}\n", spec.name, spec.default_text.empty() ? "none" : spec.default_text, spec.help);
  }
  text += "\nKnown from mooncake_master, without effect yet:\n";
  for (const auto& spec : flag_table()) {
    if (!spec.set) text += fmt::format("  --{} ({})\n", spec.name, spec.help);
  }
  return text;
}

}  // namespace moonpool::master
