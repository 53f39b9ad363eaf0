// The small-object path end to end: exist, get and put of batches of 4 KiB objects, with the master, the storage node and the client in
// processes of their own on loopback, beside a plain socket loop and (where installed) redis-benchmark in the same run.
//
// The socket loop is the limit that this machine sets for one exchange: the same number of bytes each way, a caller that spins, a peer that
// blocks in recv. All rows are taken in turn, `rounds` times, so that a slow moment of the machine meets every row.
//   object_path [--seconds 0.5] [--rounds 3] [--threads 1,4,16] [--batch 32] [--size 4096] [--ops exist,get,put] [--paths tcp] [--redis]
//   [--hold]
// --hold prints the processes' numbers and keeps one operation running (for perf).
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "base/logging.h"
#include "child_process.h"
#include "master/master.h"
#include "plain_socket.h"
#include "store/client.h"

namespace {

using namespace moonpool;
using Clock = std::chrono::steady_clock;
using store::Client;
using store::ConstBytes;
using store::MutableBytes;

struct Settings {
  double seconds = 0.5;
  int rounds = 3;
  std::vector<int> threads{1, 4, 16};
  std::size_t batch = 32;
  std::size_t size = 4096;
  std::vector<std::string> ops{"exist", "get", "put"};
  bool redis = false;
  bool hold = false;
  std::string paths;  // as MOONPOOL_PATHS; empty: the best
};

[[noreturn]] void fail(const std::string& text) {
  std::fprintf(stderr, "object_path: %s\n", text.c_str());
  std::exit(1);
}

// ------------------------------------------------------------------------------------------------ processes

// Tells its port and stays.
struct Child {
  template <typename Serve>
  explicit Child(const Serve& serve)
      : process([&](int, int out) { serve([out](std::uint16_t number) { bench::tell(out, number); }); }),
        port(process.read_value<std::uint16_t>()) {}
  bench::ChildProcess process;
  std::uint16_t port;
};

Child start_master() {
  return Child([](const auto& ready) {
    master::MasterConfig config;
    config.port = 0;
    config.metrics_port = 0;
    config.recovery_window = std::chrono::milliseconds(0);
    auto master = master::Master::start(config);
    if (!master.ok()) fail(master.status().to_string());
    ready((*master)->port());
    for (;;) ::pause();
  });
}

store::ClientOptions client_options(std::uint16_t master_port, std::uint64_t segment) {
  store::ClientOptions options;
  options.local_hostname = "127.0.0.1";
  options.master_address = "127.0.0.1:" + std::to_string(master_port);
  options.segment_size = segment;
  options.local_buffer_size = 16U << 20;
  return options;
}

Child start_node(std::uint16_t master_port) {
  return Child([&](const auto& ready) {
    auto node = Client::create(client_options(master_port, std::uint64_t{2} << 30));
    if (!node.ok()) fail(node.status().to_string());
    ready(1);
    for (;;) ::pause();
  });
}

// ------------------------------------------------------------------------------------------------ the plain loop

constexpr std::size_t kAsk = 1200;
constexpr std::size_t kAnswer = 120;

Child start_echo() {
  return Child([](const auto& ready) {
    const auto listener = bench::listen_plainly();
    ready(listener.port);
    for (;;) {
      std::thread([fd = bench::accept_plainly(listener)] {
        std::vector<char> buffer(kAsk);
        while (bench::receive_all(fd, buffer.data(), kAsk) && bench::send_all(fd, buffer.data(), kAnswer)) {
        }
        ::close(fd);
      }).detach();
    }
  });
}

class EchoClient {
 public:
  explicit EchoClient(std::uint16_t port) : fd_(bench::connect_plainly(port)), buffer_(kAsk) {}
  ~EchoClient() { ::close(fd_); }
  EchoClient(const EchoClient&) = delete;
  EchoClient& operator=(const EchoClient&) = delete;
  void once() {
    if (!bench::send_all(fd_, buffer_.data(), kAsk)) fail("send");
    for (std::size_t have = 0; have < kAnswer;) {
      const ssize_t got = ::recv(fd_, buffer_.data() + have, kAnswer - have, MSG_DONTWAIT);
      if (got > 0) have += static_cast<std::size_t>(got);
    }
  }

 private:
  int fd_;
  std::vector<char> buffer_;
};

// ------------------------------------------------------------------------------------------------ what is measured

struct Outcome {
  double items_per_second = 0;
  double p50_us = 0;
  double p99_us = 0;
  double cpu_us = 0;  // of this process, per call
};

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto of = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6; };
  return of(usage.ru_utime) + of(usage.ru_stime);
}

