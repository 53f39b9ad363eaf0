// A process forked from a benchmark that serves something for it. Forked before the benchmark has threads of its own; ends with this
// object, or with the benchmark, however that ends.
#pragma once

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>

namespace moonpool::bench {

class ChildProcess {
 public:
  // `serve` says through `out` what its parent has to know (tell()), and may answer_commands() from `in`. The process ends when it returns.
  explicit ChildProcess(const std::function<void(int in, int out)>& serve) {
    int down[2];
    int up[2];
    if (::pipe(down) != 0 || ::pipe(up) != 0) gone();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      serve(down[0], up[1]);
      ::_exit(0);
    }
    ::close(down[0]);
    ::close(up[1]);
    in_ = up[0];
    out_ = down[1];
  }
  ~ChildProcess() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::close(in_);
    ::close(out_);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  [[nodiscard]] pid_t pid() const { return pid_; }
  // What it tells next.
  template <typename T>
  [[nodiscard]] T read_value() const {
    T value{};
    if (::read(in_, &value, sizeof value) != sizeof value) gone();
    return value;
  }
  // Has it do what it does on a command, and waits until it has.
  void command() const {
    if (::write(out_, "c", 1) != 1) gone();
    static_cast<void>(read_value<char>());
  }
  [[nodiscard]] double cpu_seconds() const {
    clockid_t clock{};
    timespec time{};
    if (::clock_getcpuclockid(pid_, &clock) != 0 || ::clock_gettime(clock, &time) != 0) return 0;
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  }

 private:
  [[noreturn]] static void gone() {
    std::fprintf(stderr, "a child process of the benchmark has gone, or could not be started\n");
    std::exit(1);
  }

  pid_t pid_ = 0;
  int in_ = -1;
  int out_ = -1;
};

// The child's side.
template <typename T>
void tell(int out, const T& value) {
  if (::write(out, &value, sizeof value) != sizeof value) ::_exit(1);
}

inline void answer_commands(int in, int out, const std::function<void()>& command) {
  for (char byte = 0; ::read(in, &byte, 1) == 1;) {
    command();
    tell(out, 'k');
  }
}

}  // namespace moonpool::bench
