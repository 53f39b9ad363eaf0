#include "transfer/rdma/verbs/device_names.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

namespace moonpool::transfer::rdma {
namespace {

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpaces = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(kSpaces);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kSpaces) - begin + 1);
}

std::string listed(const std::vector<KnownDevice>& known) {
  std::string text;
  for (const KnownDevice& device : known) text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", device.name, device.state);
  return text;
}

}  // namespace

Result<std::vector<std::string>> parse_device_names(std::string_view setting) {
  std::vector<std::string> names;
  setting = trimmed(setting);
  if (setting.empty() || setting == "auto") return names;
  for (std::size_t at = 0; at <= setting.size();) {
    const std::size_t comma = std::min(setting.find(',', at), setting.size());
    const std::string name(trimmed(setting.substr(at, comma - at)));
    at = comma + 1;
    if (name.empty()) {
      return Status(ErrorCode::kInvalidParams, fmt::format("\"device_name\": \"{}\" has an empty name; write \"mlx5_0,mlx5_1\"", setting));
    }
    if (std::ranges::find(names, name) != names.end()) {
      return Status(ErrorCode::kInvalidParams, fmt::format("\"device_name\": \"{}\" names {} twice", setting, name));
    }
    names.push_back(name);
  }
  return names;
}

Result<std::vector<std::size_t>> choose_devices(const std::vector<std::string>& names, const std::vector<KnownDevice>& known) {
  std::vector<std::size_t> chosen;
  if (names.empty()) {
    for (std::size_t i = 0; i < known.size(); ++i) {
      if (known[i].up) chosen.push_back(i);
    }
    if (!chosen.empty()) return chosen;
    return Status(
        ErrorCode::kNotSupported,
        fmt::format("no RDMA device is usable: {}; bring one up, name it in \"device_name\" to wait for it, or set \"protocol\": \"tcp\"",
                    listed(known)));
  }
  for (const std::string& name : names) {
    const auto found = std::ranges::find(known, name, &KnownDevice::name);
    if (found == known.end()) {
      return Status(ErrorCode::kInvalidParams,
                    fmt::format("\"device_name\": there is no RDMA device {}; this host has {}", name, listed(known)));
    }
    chosen.push_back(static_cast<std::size_t>(found - known.begin()));
  }
  return chosen;
}

}  // namespace moonpool::transfer::rdma
