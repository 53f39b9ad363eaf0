#include "transfer/rdma/settings.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <optional>

#include "base/edit_distance.h"

namespace moonpool::transfer::rdma {

namespace {

constexpr std::string_view kPrefix = "MOONPOOL_RDMA_";
constexpr std::int64_t kMostRetries = 7;  // a field of three bits
constexpr std::uint64_t kLargestSize = std::uint64_t{1} << 40;

std::string lower(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  std::string word(text);
  std::ranges::transform(word, word.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return word;
}

std::optional<std::int64_t> number(std::string_view text, std::int64_t least, std::int64_t most) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) return std::nullopt;
  return value;
}

// "1048576", "1mb", "64 MiB".
std::optional<std::uint64_t> size(std::string_view text, std::uint64_t least) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc()) return std::nullopt;
  std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  while (unit.starts_with(' ')) unit.remove_prefix(1);
  unsigned shift = 0;
  if (unit == "k" || unit == "kb" || unit == "kib") {
    shift = 10;
  } else if (unit == "m" || unit == "mb" || unit == "mib") {
    shift = 20;
  } else if (unit == "g" || unit == "gb" || unit == "gib") {
    shift = 30;
  } else if (!unit.empty() && unit != "b") {
    return std::nullopt;
  }
  if (value > kLargestSize >> shift || value << shift < least) return std::nullopt;
  return value << shift;
}

// Assigns a number in bounds; false when the text is none.
template <typename Field>
bool assign(Field& field, std::string_view text, std::int64_t least, std::int64_t most) {
  const auto value = number(text, least, most);
  if (value) field = static_cast<Field>(*value);
  return value.has_value();
}

bool assign_mtu(Options& options, std::string_view text) {
  const auto value = number(text, 0, 4096);
  const bool right = value && (*value == 0 || (*value >= 256 && (*value & (*value - 1)) == 0));
  if (right) options.mtu = static_cast<std::uint32_t>(*value);
  return right;
}

bool assign_waiting(Options& options, std::string_view text) {
  constexpr std::array<std::pair<std::string_view, Waiting>, 3> kWords = {
      {{"adaptive", Waiting::kAdaptive}, {"poll", Waiting::kPoll}, {"event", Waiting::kEvent}}};
  const auto found = std::ranges::find(kWords, text, [](const auto& word) { return word.first; });
  if (found != kWords.end()) options.waiting = found->second;
  return found != kWords.end();
}

bool assign_switch(bool& field, std::string_view text, std::initializer_list<std::string_view> on,
                   std::initializer_list<std::string_view> off) {
  const bool yes = std::ranges::find(on, text) != on.end();
  if (!yes && std::ranges::find(off, text) == off.end()) return false;
  field = yes;
  return true;
}

struct Setting {
  std::string_view name;
  std::string_view right;  // what to give, for the error
  bool (*set)(Options& options, std::string_view text);
};

