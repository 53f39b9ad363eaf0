// Load for a master: exist, get, and put (start and commit, no data between) in batches, over some connections, with some objects in the
// pool.
//
//   master_load --master HOST:PORT --pid PID --objects N [--evicting] [--connections 4] [--batches 1,32,256] [--seconds 1]
//
// It is a node itself (load_node.h). First it puts N objects; then it measures each operation in each batch size for `seconds`. Look-ups
// ask for objects by chance. Without --evicting there is room for everything, and what the puts added is removed again outside the measured
// time; with it N objects fill the segment up to the master's watermark, so that every further put needs an eviction. Prints one JSON line
// an operation: keys a second, p50, p99 and the slowest of the calls (a put: start and commit together), keys that failed, CPU seconds of
// the master (process PID) and of this process for a million keys; and of the filling the master's memory for each object beyond its key,
// and the slowest call, which shows what the growth of a table holds up.
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/logging.h"
#include "load_node.h"

namespace moonpool::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kCallLimit{30};
constexpr double kWatermark = 0.90;  // the master's default
constexpr std::uint64_t kFillBatch = 256;

struct Settings {
  std::string master;
  int pid = 0;
  std::uint64_t objects = 1000;
  bool evicting = false;
  std::uint64_t connections = 4;
  std::vector<std::uint64_t> batches{1, 32, 256};
  double seconds = 1.0;
  std::uint64_t key_bytes = 64;
  std::uint64_t object_bytes = 4096;
};

// ---------------------------------------------------------------- what /proc knows

double master_cpu_seconds(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(file)), {});
  std::istringstream fields(text.substr(text.rfind(')') + 2));
  std::string skipped;
  for (int i = 0; i < 11; ++i) fields >> skipped;
  double user = 0;
  double system = 0;
  fields >> user >> system;
  return (user + system) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

