// The command line of the master, in the manner that mooncake_master's users know (gflags).
//
// --name value, --name=value, one dash or two, - or _ within names; --flag, --noflag and --flag=false for switches. Every flag of
// mooncake_master is known: those with a feature behind are honoured, the others draw a warning that names the feature when they are given
// anything but their default. An unknown flag is an error with the nearest name, a bad value an error with flag, value and what is right.
// --config_path names a JSON file of the same names; the command line wins over it.
// Pure: the environment and files are read through FlagSources. Threads: values, no shared state.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "master/config.h"

namespace moonpool::master {

struct FlagSources {
  std::function<std::optional<std::string>(const std::string& name)> environment;
  std::function<Result<std::string>(const std::string& path)> read_file;
  // The process's own.
  [[nodiscard]] static FlagSources real();
};

struct ParsedFlags {
  MasterConfig config;
  std::vector<std::string> warnings;
  bool help = false;
};

// `arguments` without the program's name. kConfig with a sentence for the user.
[[nodiscard]] Result<ParsedFlags> parse_flags(std::span<const std::string> arguments, const FlagSources& sources);
[[nodiscard]] std::string flags_help();

}  // namespace moonpool::master
