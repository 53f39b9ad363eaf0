#include "transfer/cuda/settings.h"

#include <unistd.h>  // environ

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "base/edit_distance.h"
#include "base/logging.h"
#include "base/size_text.h"

namespace moonpool::transfer::cuda {

namespace {

constexpr std::string_view kPrefix = "MOONPOOL_CUDA_";
constexpr std::uint32_t kMostMultiprocessors = 1024;  // more than any device has
constexpr std::uint64_t kLeastStaging = std::uint64_t{1} << 20;
constexpr std::uint64_t kMostStaging = std::uint64_t{1} << 40;

bool set_multiprocessors(Settings& settings, std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value == 0 || value > kMostMultiprocessors) return false;
  settings.multiprocessors = value;
  return true;
}

bool set_staging(Settings& settings, std::string_view text) {
  const auto bytes = parse_size(text);
  if (!bytes || *bytes < kLeastStaging || *bytes > kMostStaging) return false;
  settings.staging_bytes = *bytes;
  return true;
}

std::optional<bool> switch_of(std::string_view text) {
  constexpr std::array<std::string_view, 4> kOn = {"1", "true", "yes", "on"};
  constexpr std::array<std::string_view, 4> kOff = {"0", "false", "no", "off"};
  if (std::ranges::find(kOn, text) != kOn.end()) return true;
  if (std::ranges::find(kOff, text) != kOff.end()) return false;
  return std::nullopt;
}

bool set_switch(bool& field, std::string_view text) {
  const auto value = switch_of(text);
  field = value.value_or(field);
  return value.has_value();
}

bool set_size_or_none(std::uint64_t& field, std::string_view text) {
  const auto bytes = text == "0" ? Result<std::uint64_t>(0) : parse_size(text);
  if (!bytes || *bytes > kMostStaging) return false;
  field = *bytes;
  return true;
}

struct Variable {
  std::string_view name;
  std::string_view right;  // what to give
  bool (*set)(Settings& settings, std::string_view text);
};

constexpr std::array kVariables = {
    Variable{"MOONPOOL_CUDA_SMS", "a number of multiprocessors from 1 to 1024", set_multiprocessors},
    Variable{"MOONPOOL_CUDA_STAGING", "a size from 1MB on, such as 64MB", set_staging},
    Variable{"MOONPOOL_CUDA_DEVICE_STAGING", "0, or a size such as 160MB",
             [](Settings& s, std::string_view text) { return set_size_or_none(s.device_staging_bytes, text); }},
    Variable{"MOONPOOL_CUDA_GPUDIRECT", "0, or a size such as 64MB",
             [](Settings& s, std::string_view text) { return set_size_or_none(s.nic_ring_bytes, text); }},
    Variable{"MOONPOOL_CUDA_CHECKSUMS", "1 or 0", [](Settings& s, std::string_view text) { return set_switch(s.checksums, text); }},
    Variable{"MOONPOOL_CUDA_DEFAULT_STREAM", "1 or 0",
             [](Settings& s, std::string_view text) { return set_switch(s.after_default_stream, text); }},
};

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

void take(Settings& settings, std::string_view name, std::string_view value) {
  const auto found = std::ranges::find(kVariables, name, &Variable::name);
  if (found == kVariables.end()) {
    const auto nearest =
        std::ranges::min_element(kVariables, {}, [&](const Variable& variable) { return edit_distance(name, variable.name); });
    log::warning("{}: there is no such setting, it changes nothing; the nearest one is {}", name.substr(0, 100), nearest->name);
    return;
  }
  const std::string_view text = trimmed(value);
  if (text.empty() || found->set(settings, text)) return;
  log::warning("{}='{}' is not understood, the default is taken: give {}", name, text.substr(0, 100), found->right);
}

}  // namespace

Settings Settings::from_environment() {
  Settings settings;
  for (const char* const* entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const auto equals = text.find('=');
    if (text.starts_with(kPrefix) && equals != std::string_view::npos) take(settings, text.substr(0, equals), text.substr(equals + 1));
  }
  return settings;
}

}  // namespace moonpool::transfer::cuda