// In order: a later one beats an earlier one.
constexpr std::array kSettings = {
    Setting{"MC_IB_PORT", "the NICs' port, from 1 to 255", [](Options& o, std::string_view t) { return assign(o.port, t, 1, 255); }},
    Setting{"MC_GID_INDEX", "an entry of the GID table, from 0 to 255, or -1",
            [](Options& o, std::string_view t) { return assign(o.gid_index, t, -1, 255); }},
    Setting{"MC_MTU", "256, 512, 1024, 2048 or 4096", assign_mtu},
    Setting{"MC_IB_TC", "a traffic class from 0 to 255, or -1",
            [](Options& o, std::string_view t) {
              const auto value = number(t, -1, 255);
              if (value) o.traffic_class = static_cast<std::uint32_t>(std::max<std::int64_t>(*value, 0));
              return value.has_value();
            }},
    Setting{"MC_RETRY_CNT", "a number from 0 to 127",
            [](Options& o, std::string_view t) {
              const auto value = number(t, 0, 127);
              if (value) o.retries = static_cast<std::uint32_t>(std::min(*value, kMostRetries));
              return value.has_value();
            }},
    Setting{"MOONPOOL_RDMA_PORT", "the NICs' port, from 1 to 255",
            [](Options& o, std::string_view t) { return assign(o.port, t, 1, 255); }},
    Setting{"MOONPOOL_RDMA_GID_INDEX", "an entry of the GID table, from 0 to 255, or auto",
            [](Options& o, std::string_view t) { return assign(o.gid_index, t == "auto" ? "-1" : t, -1, 255); }},
    Setting{"MOONPOOL_RDMA_MTU", "256, 512, 1024, 2048 or 4096, or 0 for the port's", assign_mtu},
    Setting{"MOONPOOL_RDMA_TRAFFIC_CLASS", "a traffic class (DSCP << 2) from 0 to 255",
            [](Options& o, std::string_view t) { return assign(o.traffic_class, t, 0, 255); }},
    Setting{"MOONPOOL_RDMA_SERVICE_LEVEL", "a service level from 0 to 15",
            [](Options& o, std::string_view t) { return assign(o.service_level, t, 0, 15); }},
    Setting{"MOONPOOL_RDMA_ACK_TIMEOUT", "n for 4.096 us << n, from 1 to 31",
            [](Options& o, std::string_view t) { return assign(o.ack_timeout, t, 1, 31); }},
    Setting{"MOONPOOL_RDMA_RETRIES", "a number from 0 to 7",
            [](Options& o, std::string_view t) { return assign(o.retries, t, 0, kMostRetries); }},
    Setting{"MOONPOOL_RDMA_CONNECTION_MANAGER", "1 or 0",
            [](Options& o, std::string_view t) {
              return assign_switch(o.connection_manager, t, {"1", "true", "yes", "on"}, {"0", "false", "no", "off"});
            }},
    Setting{"MOONPOOL_RDMA_WAITING", "adaptive, poll or event", assign_waiting},
    Setting{"MOONPOOL_RDMA_SPIN_US", "microseconds, from 0 to 1000000",
            [](Options& o, std::string_view t) {
              const auto value = number(t, 0, 1'000'000);
              if (value) o.spin_time = std::chrono::microseconds(*value);
              return value.has_value();
            }},
    Setting{"MOONPOOL_RDMA_SESSIONS", "a number from 1 to 64",
            [](Options& o, std::string_view t) { return assign(o.sessions_per_peer, t, 1, 64); }},
    Setting{"MOONPOOL_RDMA_WORK_REQUESTS", "a number from 16 to 32768",
            [](Options& o, std::string_view t) { return assign(o.work_requests, t, 16, 32768); }},
    Setting{"MOONPOOL_RDMA_STRIPE", "a size from 4KB on, such as 1MB",
            [](Options& o, std::string_view t) {
              const auto value = size(t, 4096);
              if (value) o.stripe_bytes = *value;
              return value.has_value();
            }},
    Setting{"MOONPOOL_RDMA_STAGING", "a size from 1MB on, such as 64MB",
            [](Options& o, std::string_view t) {
              const auto value = size(t, 1U << 20);
              if (value) o.staging_bytes = *value;
              return value.has_value();
            }},
    Setting{"MOONPOOL_RDMA_COME_BACK_MS", "milliseconds, from 1 to 86400000",
            [](Options& o, std::string_view t) {
              const auto value = number(t, 1, 86'400'000);
              if (value) o.come_back_after = std::chrono::milliseconds(*value);
              return value.has_value();
            }},
    Setting{"MOONPOOL_RDMA_HUGE_PAGES", "auto or never",
            [](Options& o, std::string_view t) { return assign_switch(o.huge_pages, t, {"auto"}, {"never"}); }},
};

const Setting* find(std::string_view name) {
  const auto found = std::ranges::find(kSettings, name, &Setting::name);
  return found == kSettings.end() ? nullptr : &*found;
}

Status unknown(std::string_view name) {
  const auto ours = [](const Setting& setting) { return setting.name.starts_with(kPrefix); };
  const Setting* nearest = nullptr;
  for (const auto& setting : kSettings) {
    if (!ours(setting)) continue;
    if (nearest == nullptr || edit_distance(name, setting.name) < edit_distance(name, nearest->name)) nearest = &setting;
  }
  return {ErrorCode::kConfig, std::string(name.substr(0, 100)) + ": there is no such setting; the nearest one is " +
                                  std::string(nearest->name) + " (docs/rdma.md lists all)"};
}

}  // namespace

bool is_rdma_variable(std::string_view name) { return name.starts_with(kPrefix) || find(name) != nullptr; }

Variables variables_of(const char* const* environment) {
  Variables variables;
  for (; environment != nullptr && *environment != nullptr; ++environment) {
    const std::string_view entry(*environment);
    const auto equals = entry.find('=');
    if (equals == std::string_view::npos || !is_rdma_variable(entry.substr(0, equals))) continue;
    variables.emplace(entry.substr(0, equals), entry.substr(equals + 1));
  }
  return variables;
}

Result<Options> with_variables(Options options, const Variables& variables) {
  for (const auto& [name, text] : variables) {
    if (name.starts_with(kPrefix) && find(name) == nullptr) return unknown(name);
  }
  for (const auto& setting : kSettings) {
    const auto given = variables.find(setting.name);
    if (given == variables.end()) continue;
    const std::string word = lower(given->second);
    if (word.empty() || setting.set(options, word)) continue;
    return Status(ErrorCode::kConfig,
                  std::string(setting.name) + ": give " + std::string(setting.right) + "; got '" + given->second.substr(0, 100) + "'");
  }
  return options;
}

}  // namespace moonpool::transfer::rdma
