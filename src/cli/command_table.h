// The commands of the moonpool program: which one a command line means, and the help that lists them.
//
// A command is found by the name the program was called by (the incumbent's program names) or by its first argument. Pure functions over
// a table, so that main() is only the table and a call.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace moonpool::cli {

struct Command {
  std::string_view name;          // "moonpool <name>"
  std::string_view program_name;  // called by this name, the program runs this command; empty: none
  std::string_view summary;       // one line of the help
  std::function<int(int, char**)> run;
};

// The command that argv[0] names, whatever folder it lies in; null for "moonpool" or any other name.
[[nodiscard]] const Command* find_by_program(std::span<const Command> commands, std::string_view program);
[[nodiscard]] const Command* find_by_name(std::span<const Command> commands, std::string_view name);

// The name of a command within three edits of `name`; nullopt when none is near.
[[nodiscard]] std::optional<std::string_view> nearest_command(std::span<const Command> commands, std::string_view name);

[[nodiscard]] std::string help_text(std::span<const Command> commands);

// Runs what the command line asks for and returns the process's exit status: that of the command, 0 for help and version, 2 for a
// command line that means nothing. A command sees its own name as argv[0].
int dispatch(std::span<const Command> commands, std::string_view version, int argc, char** argv);

}  // namespace moonpool::cli
