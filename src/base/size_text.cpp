#include "base/size_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <string>

namespace moonpool {

Result<std::uint64_t> parse_size(std::string_view text) {
  const Status wrong{ErrorCode::kConfig,
                     fmt::format("\"{}\" is not a size such as \"4 GB\", \"512 MiB\" or 1073741824", text.substr(0, 100))};
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
  if (error != std::errc() || !(number >= 0)) return wrong;
  std::string unit(end, text.data() + text.size());
  std::erase(unit, ' ');
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  if (unit.ends_with("IB")) unit.erase(unit.size() - 2, 1);
  constexpr std::array<std::string_view, 5> kUnits = {"B", "KB", "MB", "GB", "TB"};
  std::size_t power = 0;
  if (!unit.empty()) {
    const auto found = std::find_if(kUnits.begin(), kUnits.end(),
                                    [&](std::string_view one) { return unit == one || (one.size() == 2 && unit == one.substr(0, 1)); });
    if (found == kUnits.end()) return wrong;
    power = static_cast<std::size_t>(found - kUnits.begin());
  }
  const double bytes = number * static_cast<double>(std::uint64_t{1} << (10 * power));
  if (bytes >= 9.0e18) return wrong;
  return static_cast<std::uint64_t>(bytes);
}

}  // namespace moonpool
