// Every flag that the master knows: its name, its default as the user sees it, and what it does (or which feature it belongs to).
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "master/config.h"

namespace moonpool::master {

// What flags set that is not in MasterConfig itself.
struct FlagTarget {
  MasterConfig config;
  std::string config_path;
  std::string token_file;
  std::uint16_t rpc_port = 0;  // 0: --port holds
};

struct FlagSpec {
  std::string_view name;
  bool is_switch = false;
  std::string_view default_text;
  std::string_view help;  // of a flag without a feature: the feature's name
  // Takes the value; an error says what would be right, without naming the flag. Null: the feature does not exist yet.
  std::function<Status(FlagTarget&, const std::string&)> set;
};

[[nodiscard]] std::span<const FlagSpec> flag_table();
[[nodiscard]] const FlagSpec* find_flag(std::string_view name);
// The known name with the smallest edit distance.
[[nodiscard]] std::string_view nearest_flag(std::string_view name);

}  // namespace moonpool::master
