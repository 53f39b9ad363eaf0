#include "transfer/transfer_engine_bench.h"

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/logging.h"
#include "transfer/rdma/settings.h"
#include "transfer/segment_memory.h"
#include "transfer/transfer_engine.h"

namespace moonpool::transfer {

namespace {

using Clock = std::chrono::steady_clock;

struct Settings {
  std::string mode = "initiator";
  std::string metadata_server = "P2PHANDSHAKE";
  std::string local_server_name = "127.0.0.1";
  std::string segment_id;
  std::string operation = "read";
  std::string protocol = "tcp";
  std::string device_name;
  std::uint64_t block_size = 65536;
  std::uint64_t batch_size = 128;
  std::uint64_t threads = 12;
  std::uint64_t duration = 10;
  std::uint64_t buffer_size = std::uint64_t{1} << 30;
  std::string report_unit = "GB";
  std::uint32_t report_precision = 2;
  // Accepted for the sake of scripts written for the incumbent, and without effect.
  std::string backend = "classic";
  std::string nic_priority_matrix;
  bool auto_discovery = false;
};

// Bytes of one of each unit that a report may be in.
const std::map<std::string, double> kUnits = {{"GB", 1e9},     {"GiB", 1073741824.0}, {"Gb", 1e9 / 8}, {"MB", 1e6},    {"MiB", 1048576.0},
                                              {"Mb", 1e6 / 8}, {"KB", 1e3},           {"KiB", 1024.0}, {"Kb", 1e3 / 8}};

// gflags takes "-mode x" for "--mode x"; CLI11 does not. In reverse order, as CLI11 wants it.
std::vector<std::string> two_dashes(int argc, char** argv) {
  std::vector<std::string> arguments;
  for (int i = argc - 1; i > 0; --i) {
    std::string argument(argv[i]);
    const bool one_dash = argument.size() > 2 && argument[0] == '-' && std::isalpha(static_cast<unsigned char>(argument[1])) != 0;
    arguments.push_back(one_dash ? "-" + argument : argument);
  }
  return arguments;
}

void add_flags(CLI::App& app, Settings& settings) {
  app.add_option("--mode", settings.mode, "target or initiator")->check(CLI::IsMember({"target", "initiator"}))->capture_default_str();
  app.add_option("--metadata_server", settings.metadata_server, "a metadata URL, or P2PHANDSHAKE")->capture_default_str();
  app.add_option("--local_server_name", settings.local_server_name, "host or host:port of this engine")->capture_default_str();
  app.add_option("--segment_id", settings.segment_id, "the target's name (initiator)");
  app.add_option("--operation", settings.operation, "read or write")->check(CLI::IsMember({"read", "write"}))->capture_default_str();
  app.add_option("--protocol", settings.protocol, "tcp or rdma")->capture_default_str();
  // "--flag=" with nothing behind it is how scripts say "none".
  app.add_option("--device_name", settings.device_name, "network devices for rdma, with commas; all that are up")->expected(0, 1);
  app.add_option("--block_size", settings.block_size, "bytes of one piece")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--batch_size", settings.batch_size, "pieces of one transfer")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--threads", settings.threads, "transfers at a time")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_option("--duration", settings.duration, "seconds")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--buffer_size", settings.buffer_size, "bytes of registered memory")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--report_unit", settings.report_unit, "unit of the throughput: GB, GiB, Gb, MB, MiB, Mb, KB, KiB or Kb")
      ->check(CLI::IsMember(kUnits))
      ->capture_default_str();
  app.add_option("--report_precision", settings.report_precision, "digits behind the point")
      ->check(CLI::Range(0, 12))
      ->capture_default_str();
  app.add_option("--backend", settings.backend, "without effect: there is one engine");
  app.add_option("--nic_priority_matrix", settings.nic_priority_matrix, "without effect: NICs are chosen by where memory lies")
      ->expected(0, 1);
  app.add_flag("--auto_discovery,!--noauto_discovery", settings.auto_discovery, "without effect: it is the default");
}

int failed(const Status& status) {
  std::cerr << "error: " << status.message() << "\n";
  return 1;
}

int run_target(TransferEngine& engine) {
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGINT);
  sigaddset(&ends, SIGTERM);
  std::cout << "target: --segment_id=" << engine.session() << std::endl;
  int number = 0;
  ::sigwait(&ends, &number);
  return 0;
}