// `make(thread)` gives the call to repeat on that thread.
template <typename Make>
Outcome measure(int threads, double seconds, std::size_t items, const Make& make) {
  std::atomic<bool> stop{false};
  std::vector<std::vector<double>> times(static_cast<std::size_t>(threads));
  std::vector<std::thread> workers;
  const double cpu = cpu_seconds();
  const auto start = Clock::now();
  for (int t = 0; t < threads; ++t) {
    workers.emplace_back([&, t] {
      auto once = make(t);
      auto& mine = times[static_cast<std::size_t>(t)];
      mine.reserve(1 << 17);
      for (auto now = Clock::now(); !stop.load(std::memory_order_relaxed);) {
        once();
        const auto end = Clock::now();
        mine.push_back(std::chrono::duration<double, std::micro>(end - now).count());
        now = end;
      }
    });
  }
  std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  stop = true;
  for (auto& worker : workers) worker.join();
  const double took = std::chrono::duration<double>(Clock::now() - start).count();
  std::vector<double> all;
  for (const auto& mine : times) all.insert(all.end(), mine.begin(), mine.end());
  if (all.empty()) fail("nothing was measured");
  std::sort(all.begin(), all.end());
  return {static_cast<double>(all.size() * items) / took, all[all.size() / 2], all[all.size() * 99 / 100],
          (cpu_seconds() - cpu) * 1e6 / static_cast<double>(all.size())};
}

class Pool {
 public:
  Pool(const Settings& settings, std::uint16_t master_port) : settings_(settings) {
    auto options = client_options(master_port, 0);
    options.paths = settings.paths;
    auto client = Client::create(options);
    if (!client.ok()) fail(client.status().to_string());
    client_ = std::move(*client);
    value_.resize(settings.size, std::byte{0x5A});
    for (std::size_t set = 0; set < kSets; ++set) put_once(keys_of("read", set));
  }

  Outcome run(const std::string& op, int threads, double seconds) {
    if (op == "exist") {
      return measure(threads, seconds, settings_.batch, [&](int t) {
        return [this, views = Views(keys_of("read", static_cast<std::size_t>(t) % kSets))] {
          for (const auto found : client_->exist(views.views)) {
            if (found != 1) fail("exist: a key is missing");
          }
        };
      });
    }
    if (op == "get") {
      return measure(threads, seconds, settings_.batch, [&](int t) { return Getter(*this, static_cast<std::size_t>(t) % kSets); });
    }
    if (op == "put") {
      const int run = ++runs_;
      return measure(threads, seconds, settings_.batch, [&](int t) {
        return
            [this, run, t, n = std::size_t{0}]() mutable { put_once(keys_of("w" + std::to_string(run) + "-" + std::to_string(t), n++)); };
      });
    }
    fail("unknown operation " + op);
  }

 private:
  static constexpr std::size_t kSets = 64;
  struct Views {
    explicit Views(std::vector<std::string> k) : keys(std::move(k)), views(keys.begin(), keys.end()) {}
    Views(const Views& other) : Views(other.keys) {}
    Views& operator=(const Views&) = delete;
    std::vector<std::string> keys;
    std::vector<std::string_view> views;
  };
  // As vLLM's: a name and a hash.
  [[nodiscard]] std::vector<std::string> keys_of(const std::string& name, std::size_t set) const {
    std::vector<std::string> keys;
    for (std::size_t i = 0; i < settings_.batch; ++i) {
      keys.push_back("model@" + name + "@" + std::to_string(set * settings_.batch + i + 1000000000));
    }
    return keys;
  }
  void put_once(const std::vector<std::string>& keys) {
    const std::vector<std::string_view> views(keys.begin(), keys.end());
    const std::array<ConstBytes, 1> source{value_};
    const std::vector<std::span<const ConstBytes>> sources(views.size(), source);
    for (const auto code : client_->put(views, sources)) {
      if (code != 0) fail("put: " + std::to_string(code));
    }
  }
  class Getter {
   public:
    Getter(Pool& pool, std::size_t set)
        : pool_(&pool), views_(pool.keys_of("read", set)), memory_(pool.settings_.size * views_.keys.size()) {
      bind();
    }
    Getter(const Getter& other) : pool_(other.pool_), views_(other.views_), memory_(other.memory_) { bind(); }
    Getter& operator=(const Getter&) = delete;
    void operator()() {
      for (const auto got : pool_->client_->get_into(views_.views, destinations_, true)) {
        if (got != static_cast<std::int64_t>(pool_->settings_.size)) fail("get: " + std::to_string(got));
      }
    }

   private:
    void bind() {
      for (std::size_t i = 0; i < views_.keys.size(); ++i) {
        pieces_.push_back(MutableBytes(memory_).subspan(i * pool_->settings_.size, pool_->settings_.size));
      }
      for (auto& piece : pieces_) destinations_.emplace_back(&piece, 1);
    }
    Pool* pool_;
    Views views_;
    std::vector<std::byte> memory_;
    std::vector<MutableBytes> pieces_;
    std::vector<std::span<const MutableBytes>> destinations_;
  };