std::uint64_t resident_bytes(int pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/statm");
  std::uint64_t total = 0;
  std::uint64_t resident = 0;
  file >> total >> resident;
  return resident * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

double own_cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// ---------------------------------------------------------------- one connection

// Keys as vLLM makes them: names that all share, then a hash.
void write_key(std::string& key, std::uint64_t index, std::size_t size) {
  static constexpr char kDigits[] = "0123456789abcdef";
  key.assign("model@tp_rank:0@pp_rank:0@group:0@");
  std::uint64_t state = index;
  std::uint64_t bits = 0;
  while (key.size() < size) {
    if (bits == 0) {  // the next sixteen digits (splitmix64)
      state += 0x9E3779B97F4A7C15ULL;
      bits = (state ^ (state >> 30U)) * 0xBF58476D1CE4E5B9ULL;
      bits = ((bits ^ (bits >> 27U)) * 0x94D049BB133111EBULL) | 1U;
    }
    key.push_back(kDigits[bits & 15U]);
    bits >>= 4U;
  }
}

// Calls over one lane; messages are kept and filled again. One thread.
class Caller {
 public:
  Caller(const Settings& settings, const net::Endpoint& master, const LoadNode& node) : settings_(settings) {
    auto lane = net::Lane::connect(master, node.identity(), Deadline::after(kCallLimit));
    must(lane.status(), "connect");
    lane_ = std::move(*lane);
    exist_.set_node_id(node.id_bytes());
    get_.set_node_id(node.id_bytes());
    start_.set_node_id(node.id_bytes());
    start_.set_replica_num(1);
    commit_.set_node_id(node.id_bytes());
  }

  using Indices = std::function<std::uint64_t()>;

  // Each returns how many keys failed.
  std::uint64_t exist(std::uint64_t batch, const Indices& next) {
    fill_keys(*exist_.mutable_key(), batch, next);
    call(wire::METHOD_EXIST, exist_, exist_reply_);
    return batch - static_cast<std::uint64_t>(std::count(exist_reply_.status().begin(), exist_reply_.status().end(), 1));
  }
  std::uint64_t get(std::uint64_t batch, const Indices& next) {
    fill_keys(*get_.mutable_key(), batch, next);
    call(wire::METHOD_GET_REPLICAS, get_, get_reply_);
    return failures(get_reply_.status(), batch);
  }
  std::uint64_t put(std::uint64_t batch, const Indices& next) {
    fill_keys(*start_.mutable_key(), batch, next);
    start_.clear_size();
    for (std::uint64_t i = 0; i < batch; ++i) start_.add_size(settings_.object_bytes);
    call(wire::METHOD_PUT_START, start_, start_reply_);
    commit_.clear_key();
    commit_.clear_version_count();
    commit_.clear_checksum();
    commit_.clear_written();
    commit_.set_term(start_reply_.term());
    for (int i = 0; i < start_reply_.status_size(); ++i) {
      if (start_reply_.status(i) != 0) continue;
      commit_.add_key(start_.key(i));
      commit_.add_version_count(start_reply_.version_count(i));
      commit_.add_checksum(1);
      commit_.add_written(1);
    }
    const auto refused = batch - static_cast<std::uint64_t>(commit_.key_size());
    if (commit_.key_size() == 0) return refused;
    call(wire::METHOD_PUT_COMMIT, commit_, commit_reply_);
    return refused + failures(commit_reply_.status(), static_cast<std::uint64_t>(commit_.key_size()));
  }
  std::uint64_t remove(std::uint64_t batch, const Indices& next) {
    fill_keys(*remove_.mutable_key(), batch, next);
    remove_.set_force(true);
    call(wire::METHOD_REMOVE, remove_, remove_reply_);
    return failures(remove_reply_.status(), batch);
  }

 private:
  template <typename Keys>
  void fill_keys(Keys& keys, std::uint64_t batch, const Indices& next) {
    keys.Clear();
    for (std::uint64_t i = 0; i < batch; ++i) write_key(*keys.Add(), next(), settings_.key_bytes);
  }
  template <typename Codes>
  static std::uint64_t failures(const Codes& codes, std::uint64_t expected) {
    return expected - static_cast<std::uint64_t>(std::count(codes.begin(), codes.end(), 0));
  }
  void call(wire::Method method, const google::protobuf::MessageLite& request, google::protobuf::MessageLite& reply) {
    must(lane_->call(method, request, reply, Deadline::after(kCallLimit)), "call");
  }

  const Settings& settings_;
  std::unique_ptr<net::Lane> lane_;
  wire::ExistRequest exist_;
  wire::ExistReply exist_reply_;
  wire::GetReplicasRequest get_;
  wire::GetReplicasReply get_reply_;
  wire::PutStartRequest start_;
  wire::PutStartReply start_reply_;
  wire::PutCommitRequest commit_;
  wire::StatusReply commit_reply_;
  wire::RemoveRequest remove_;
  wire::StatusReply remove_reply_;
};

// ---------------------------------------------------------------- the load

class Load {
 public:
  Load(const Settings& settings, const net::Endpoint& master)
      : settings_(settings), node_(master, segment_bytes(settings)), next_fresh_(settings.objects) {
    for (std::uint64_t c = 0; c < settings.connections; ++c) callers_.push_back(std::make_unique<Caller>(settings_, master, node_));
  }

  void run() {
    fill();
    for (const std::uint64_t batch : settings_.batches) {
      if (!settings_.evicting) {
        measure("exist", batch, &Caller::exist, false);
        measure("get", batch, &Caller::get, false);
      }
      const std::uint64_t before = next_fresh_;
      measure("put", batch, &Caller::put, true);
      if (!settings_.evicting) remove(before, next_fresh_);
    }
  }

 private:
  using Operation = std::uint64_t (Caller::*)(std::uint64_t, const Caller::Indices&);
  struct Share {
    std::vector<float> times_us;
    std::uint64_t keys = 0;
    std::uint64_t failed = 0;
  };

  static std::uint64_t segment_bytes(const Settings& settings) {
    const std::uint64_t held = settings.objects * settings.object_bytes;
    if (settings.evicting) return static_cast<std::uint64_t>(static_cast<double>(held) / kWatermark);
    return held + (std::uint64_t{256} << 30U);
  }

  void on_each_connection(const std::function<void(std::size_t)>& work) {
    std::vector<std::thread> threads;
    for (std::size_t c = 0; c < callers_.size(); ++c) threads.emplace_back(work, c);
    for (auto& thread : threads) thread.join();
  }

  struct Ranged {
    std::uint64_t failed = 0;
    double slowest_us = 0;  // call
  };
  // Runs `operation` over [first, last), every connection its part.
  Ranged over_range(std::uint64_t first, std::uint64_t last, Operation operation) {
    std::vector<Ranged> parts(callers_.size());
    const std::uint64_t count = callers_.size();
    on_each_connection([&](std::size_t c) {
      std::uint64_t at = first + (last - first) * c / count;
      const std::uint64_t end = first + (last - first) * (c + 1) / count;
      while (at < end) {
        const auto start = Clock::now();
        parts[c].failed += (callers_[c].get()->*operation)(std::min(kFillBatch, end - at), [&] { return at++; });
        parts[c].slowest_us = std::max(parts[c].slowest_us, std::chrono::duration<double, std::micro>(Clock::now() - start).count());
      }
    });
    Ranged whole;
    for (const auto& part : parts) {
      whole.failed += part.failed;
      whole.slowest_us = std::max(whole.slowest_us, part.slowest_us);
    }
    return whole;
  }

  void fill() {
    const std::uint64_t before = resident_bytes(settings_.pid);
    const auto start = Clock::now();
    const Ranged filled = over_range(0, settings_.objects, &Caller::put);
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    const std::uint64_t after = resident_bytes(settings_.pid);
    const auto objects = static_cast<double>(settings_.objects);
    const double each = static_cast<double>(after - std::min(before, after)) / objects - static_cast<double>(settings_.key_bytes);
    std::printf(
        "{\"operation\": \"memory\", \"rate\": %.0f, \"bytes_per_object\": %.1f, \"key_bytes\": %llu, \"rss_gib\": %.3f, "
        "\"slowest_us\": %.0f, \"failed\": %llu}\n",
        objects / seconds, each, static_cast<unsigned long long>(settings_.key_bytes), static_cast<double>(after) / (1U << 30U),
        filled.slowest_us, static_cast<unsigned long long>(filled.failed));
    std::fflush(stdout);
  }

  void remove(std::uint64_t first, std::uint64_t last) {
    if (const std::uint64_t left = over_range(first, last, &Caller::remove).failed; left > 0)
      std::fprintf(stderr, "master_load: %llu objects could not be removed again\n", static_cast<unsigned long long>(left));
  }

  void measure(const char* name, std::uint64_t batch, Operation operation, bool fresh) {
    std::vector<Share> shares(callers_.size());
    std::barrier together(static_cast<std::ptrdiff_t>(callers_.size()));
    std::atomic<std::uint64_t> next{next_fresh_};
    const double master_before = master_cpu_seconds(settings_.pid);
    const double own_before = own_cpu_seconds();
    const auto start = Clock::now();
    on_each_connection([&](std::size_t c) {
      std::minstd_rand chance(static_cast<unsigned>(c + 1));
      std::uniform_int_distribution<std::uint64_t> any(0, settings_.objects - 1);
      // Fresh keys are taken a batch at a time, so that every key below `next` was put.
      std::uint64_t own = 0;
      const Caller::Indices indices = fresh ? Caller::Indices([&] { return own++; }) : Caller::Indices([&] { return any(chance); });
      Share& share = shares[c];
      share.times_us.reserve(1U << 20U);
      together.arrive_and_wait();
      const auto end = Clock::now() + std::chrono::duration<double>(settings_.seconds);
      for (auto now = Clock::now(); now < end;) {
        if (fresh) own = next.fetch_add(batch);
        share.failed += (callers_[c].get()->*operation)(batch, indices);
        const auto done = Clock::now();
        share.times_us.push_back(std::chrono::duration<float, std::micro>(done - now).count());
        share.keys += batch;
        now = done;
      }
    });
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (fresh) next_fresh_ = next;
    report(name, batch, shares, seconds, master_cpu_seconds(settings_.pid) - master_before, own_cpu_seconds() - own_before);
  }

  static void report(const char* name, std::uint64_t batch, const std::vector<Share>& shares, double seconds, double master_cpu,
                     double own_cpu) {
    std::vector<float> times;
    double keys = 0;
    std::uint64_t failed = 0;
    for (const auto& share : shares) {
      times.insert(times.end(), share.times_us.begin(), share.times_us.end());
      keys += static_cast<double>(share.keys);
      failed += share.failed;
    }
    std::sort(times.begin(), times.end());
    std::printf(
        "{\"operation\": \"%s x %llu\", \"rate\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"slowest_us\": %.0f, "
        "\"cpu_master_per_million\": %.3f, \"cpu_load_per_million\": %.3f, \"failed\": %llu}\n",
        name, static_cast<unsigned long long>(batch), (keys - static_cast<double>(failed)) / seconds,
        static_cast<double>(times[times.size() / 2]), static_cast<double>(times[times.size() * 99 / 100]),
        static_cast<double>(times.back()), master_cpu / keys * 1e6, own_cpu / keys * 1e6, static_cast<unsigned long long>(failed));
    std::fflush(stdout);
  }

  const Settings& settings_;
  LoadNode node_;
  std::uint64_t next_fresh_;
  std::vector<std::unique_ptr<Caller>> callers_;
};

int run(int argc, char** argv) {
  Settings settings;
  CLI::App app("Measures a master under load.", "master_load");
  app.add_option("--master", settings.master, "host:port")->required();
  app.add_option("--pid", settings.pid, "the master's process")->required();
  app.add_option("--objects", settings.objects, "objects in the pool")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_flag("--evicting", settings.evicting, "every measured put needs an eviction");
  app.add_option("--connections", settings.connections, "connections, each with a thread")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--batches", settings.batches, "keys in one call")->delimiter(',')->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seconds", settings.seconds, "of each measurement")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--key-bytes", settings.key_bytes, "length of a key")->check(CLI::Range(50, 4096))->capture_default_str();
  app.add_option("--object-bytes", settings.object_bytes, "size of an object")->check(CLI::PositiveNumber)->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  log::configure("master_load");
  const auto master = net::Endpoint::parse(settings.master);
  must(master.status(), "--master");
  Load(settings, *master).run();
  return 0;
}

}  // namespace
}  // namespace moonpool::bench

int main(int argc, char** argv) { return moonpool::bench::run(argc, argv); }
