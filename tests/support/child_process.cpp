#include <fcntl.h>
#include <linux/close_range.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "tests/support/test_support.h"

extern char** environ;  // NOLINT(readability-redundant-declaration): POSIX leaves the declaration to the program

namespace moonpool::test {

namespace {

std::vector<std::string> merged_environment(const std::map<std::string, std::string>& extra) {
  std::vector<std::string> merged;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    if (!extra.contains(std::string(text.substr(0, text.find('='))))) merged.emplace_back(text);
  }
  for (const auto& [name, value] : extra) merged.push_back(name + "=" + value);
  return merged;
}

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> pointers;
  for (auto& text : texts) pointers.push_back(text.data());
  pointers.push_back(nullptr);
  return pointers;
}

// Everything exec needs, made before the fork: the child of a threaded process may not allocate.
struct Image {
  char** argv;
  char** environment;
  const char* directory;  // nullptr: unchanged
  int log_fd;             // -1: inherited
  int report_fd;          // receives errno if the program could not be started
  pid_t parent;
};

[[noreturn]] void become(const Image& image) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != image.parent) ::_exit(127);  // the test died between fork and prctl
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (image.log_fd >= 0) {
    ::dup2(image.log_fd, STDOUT_FILENO);
    ::dup2(image.log_fd, STDERR_FILENO);
  }
  ::close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);  // a listening socket of the test's would otherwise live on in the child
  const bool there = image.directory == nullptr || ::chdir(image.directory) == 0;
  if (there) ::execvpe(image.argv[0], image.argv, image.environment);
  const int error = errno;
  [[maybe_unused]] const auto written = ::write(image.report_fd, &error, sizeof error);
  ::_exit(127);
}

}  // namespace

Result<ChildProcess> ChildProcess::start(const ChildOptions& options) {
  if (options.argv.empty()) return Status(ErrorCode::kInvalidParams, "no program to start: argv is empty");
  auto argv = options.argv;
  auto environment = merged_environment(options.environment);
  auto argv_pointers = pointers_to(argv);
  auto environment_pointers = pointers_to(environment);

  int report[2];
  if (::pipe2(report, O_CLOEXEC) != 0) return Status(ErrorCode::kInternal, std::string("pipe: ") + std::strerror(errno));
  int log_fd = -1;
  if (!options.log_file.empty()) {
    log_fd = ::open(options.log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (log_fd < 0) {
      const int error = errno;
      ::close(report[0]);
      ::close(report[1]);
      return Status(ErrorCode::kFileOpenFail, options.log_file + ": " + std::strerror(error));
    }
  }
  const Image image{argv_pointers.data(),
                    environment_pointers.data(),
                    options.working_directory.empty() ? nullptr : options.working_directory.c_str(),
                    log_fd,
                    report[1],
                    ::getpid()};
  const pid_t pid = ::fork();
  if (pid == 0) become(image);
  ::close(report[1]);
  if (log_fd >= 0) ::close(log_fd);
  int error = pid < 0 ? errno : 0;
  if (pid > 0 && ::read(report[0], &error, sizeof error) <= 0) error = 0;  // end of file: exec succeeded
  ::close(report[0]);
  if (pid < 0) return Status(ErrorCode::kInternal, std::string("fork: ") + std::strerror(error));
  ChildProcess child(pid, options.log_file);
  if (error != 0) return Status(ErrorCode::kFileOpenFail, "cannot start " + options.argv.front() + ": " + std::strerror(error));
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), exit_status_(other.exit_status_), log_file_(std::move(other.log_file_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this != &other) {
    stop();
    pid_ = std::exchange(other.pid_, -1);
    exit_status_ = other.exit_status_;
    log_file_ = std::move(other.log_file_);
  }
  return *this;
}

ChildProcess::~ChildProcess() { stop(); }

bool ChildProcess::reap(bool block) {
  if (pid_ < 0 || exit_status_) return true;
  int state = 0;
  pid_t ended = 0;
  do {
    ended = ::waitpid(pid_, &state, block ? 0 : WNOHANG);
  } while (ended < 0 && errno == EINTR);
  if (ended == 0) return false;
  exit_status_ = ended < 0 ? -1 : WIFSIGNALED(state) ? 128 + WTERMSIG(state) : WEXITSTATUS(state);
  return true;
}

bool ChildProcess::running() { return !reap(false); }

void ChildProcess::signal(int number) {
  if (pid_ > 0 && running()) ::kill(-pid_, number);
}

std::optional<int> ChildProcess::wait(Deadline deadline) {
  if (!wait_until([this] { return reap(false); }, deadline)) return std::nullopt;
  return exit_status_;
}

void ChildProcess::stop(std::chrono::milliseconds grace) {
  if (pid_ < 0 || exit_status_) return;
  signal(SIGTERM);
  signal(SIGCONT);  // a stopped process would not see the SIGTERM
  if (!wait(Deadline::after(grace))) kill();
}

void ChildProcess::kill() {
  signal(SIGKILL);
  reap(true);
}

std::string ChildProcess::output() const {
  std::ifstream file(log_file_, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace moonpool::test
