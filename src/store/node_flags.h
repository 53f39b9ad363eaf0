// The command line of the standalone node (`moonpool node`, `mooncake_client`), in the style of gflags: --name value, --name=value, one or
// two dashes, --switch and --noswitch.
//
// An unknown flag is an error that names the nearest one; a known flag of a feature that this build does not have is a warning. Pure
// functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "store/client.h"

namespace moonpool::store {

struct NodeSettings {
  ClientOptions client;
  std::string token_file;  // whose first line is the cluster token; empty: none
  std::string log_level;
  std::vector<std::string> warnings;  // about flags that change nothing here
  bool help = false;
};

// `arguments` without the program's name. kConfig names the flag and what would be right.
[[nodiscard]] Result<NodeSettings> parse_node_flags(std::span<const std::string_view> arguments);
// One line a flag, with its default.
[[nodiscard]] std::string node_flags_help();

}  // namespace moonpool::store
