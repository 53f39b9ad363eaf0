// What tests need to run real programs: child processes that cannot outlive the test, free ports, temporary folders, awaited conditions,
// times that the machine's neighbours may have spoilt.
//
// Nothing here sleeps for a fixed time: wait_until() polls a condition and gives up at its deadline. A test that needs a program which is
// not installed fails (find_program names the package); it does not skip.
// Threads: each object belongs to one thread. A ChildProcess must be started from a thread that lives as long as it is wanted: the kernel
// kills the child when that thread ends (PR_SET_PDEATHSIG), so that even a test that crashes leaves nothing behind.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/deadline.h"
#include "base/result.h"

namespace moonpool::test {

// A folder of its own under the system's temporary folder, removed with all it holds on destruction.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  // The path of `name` in it, as a string for command lines.
  [[nodiscard]] std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

struct ChildOptions {
  std::vector<std::string> argv{};                   // argv[0] is looked up in PATH
  std::map<std::string, std::string> environment{};  // on top of the test's own
  std::string log_file{};                            // receives standard output and error (appended); empty: inherited
  std::string working_directory{};                   // empty: the test's own
};

// A program in a process group of its own. Destruction stops the group: SIGTERM, then SIGKILL.
class ChildProcess {
 public:
  [[nodiscard]] static Result<ChildProcess> start(const ChildOptions& options);

  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] bool running();
  // To the whole group (SIGSTOP, SIGCONT, SIGINT...). No effect once it has ended.
  void signal(int number);
  // The exit status (128 + signal number if a signal ended it), or nullopt if it still runs at the deadline.
  [[nodiscard]] std::optional<int> wait(Deadline deadline);
  // Ends the group and reaps it; safe to call again.
  void stop(std::chrono::milliseconds grace = std::chrono::seconds(5));
  void kill();  // at once, as kill -9
  // What it has written to its log file so far.
  [[nodiscard]] std::string output() const;

 private:
  ChildProcess(pid_t pid, std::string log_file) : pid_(pid), log_file_(std::move(log_file)) {}
  bool reap(bool block);

  pid_t pid_ = -1;  // -1 once moved from
  std::optional<int> exit_status_;
  std::string log_file_;
};

// A TCP port that nothing on 127.0.0.1 uses now, below the kernel's range for outgoing connections, so that it stays free until it is used.
[[nodiscard]] std::uint16_t free_port();

// The full path of `name` in PATH, or an error that says which Debian package to install.
[[nodiscard]] Result<std::string> find_program(const std::string& name, const std::string& package);

// True as soon as `condition` is; false if the deadline came first. The condition is called on this thread, every few milliseconds.
[[nodiscard]] bool wait_until(const std::function<bool()>& condition, Deadline deadline);

// Whether a time is below `bound`. One that is not is measured again, at most twice, since the machine has neighbours; each such time is
// printed. `measure` does the whole of it on a fresh subject and EXPECTs all that is no time itself: what fails there fails the test,
// however often the time is measured.
[[nodiscard]] bool takes_less_than(std::chrono::nanoseconds bound, const std::function<std::chrono::nanoseconds()>& measure);

// Whether a TCP connection to host:port is accepted now (an IPv4 or IPv6 literal).
[[nodiscard]] bool accepts_connections(const std::string& host, std::uint16_t port);

}  // namespace moonpool::test
