// What the machine itself gives, without any of our code: memcpy, and a plain socket between two processes over loopback.
//
//   plain_baseline memcpy|write|read|roundtrip BYTES THREADS SECONDS [BATCH PIECES]
// prints one JSON line: rate (GB/s, or round trips a second), p50_us and p99_us of one copy or exchange, bytes, cpu_client, cpu_storage
// (s).
//
// memcpy: what a put of a batch has to do at least: BYTES at a time in PIECES pieces, from the next of BATCH places (1 unless told) of each
// thread's own source into the next place of 1 GiB, all of it touched before. write: BYTES to the peer, which answers one byte; read: one
// byte to the peer, which answers BYTES; roundtrip: BYTES both ways. Each thread has its own connection; the peer is a forked process with
// a thread for each of them. Blocking send and recv, TCP_NODELAY, no frame, no checksum.
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "plain_socket.h"

namespace {

using namespace moonpool::bench;
using Clock = std::chrono::steady_clock;
constexpr std::size_t kCopySpace = std::size_t{1} << 30;

struct Work {
  std::string what;
  std::size_t bytes;
  std::size_t threads;
  double seconds;
  std::size_t batch = 1;
  std::size_t pieces = 1;
};

struct Outcome {
  std::vector<double> times_us;
  Clock::time_point start;
  Clock::time_point end;
};

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

double cpu_seconds(int who) {
  rusage usage{};
  ::getrusage(who, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

std::byte* map_touched(std::size_t size) {
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) die("mmap");
  std::memset(memory, 1, size);
  return static_cast<std::byte*>(memory);
}

// ---------------------------------------------------------------- the timed loop

Outcome repeat(double seconds, std::barrier<>& together, const std::function<void()>& once) {
  Outcome outcome;
  outcome.times_us.reserve(1U << 16);
  once();
  together.arrive_and_wait();
  outcome.start = outcome.end = Clock::now();
  while (std::chrono::duration<double>(outcome.end - outcome.start).count() < seconds) {
    const auto before = outcome.end;
    once();
    outcome.end = Clock::now();
    outcome.times_us.push_back(std::chrono::duration<double, std::micro>(outcome.end - before).count());
  }
  return outcome;
}

void report(const Work& work, std::vector<Outcome>& outcomes, double cpu_client, double cpu_peer) {
  std::vector<double> times;
  auto start = outcomes.front().start;
  auto end = outcomes.front().end;
  for (const auto& outcome : outcomes) {
    times.insert(times.end(), outcome.times_us.begin(), outcome.times_us.end());
    start = std::min(start, outcome.start);
    end = std::max(end, outcome.end);
  }
  std::sort(times.begin(), times.end());
  const double seconds = std::chrono::duration<double>(end - start).count();
  const auto count = static_cast<double>(times.size());
  const double bytes = count * static_cast<double>(work.bytes);
  const double rate = work.what == "roundtrip" ? count / seconds : bytes / seconds / 1e9;
  std::printf("{\"rate\": %.6g, \"p50_us\": %.3f, \"p99_us\": %.3f, \"bytes\": %.0f, \"cpu_client\": %.6f, \"cpu_storage\": %.6f}\n", rate,
              times[times.size() / 2], times[times.size() * 99 / 100], bytes, cpu_client, cpu_peer);
}

// Runs `make_once(thread)` 's loop on every thread; returns the CPU seconds that the loops took.
double run_threads(const Work& work, std::vector<Outcome>& outcomes, const std::function<std::function<void()>(std::size_t)>& make_once) {
  std::barrier together(static_cast<std::ptrdiff_t>(work.threads));
  std::vector<std::thread> threads;
  const double before = cpu_seconds(RUSAGE_SELF);
  for (std::size_t t = 0; t < work.threads; ++t)
    threads.emplace_back([&, t] { outcomes[t] = repeat(work.seconds, together, make_once(t)); });
  for (auto& thread : threads) thread.join();
  return cpu_seconds(RUSAGE_SELF) - before;
}

// ---------------------------------------------------------------- memcpy

void copy(const Work& work) {
  const std::size_t space = std::max(kCopySpace / work.threads, work.bytes);
  std::byte* const destination = map_touched(space * work.threads);
  const std::size_t sources = work.bytes * work.batch;
  std::byte* const source = map_touched(sources * work.threads);
  std::vector<Outcome> outcomes(work.threads);
  const double cpu = run_threads(work, outcomes, [&](std::size_t t) {
    return [&work, space, sources, source = source + t * sources, target = destination + t * space, from = std::size_t{0},
            to = std::size_t{0}]() mutable {
      const std::size_t piece = work.bytes / work.pieces;
      for (std::size_t i = 0; i < work.pieces; ++i) std::memcpy(target + to + i * piece, source + from + i * piece, piece);
      asm volatile("" : : "r"(target + to) : "memory");
      from = from + 2 * work.bytes <= sources ? from + work.bytes : 0;
      to = to + 2 * work.bytes <= space ? to + work.bytes : 0;
    };
  });
  report(work, outcomes, cpu, 0);
}

// ---------------------------------------------------------------- the socket

struct Sizes {
  std::size_t request;
  std::size_t answer;
};

// One connected pair per thread: near in this process, far for the peer.
std::pair<int, int> connected_pair() {
  const PlainListener listener = listen_plainly();
  const int near = connect_plainly(listener.port);
  const int far = accept_plainly(listener);
  ::close(listener.fd);
  return {near, far};
}

[[noreturn]] void serve(const std::vector<int>& connections, Sizes sizes) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::vector<std::thread> threads;
  for (const int fd : connections) {
    threads.emplace_back([fd, sizes] {
      std::byte* const in = map_touched(sizes.request);
      std::byte* const out = map_touched(sizes.answer);
      while (receive_all(fd, in, sizes.request) && send_all(fd, out, sizes.answer)) {
      }
    });
  }
  for (auto& thread : threads) thread.join();
  std::_Exit(0);
}

void exchange(const Work& work) {
  const Sizes sizes{work.what == "read" ? 1 : work.bytes, work.what == "write" ? 1 : work.bytes};
  std::vector<int> near;
  std::vector<int> far;
  for (std::size_t t = 0; t < work.threads; ++t) {
    const auto [here, there] = connected_pair();
    near.push_back(here);
    far.push_back(there);
  }
  const pid_t peer = ::fork();
  if (peer < 0) die("fork");
  if (peer == 0) {
    for (const int fd : near) ::close(fd);
    serve(far, sizes);
  }
  for (const int fd : far) ::close(fd);
  std::vector<Outcome> outcomes(work.threads);
  const double cpu = run_threads(work, outcomes, [&](std::size_t t) {
    return [fd = near[t], sizes, out = map_touched(sizes.request), in = map_touched(sizes.answer)] {
      if (!send_all(fd, out, sizes.request) || !receive_all(fd, in, sizes.answer)) die("exchange");
    };
  });
  for (const int fd : near) ::close(fd);
  ::waitpid(peer, nullptr, 0);
  report(work, outcomes, cpu, cpu_seconds(RUSAGE_CHILDREN));
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view what = argc == 5 || argc == 7 ? argv[1] : "";
  if (what != "memcpy" && what != "write" && what != "read" && what != "roundtrip") {
    std::fprintf(stderr, "usage: plain_baseline memcpy|write|read|roundtrip BYTES THREADS SECONDS [BATCH PIECES]\n");
    return 2;
  }
  Work work{std::string(what), std::strtoull(argv[2], nullptr, 10), std::strtoull(argv[3], nullptr, 10), std::strtod(argv[4], nullptr)};
  if (argc == 7) {
    work.batch = std::strtoull(argv[5], nullptr, 10);
    work.pieces = std::strtoull(argv[6], nullptr, 10);
  }
  if (work.bytes == 0 || work.threads == 0 || work.threads > 1024 || work.seconds <= 0 || work.batch == 0 || work.pieces == 0 ||
      work.bytes % work.pieces != 0) {
    std::fprintf(stderr, "plain_baseline: BYTES (a multiple of PIECES), THREADS (at most 1024), SECONDS and BATCH have to be positive\n");
    return 2;
  }
  what == "memcpy" ? copy(work) : exchange(work);
  return 0;
}