struct Totals {
  std::atomic<std::uint64_t> bytes{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;  // guards those below
  std::vector<double> batch_us;
  Status error;
};

// One thread's share: its own part of both buffers, so that threads do not write over each other.
void work(TransferEngine& engine, const Settings& settings, std::uint64_t local, std::uint64_t remote, Totals& totals) {
  const auto opcode = settings.operation == "read" ? Opcode::kRead : Opcode::kWrite;
  std::vector<Piece> pieces;
  for (std::uint64_t i = 0; i < settings.batch_size; ++i)
    pieces.push_back({local + i * settings.block_size, remote + i * settings.block_size, settings.block_size});
  std::vector<double> times;
  while (!totals.stop) {
    const auto start = Clock::now();
    if (Status status = engine.transfer(settings.segment_id, opcode, pieces); !status.ok()) {
      const std::scoped_lock lock(totals.mutex);
      totals.error = std::move(status);
      totals.stop = true;
      return;
    }
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
    totals.bytes += settings.batch_size * settings.block_size;
  }
  const std::scoped_lock lock(totals.mutex);
  totals.batch_us.insert(totals.batch_us.end(), times.begin(), times.end());
}

int run_initiator(TransferEngine& engine, const Settings& settings, std::uint64_t buffer) {
  if (settings.segment_id.empty()) {
    std::cerr << "error: --segment_id is missing: give the name that the target printed\n";
    return 2;
  }
  const std::uint64_t share = settings.batch_size * settings.block_size;
  if (share > settings.buffer_size / settings.threads) {
    std::cerr << "error: threads x batch_size x block_size do not fit --buffer_size=" << settings.buffer_size
              << ": make it larger (on both sides)\n";
    return 2;
  }
  const auto remote = engine.first_buffer(settings.segment_id);
  if (!remote.ok()) return failed(remote.status());
  Totals totals;
  std::vector<std::thread> threads;
  const auto start = Clock::now();
  for (std::uint64_t t = 0; t < settings.threads; ++t) {
    threads.emplace_back([&, t] { work(engine, settings, buffer + t * share, *remote + t * share, totals); });
  }
  const auto end = start + std::chrono::seconds(settings.duration);
  while (!totals.stop && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  totals.stop = true;
  for (auto& thread : threads) thread.join();
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  if (!totals.error.ok()) return failed(totals.error);
  std::ranges::sort(totals.batch_us);
  const auto percentile = [&](double p) {
    return totals.batch_us.empty() ? 0.0 : totals.batch_us[static_cast<std::size_t>(p * static_cast<double>(totals.batch_us.size() - 1))];
  };
  std::printf("%s of %llu x %llu bytes on %llu threads: batch p50 %.0f us, p99 %.0f us\n", settings.operation.c_str(),
              static_cast<unsigned long long>(settings.batch_size), static_cast<unsigned long long>(settings.block_size),
              static_cast<unsigned long long>(settings.threads), percentile(0.5), percentile(0.99));
  std::printf("Test completed: duration %.2f, batch count %zu, throughput %.*f %s/s\n", seconds, totals.batch_us.size(),
              static_cast<int>(settings.report_precision), static_cast<double>(totals.bytes) / seconds / kUnits.at(settings.report_unit),
              settings.report_unit.c_str());
  return 0;
}

int run(const Settings& settings) {
  if (settings.mode == "target") {
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGTERM);
    ::pthread_sigmask(SIG_BLOCK, &ends, nullptr);  // inherited by the engine's threads
  }
  EngineOptions options;
  options.name = settings.local_server_name;
  options.metadata_url = settings.metadata_server;
  options.protocol = settings.protocol;
  options.rdma.device_names = settings.device_name;
  if (settings.protocol == "rdma") {
    auto rdma = rdma::with_variables(std::move(options.rdma), rdma::variables_of(environ));  // nothing else here reads it
    if (!rdma.ok()) return failed(rdma.status());
    options.rdma = std::move(*rdma);
  }
  const bool huge = settings.protocol == "rdma" && options.rdma.huge_pages;
  const auto memory = SegmentMemory::map(settings.buffer_size, huge ? HugePages::kIfReserved : HugePages::kNever);
  if (!memory.ok()) return failed(memory.status());
  const auto engine = TransferEngine::create(std::move(options));
  if (!engine.ok()) return failed(engine.status());
  const auto buffer = reinterpret_cast<std::uint64_t>((*memory)->bytes().data());
  if (const Status registered = (*engine)->register_memory(buffer, settings.buffer_size); !registered.ok()) return failed(registered);
  return settings.mode == "target" ? run_target(**engine) : run_initiator(**engine, settings, buffer);
}

}  // namespace

int run_transfer_engine_bench(int argc, char** argv) {
  log::configure("transfer_engine_bench");
  Settings settings;
  CLI::App app("Measures how fast one transfer engine reads or writes another's memory.", "transfer_engine_bench");
  add_flags(app, settings);
  try {
    app.parse(two_dashes(argc, argv));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return run(settings);
}

}  // namespace moonpool::transfer
