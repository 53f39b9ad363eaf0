// Versions: this program, the kernel, the libraries that are opened at run time, and the Python environment that engines run in.
//
// The environment's Python is asked by running it with a short script; it is killed at the deadline. Nothing is installed or changed.
// Threads: any.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/deadline.h"
#include "base/result.h"
#include "cli/doctor/finding.h"

namespace moonpool::cli::doctor {

// This binary's release and the kernel's.
[[nodiscard]] Findings check_versions();

struct Library {
  bool present = false;
  std::string version;  // of its file: "1.14.44.0"; empty when the name does not tell
  std::string error;    // the loader's words
};
// Opens it as the transports do, and lets go of it.
[[nodiscard]] Library open_library(const char* soname);
[[nodiscard]] Findings judge_libraries(const Library& verbs, const Library& connection_manager, const Library& cuda, bool wants_rdma);

// What the script prints. Empty texts: not installed.
struct PythonFacts {
  std::string version;  // "3.11.2"
  std::string executable;
  std::string moonpool;   // of the installed distribution
  std::string incumbent;  // mooncake-transfer-engine
  std::string vllm;
  std::string module_file;   // where mooncake.store comes from
  std::string import_error;  // why it cannot be imported
};
[[nodiscard]] Result<PythonFacts> parse_python_facts(std::string_view json);
// The interpreter of the environment: the one that started this program, VIRTUAL_ENV's, the one beside `program`, else python3 of PATH.
[[nodiscard]] std::string choose_python(const std::optional<std::string>& starter, const std::optional<std::string>& virtual_environment,
                                        const std::string& program);
// kUnavailable when it cannot be run, kRpcTimeout when it was killed.
[[nodiscard]] Result<std::string> ask_python(const std::string& interpreter, Deadline deadline);
[[nodiscard]] Findings judge_python(const PythonFacts& facts, std::string_view own_version);

// PYTHONHASHSEED as this environment has it. `vllm`: whether vLLM is installed here.
[[nodiscard]] Findings judge_hash_seed(const std::optional<std::string>& seed, bool vllm);

}  // namespace moonpool::cli::doctor
