// The master's command line (one argument a line) and, after a NUL, its JSON config file.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "master/flags.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const auto mark = input.find('\0');
  const std::string file = mark == std::string::npos ? "" : input.substr(mark + 1);
  std::vector<std::string> arguments;
  std::string line;
  for (const char c : input.substr(0, mark)) {
    if (c != '\n') {
      line.push_back(c);
      continue;
    }
    arguments.push_back(std::move(line));
    line.clear();
  }
  if (!line.empty()) arguments.push_back(std::move(line));
  if (mark != std::string::npos) arguments.emplace_back("--config_path=fuzz.json");
  const moonpool::master::FlagSources sources{[](const std::string&) { return std::nullopt; },
                                              [&](const std::string&) -> moonpool::Result<std::string> { return file; }};
  const auto parsed = moonpool::master::parse_flags(arguments, sources);
  if (!parsed.ok() && parsed.status().message().empty()) __builtin_trap();
  return 0;
}