  const Settings& settings_;
  std::unique_ptr<Client> client_;
  std::vector<std::byte> value_;
  std::atomic<int> runs_{0};
};

void run_redis(const Settings& settings) {
  if (std::system("command -v redis-server >/dev/null && command -v redis-benchmark >/dev/null") != 0) {
    std::printf("redis: not installed\n");
    return;
  }
  std::printf("redis-benchmark -P %zu -c 4 -d %zu:\n", settings.batch, settings.size);
  std::fflush(stdout);
  const std::string script =
      "redis-server --port 16379 --save '' --appendonly no --daemonize no >/dev/null 2>&1 & server=$!; "
      "for i in 1 2 3 4 5 6 7 8 9 10; do redis-cli -p 16379 ping >/dev/null 2>&1 && break; sleep 0.1; done; "
      "redis-benchmark -p 16379 -P " +
      std::to_string(settings.batch) + " -c 4 -d " + std::to_string(settings.size) +
      " -n 400000 -r 100000 -t set,get -q 2>/dev/null | tr '\\r' '\\n' | grep 'requests per second'; kill $server";
  if (std::system(script.c_str()) != 0) std::printf("redis-benchmark failed\n");
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const auto comma = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return parts;
}

Settings parse(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&] { return i + 1 < argc ? std::string(argv[++i]) : std::string(); };
    if (flag == "--seconds")
      settings.seconds = std::atof(value().c_str());
    else if (flag == "--rounds")
      settings.rounds = std::atoi(value().c_str());
    else if (flag == "--batch")
      settings.batch = std::strtoull(value().c_str(), nullptr, 10);
    else if (flag == "--size")
      settings.size = std::strtoull(value().c_str(), nullptr, 10);
    else if (flag == "--ops")
      settings.ops = split(value());
    else if (flag == "--redis")
      settings.redis = true;
    else if (flag == "--paths")
      settings.paths = value();
    else if (flag == "--hold")
      settings.hold = true;
    else if (flag == "--threads") {
      settings.threads.clear();
      for (const auto& one : split(value())) settings.threads.push_back(std::atoi(one.c_str()));
    } else
      fail("unknown flag " + flag);
  }
  return settings;
}

// The children are gone when it returns.
void run_ours(const Settings& settings) {
  const Child echo = start_echo();
  const Child master = start_master();
  const Child node = start_node(master.port);
  Pool pool(settings, master.port);
  if (settings.hold) {
    std::printf("client %d master %d node %d\n", ::getpid(), master.process.pid(), node.process.pid());
    std::fflush(stdout);
    for (;;) {
      const auto outcome = pool.run(settings.ops.front(), settings.threads.front(), settings.seconds);
      std::printf("%s: %.0f/s p50 %.1f us\n", settings.ops.front().c_str(), outcome.items_per_second, outcome.p50_us);
      std::fflush(stdout);
    }
  }
  std::map<std::pair<std::string, int>, std::vector<Outcome>> rows;
  for (int round = 0; round < settings.rounds; ++round) {
    for (const int threads : settings.threads) {
      rows[{"socket", threads}].push_back(measure(
          threads, settings.seconds / 2, 1, [&](int) { return [client = std::make_shared<EchoClient>(echo.port)] { client->once(); }; }));
      for (const auto& op : settings.ops) rows[{op, threads}].push_back(pool.run(op, threads, settings.seconds));
    }
  }
  std::printf("batches of %zu x %zu bytes; median of %d rounds of %.2f s; items: keys or objects (socket: exchanges)\n", settings.batch,
              settings.size, settings.rounds, settings.seconds);
  std::printf("%-8s %8s %12s %10s %10s %14s %s\n", "what", "threads", "items/s", "p50 us", "p99 us", "client cpu us", "p50 / socket p50");
  for (auto& [what, outcomes] : rows) {
    std::sort(outcomes.begin(), outcomes.end(), [](const Outcome& a, const Outcome& b) { return a.items_per_second < b.items_per_second; });
    const Outcome& middle = outcomes[outcomes.size() / 2];
    auto& sockets = rows[{"socket", what.second}];
    std::printf("%-8s %8d %12.0f %10.1f %10.1f %14.1f %.2f\n", what.first.c_str(), what.second, middle.items_per_second, middle.p50_us,
                middle.p99_us, middle.cpu_us, middle.p50_us / sockets[sockets.size() / 2].p50_us);
  }
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const Settings settings = parse(argc, argv);
  run_ours(settings);
  if (settings.redis) run_redis(settings);
  return 0;
}
