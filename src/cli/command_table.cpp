#include "cli/command_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/edit_distance.h"

namespace moonpool::cli {

namespace {

constexpr std::size_t kNearEnough = 3;

int run_command(const Command& command, std::string name, int argc, char** argv) {
  std::vector<char*> arguments(argv, argv + argc);
  arguments[0] = name.data();
  arguments.push_back(nullptr);
  return command.run(argc, arguments.data());
}

}  // namespace

const Command* find_by_program(std::span<const Command> commands, std::string_view program) {
  const std::string_view base = program.substr(program.find_last_of('/') + 1);
  const auto found = std::find_if(commands.begin(), commands.end(),
                                  [&](const Command& command) { return !command.program_name.empty() && command.program_name == base; });
  return found == commands.end() ? nullptr : &*found;
}

const Command* find_by_name(std::span<const Command> commands, std::string_view name) {
  const auto found = std::find_if(commands.begin(), commands.end(), [&](const Command& command) { return command.name == name; });
  return found == commands.end() ? nullptr : &*found;
}

std::optional<std::string_view> nearest_command(std::span<const Command> commands, std::string_view name) {
  std::optional<std::string_view> best;
  std::size_t best_distance = kNearEnough + 1;
  for (const Command& command : commands) {
    // A word that shares nothing with the command is within three edits of every short one.
    const std::size_t distance = edit_distance(name.substr(0, 64), command.name);
    if (distance < best_distance && distance < command.name.size()) {
      best = command.name;
      best_distance = distance;
    }
  }
  return best;
}

std::string help_text(std::span<const Command> commands) {
  std::string text = "usage: moonpool COMMAND [options]\n\n";
  for (const Command& command : commands) {
    text += fmt::format("  {:<10} {}", command.name, command.summary);
    if (!command.program_name.empty()) text += fmt::format(" (also: {})", command.program_name);
    text += '\n';
  }
  text += "\n  COMMAND --help lists its options; moonpool --version says which this is\n";
  return text;
}

int dispatch(std::span<const Command> commands, std::string_view version, int argc, char** argv) {
  if (argc < 1) return 2;
  if (const Command* command = find_by_program(commands, argv[0]))
    return run_command(*command, std::string(command->program_name), argc, argv);
  const std::string_view word = argc > 1 ? argv[1] : "";
  if (word == "--version" || word == "-V" || word == "version") {
    fmt::print("moonpool {}\n", version);
    return 0;
  }
  if (word == "--help" || word == "-h" || word == "help") {
    fmt::print("{}", help_text(commands));
    return 0;
  }
  if (word.empty()) {
    fmt::print(stderr, "{}", help_text(commands));
    return 2;
  }
  if (const Command* command = find_by_name(commands, word))
    return run_command(*command, fmt::format("moonpool {}", word), argc - 1, argv + 1);
  const auto near = nearest_command(commands, word);
  fmt::print(stderr, "moonpool: there is no command '{}'{}\n\n{}", word.substr(0, 100),
             near ? fmt::format(": did you mean '{}'?", *near) : "", help_text(commands));
  return 2;
}

}  // namespace moonpool::cli
